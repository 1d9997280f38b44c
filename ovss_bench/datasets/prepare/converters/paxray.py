"""PAXRay: chest X-rays, each with a file of 166 binary masks. MESS uses four of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ....errors import OvssError, reading
from ....files import read_text
from ..conversion import CONVERTERS, UNPACK, Task, write_label
from .mess_parts import IMAGES, LABELS, listed, pictured

PLANES = {"lungs": 0, "mediastinum": 10, "bones": 24, "diaphragm": 163}  # data set -> index of its mask


@CONVERTERS.register_module(name="paxray")
def paxray(folder: Path) -> Iterator[Task]:
    """Four data sets with the same images and a binary mask each."""
    for image, masks in _pairs(folder):
        targets = tuple(folder / LABELS / "test" / part / f"{image.stem}.png" for part in PLANES)
        yield pictured(image, folder / IMAGES / "test" / image.name)
        yield Task(planes, (masks, targets), targets)


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """The image and masks of each test image, from the official paxray.json, whose entries name images/<id>.png and
    labels/<id>.npy, or, in a manually arranged folder, from raw/test.txt, with raw/images/<id>.png and raw/masks/<id>.npy."""
    raw = folder / "raw"
    for place in (folder, raw):
        if (place / "paxray.json").is_file():
            return [(place / image, place / masks) for image, masks in _split(place / "paxray.json")]
    if not (raw / "test.txt").is_file():
        raise OvssError(f"there is no paxray.json in {folder} (nor raw/test.txt). Unpack the official archive there.")
    return [(raw / "images" / f"{name}.png", raw / "masks" / f"{name}.npy") for name in listed(raw / "test.txt")]


def _split(path: Path) -> list[tuple[str, str]]:
    """The image and masks of each entry of `test`, distinguished by suffix: an entry may be a pair, or a mapping with any
    keys."""
    with reading(f"test split of {path}", UNPACK):
        entries = json.loads(read_text(path, "list"))["test"]
        entries = list(entries.values() if isinstance(entries, dict) else entries)
    if not entries:
        raise OvssError(f"{path} names no image of the test split. {UNPACK}")
    return [(_file(path, entry, ".png"), _file(path, entry, ".npy")) for entry in entries]


def _file(path: Path, entry: Any, suffix: str) -> str:
    texts = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else [entry]
    matching = {text for text in texts if isinstance(text, str) and text.endswith(suffix)}
    name = matching.pop() if len(matching) == 1 else ""
    pure = PurePosixPath(name)
    if not name or "\0" in name or pure.is_absolute() or ".." in pure.parts:
        expected = f"expected a path images/<id>.png and one labels/<id>.npy below its folder. {UNPACK}"
        raise OvssError(f"{path}: an entry of the test split is {str(entry)[:200]}, {expected}")
    return name


def planes(source: Path, targets: Sequence[Path]) -> None:
    """Writes four of the (166, H, W) masks, which hold 0 and 1."""
    with reading(f"file of masks {source}", f"Expected (166, height, width) of 0 and 1. {UNPACK}"):
        masks = np.load(source, mmap_mode="r", allow_pickle=False)
        if not isinstance(masks, np.ndarray):
            raise ValueError("it is an archive of arrays")
        if masks.ndim != 3 or len(masks) <= max(PLANES.values()) or not masks.size:
            raise ValueError(f"it has the shape {masks.shape}")
        chosen = [np.array(masks[plane]) for plane in PLANES.values()]
        if not np.isin(chosen, (0, 1)).all():
            raise ValueError(f"it holds the values {np.unique(chosen)[:8].tolist()}")
    for plane, target in zip(chosen, targets, strict=True):
        write_label(target, plane.astype(np.uint8))
