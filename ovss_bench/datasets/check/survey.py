"""Reads a whole data set and collects what its checks need: facts about each image and label, and totals."""

from __future__ import annotations

import hashlib
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import OvssError
from ...files import data_files
from ..base import Sample, SegDataset

IMAGES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
COLOURS = 64  # the number of most frequent colours of a label that are looked up in the palette


@dataclass(frozen=True)
class Pair(Sample):
    """Facts about an image and its label. For missing files, sizes are None and errors are empty.

    `mode` is Pillow's mode, `bits` the bits per pixel in the file, `palette` maps stored values to colours of the file's
    palette. `values`: stored value -> pixels. `colours`: colour -> pixels, for a label with several channels. `stray`: the
    number of values whose pixels are mostly scattered (see run.py); `scattered_outside`: the share of scattered pixels among
    those that belong to no class.
    """

    image_size: tuple[int, int] | None = None
    image_error: str = ""
    label_size: tuple[int, int] | None = None
    label_error: str = ""
    format: str | None = None
    mode: str = ""
    bits: int = 16
    palette: Mapping[int, tuple[int, ...]] | None = None
    values: Mapping[int, int] = field(default_factory=dict)
    colours: Mapping[tuple[int, ...], int] | None = None
    stray: int = 0
    scattered_outside: float = 0.0
    digest: str = ""


def read_pair(dataset: SegDataset, sample: Sample) -> Pair:
    """Reads an image and its label completely."""
    facts: dict[str, Any] = {}
    if os.path.isfile(sample.image_path):
        try:
            facts["image_size"] = dataset.image(sample).shape[:2]
        except OvssError as error:
            facts["image_error"] = _unreadable(sample.image_path, error)
    if os.path.isfile(sample.label_path):
        try:
            facts |= _read_label(dataset, sample)
        except (OvssError, ValueError, EOFError, struct.error) as error:  # damaged TIFF files raise the last three
            facts["label_error"] = _unreadable(sample.label_path, error)
    return Pair(**vars(sample), **facts)


def _unreadable(path: Path, error: Exception) -> str:
    reason = str(error.__cause__ or error).replace(str(path), path.name)
    return f"{path.stat().st_size} bytes that cannot be read: {reason}"


def _read_label(dataset: SegDataset, sample: Sample) -> dict[str, Any]:
    facts, palette = {}, None
    # A loader's labels need not be images; damage is reported when the whole file is read.
    with suppress(Exception), Image.open(sample.label_path) as image:
        palette = image.getpalette() if image.mode == "P" else None
        facts |= {"format": image.format, "mode": image.mode, "bits": _bits(image, sample.label_path)}
    label = dataset.label(sample) if _overrides_label(dataset) else dataset.raw_label(sample)
    facts["label_size"] = label.shape[:2]
    if label.ndim > 2:
        return facts | {"colours": _colours(label)}
    values, scattered = _count(label), _count(label[_equal_neighbours(label) <= 1])
    if palette is not None:
        facts["palette"] = {v: tuple(palette[3 * v : 3 * v + 3]) for v in values if 0 <= 3 * v < len(palette)}
    foreign = [value for value in values if not _is_valid(dataset, _class_of(dataset, value))]
    outside = sum(values[value] for value in foreign)
    return facts | {
        "values": values,
        "stray": sum(2 * scattered.get(value, 0) >= pixels for value, pixels in values.items()),
        "scattered_outside": sum(scattered.get(value, 0) for value in foreign) / max(outside, 1),
        "digest": hashlib.sha256(repr(label.shape).encode() + label.astype("<i4").tobytes()).hexdigest()[:16],
    }


