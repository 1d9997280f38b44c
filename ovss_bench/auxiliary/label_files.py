"""Label maps in files from any program: PNG of 8 or 16 bits, .npy, and run lengths in COCO's JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ..errors import OvssError
from ..files import DAMAGES, read_json

SUFFIXES = (".png", ".npy")
UNREADABLE = (*DAMAGES, SyntaxError, Image.DecompressionBombError)
WHOLE = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")  # Pillow's modes for a single channel of integers


class BadMap(OvssError):
    """A label map that cannot be scored. `kind` describes the problem, the same for all maps that have it; the message is about
    this map."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def read_values(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The stored integers (H, W), and the palette (N, 3) of a PNG that has one. Raises BadMap."""
    try:
        if path.suffix == ".npy":
            return _checked(path, np.load(path, allow_pickle=False)), None
        with Image.open(path) as picture:
            if picture.mode not in WHOLE:
                hint = "store class indices, not colours (mode L, P or I;16)"
                raise BadMap(f"have several channels, or fractions: {hint}", f"{path} ({picture.mode})")
            palette = picture.getpalette("RGB") if picture.mode == "P" else None
            return _checked(path, np.array(picture)), None if palette is None else np.reshape(palette, (-1, 3))
    except UNREADABLE as error:
        raise BadMap("cannot be read", f"{path} ({str(error) or type(error).__name__})") from error


def _checked(path: Path, values: np.ndarray) -> np.ndarray:
    if values.ndim != 2 or values.dtype.kind not in "biu":
        kind = "are not whole numbers (height, width): store the index of the best class of each pixel"
        raise BadMap(kind, f"{path} ({values.dtype} of the shape {values.shape})")
    return values


def read_run_lengths(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The entries of a JSON list by file name of the image, as detectron2's semantic evaluator writes it: {file_name,
    category_id, segmentation: {size, counts}}. Raises OvssError if it is not such a list."""
    by_image: dict[str, list[dict[str, Any]]] = defaultdict(list)
    try:
        for entry in read_json(path):
            if not isinstance(entry["category_id"], int) or len(entry["segmentation"]["size"]) != 2:
                raise ValueError(f"category_id or size of an entry is wrong: {str(entry)[:80]}")
            by_image[str(entry["file_name"])].append(entry)
    except (*DAMAGES, AttributeError) as error:
        expected = "Expected a list of {file_name, category_id, segmentation: {size, counts}}"
        raise OvssError(f"label maps {path} cannot be read: {type(error).__name__}: {error}. {expected}.") from error
    return dict(by_image)


def painted(path: Path, entries: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The category of each pixel (H, W) int64, -1 where there is none; later entries cover earlier ones. Raises BadMap."""
    height, width = entries[0]["segmentation"]["size"]
    values = np.full((height, width), -1, np.int64)
    name = f"{path}, {entries[0]['file_name']}"
    try:
        for entry in entries:
            if entry["segmentation"]["size"] != [height, width]:
                raise ValueError(f"sizes {entry['segmentation']['size']} and {[height, width]} in one image")
            values[mask(entry["segmentation"])] = entry["category_id"]
    except (*DAMAGES, IndexError) as error:
        raise BadMap("cannot be read", f"{name} ({error})") from error
    return values


def mask(segmentation: Mapping[str, Any]) -> np.ndarray:
    """COCO's run-length encoding -> (H, W) bool. Runs of zeros and ones alternate, column by column, zeros first."""
    height, width = segmentation["size"]
    counts = segmentation["counts"]
    counts = np.array(run_lengths(counts) if isinstance(counts, str) else counts, np.int64)
    if (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(f"the run lengths add up to {counts.sum()}, expected {height} x {width}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def run_lengths(text: str) -> list[int]:
    """Decodes compressed run lengths (cocoapi, maskApi.c, rleFrString): characters from "0" on hold five bits, lowest first,
    and a sixth where more follow, in two's complement. From the fourth number on, they are differences to the last but one."""
    numbers: list[int] = []
    value = shift = 0
    for letter in text:
        digit = ord(letter) - 48
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (digit & 16) << (shift - 4)
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            value = shift = 0
    return numbers


def name_parts(file: str) -> list[str]:
    """The names of an image's file without its suffix, from that with all folders to that with none."""
    parts = PurePosixPath(file.replace("\\", "/")).with_suffix("").parts
    return ["/".join(parts[start:]) for start in range(len(parts))]