def _bits(image: Image.Image, path: Path) -> int:
    """Bits per pixel of one channel in the file. Pillow's mode does not show them: it is 8-bit for 2 and 4 bits, too."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (1,))
        return bits[0] if isinstance(bits, tuple) and bits and isinstance(bits[0], int) else 8
    return {"1": 1, "L": 8, "P": 8}.get(image.mode, 16)


def _overrides_label(dataset: SegDataset) -> bool:
    """Whether the loader overrides `label`, which then returns class indices."""
    return type(dataset).label is not SegDataset.label


def _class_of(dataset: SegDataset, value: int) -> int:
    return value if _overrides_label(dataset) else int(dataset.class_indices(np.array([value]))[0])


def _is_valid(dataset: SegDataset, value: int) -> bool:
    return 0 <= value < len(dataset.classes) or value == dataset.ignore_index


def _count(label: np.ndarray) -> dict[int, int]:
    """Value -> pixels. `bincount` is much faster than the sorting `unique`, but needs small non-negative values."""
    if label.size and (label.min() < 0 or label.max() >= 1 << 16):
        values, counts = np.unique(label, return_counts=True)
    else:
        totals = np.bincount(label.ravel())
        values = np.flatnonzero(totals)
        counts = totals[values]
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _colours(label: np.ndarray) -> dict[tuple[int, ...], int]:
    """Colour -> pixels, for the most frequent colours of (H, W, channels) without alpha."""
    label = label[..., : 3 if label.shape[2] >= 3 else 1].astype(np.int64)
    channels = label.shape[2]
    packed = sum(label[..., channel] << 16 * channel for channel in range(channels))  # faster to sort than rows
    colours, counts = np.unique(packed, return_counts=True)
    order = counts.argsort()[::-1][:COLOURS]
    return {tuple(int(colours[i]) >> 16 * channel & 0xFFFF for channel in range(channels)): int(counts[i]) for i in order}


def _equal_neighbours(label: np.ndarray) -> np.ndarray:
    """(H, W): how many of the four neighbours have the pixel's value; neighbours beyond the border count as equal."""
    framed = np.pad(label, 1, "edge")
    neighbours = framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]
    return np.sum([label == shifted for shifted in neighbours], 0, np.uint8)


Found = Iterator[tuple[Path | None, str]]


@dataclass(frozen=True)
class Check:
    """A kind of mistake: `find` yields files and descriptions; `hint` is the fix, with the placeholders of `run.py`."""

    kind: str
    find: Callable[[Survey], Found]
    hint: str


def mistake(kind: str, hint: str) -> Callable[[Callable[[Survey], Found]], Check]:
    """Decorator that turns a `find` function into a `Check`."""
    return lambda find: Check(kind, find, hint)


class Survey:
    """Everything that the checks know about a data set. `explained`: files whose mistake has already been reported."""

    def __init__(self, dataset: SegDataset, pairs: list[Pair]) -> None:
        self.dataset, self.pairs, self.explained = dataset, pairs, set[Path]()
        self.config, self.count, self.ignored = dataset.config, len(dataset.classes), dataset.ignore_index
        self.facts: dict[str, Any] = self.config.get("check") or {}
        self.image_folder, self.label_folder = (dataset.root / self.config[key] for key in ("images", "labels"))
        self.list_file = dataset.root / self.config["ids"] if self.config.get("ids") else None
        self.ids = {pair.id for pair in pairs}
        self.pixels: Counter[int] = Counter()  # stored value -> pixels
        for pair in pairs:
            self.pixels.update(pair.values)
        self.class_of = {value: _class_of(dataset, value) for value in self.pixels}
        self.foreign = {value for value, c in self.class_of.items() if not _is_valid(dataset, c)}
        total: Counter[int] = Counter()
        for value, pixels in self.pixels.items():
            total[self.class_of[value]] += pixels
        self.histogram = dict(sorted(total.items()))
        # Whether the data set's rules ignore 0 and lower other values by one.
        self.shifts = not _overrides_label(dataset) and _class_of(dataset, 0) == self.ignored
        # Whether the data set is complete; if its size is unknown, whether it has at least as many images as classes.
        expected = dataset.expected_images
        self.whole = len(self.ids) >= (self.count if expected is None else expected)

    @property
    def labels(self) -> list[Pair]:
        """The readable label maps without a reported mistake."""
        return [pair for pair in self.pairs if pair.values and pair.label_path not in self.explained]

    @property
    def coloured(self) -> list[Pair]:
        """The label maps with several channels and without a reported mistake."""
        return [pair for pair in self.pairs if pair.colours is not None and pair.label_path not in self.explained]

    @property
    def unexplained(self) -> bool:
        """Whether most readable label maps have no reported mistake."""
        return 2 * len(self.labels) > sum(bool(pair.values) for pair in self.pairs)

    @cached_property
    def label_files(self) -> dict[str, Path]:
        """File name -> path of all image files in the label folder and next to it."""
        return {path.name: path for path in data_files(self.label_folder.parent, "**/*") if path.suffix.lower() in IMAGES}

    def orphans(self) -> Iterator[tuple[Path, Path]]:
        """(image, label) of labels whose image is not listed; none for data sets with an id list."""
        images, suffix = {pair.image_path for pair in self.pairs}, self.config["label_suffix"]
        known = images | {pair.label_path for pair in self.pairs}  # images and labels may share a folder
        for label in data_files(self.label_folder, f"**/*{suffix}") if self.list_file is None else ():
            if label not in known:
                name = label.relative_to(self.label_folder).as_posix().removesuffix(suffix)
                yield self.image_folder / f"{name}{self.config['image_suffix']}", label
