"""Reading a whole data set for its checks: facts of each image and label, and their totals."""

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
COLOURS = 64  # so many of the most frequent colours of a label are looked up in the palette


@dataclass(frozen=True)
class Seen:
    """One image and its label as read; for missing files sizes are None and errors empty.

    `mode` is Pillow's, `bits` the bits per pixel in the file, `palette` the colours of the stored values in the file's palette.
    `values`: stored value -> pixels. `colours`: colour -> pixels, of a label with several channels. `stray`: the number of
    values whose pixels are mostly scattered; `scattered_outside`: the share of scattered ones among the pixels of no class.
    """

    sample: Sample
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


def look(dataset: SegDataset, sample: Sample) -> Seen:
    """Reads an image and its label completely."""
    facts: dict[str, Any] = {}
    if os.path.isfile(sample.image_path):
        try:
            facts["image_size"] = dataset.image(sample).shape[:2]
        except OvssError as error:
            facts["image_error"] = _unreadable(sample.image_path, error)
    if os.path.isfile(sample.label_path):
        try:
            facts |= _look_at_label(dataset, sample)
        except (OvssError, ValueError, EOFError, struct.error) as error:  # the others are raised for damaged TIFF files
            facts["label_error"] = _unreadable(sample.label_path, error)
    return Seen(sample, **facts)


def _unreadable(path: Path, error: Exception) -> str:
    reason = str(error.__cause__ or error).replace(str(path), path.name)
    return f"{path.stat().st_size} bytes that cannot be read: {reason}"


def _look_at_label(dataset: SegDataset, sample: Sample) -> dict[str, Any]:
    facts, palette = {}, None
    # A data set class may read other files than images; damage is reported when the whole file is read.
    with suppress(Exception), Image.open(sample.label_path) as image:
        palette = image.getpalette() if image.mode == "P" else None
        facts |= {"format": image.format, "mode": image.mode, "bits": _bits(image, sample.label_path)}
    label = dataset.label(sample) if _reads_itself(dataset) else dataset.raw_label(sample)
    facts["label_size"] = label.shape[:2]
    if label.ndim > 2:
        return facts | {"colours": _colours(label)}
    values, scattered = _count(label), _count(label[_equal_neighbours(label) <= 1])
    if palette is not None:
        colours = [tuple(palette[i : i + 3]) for i in range(0, len(palette), 3)]
        facts["palette"] = {value: colours[value] for value in values if 0 <= value < len(colours)}
    foreign = [value for value in values if not _is_value(dataset, _ruled(dataset, value))]
    outside = sum(values[value] for value in foreign)
    return facts | {
        "values": values,
        "stray": sum(2 * scattered.get(value, 0) >= pixels for value, pixels in values.items()),
        "scattered_outside": sum(scattered.get(value, 0) for value in foreign) / max(outside, 1),
        "digest": hashlib.sha256(repr(label.shape).encode() + label.astype("<i4").tobytes()).hexdigest()[:16],
    }


def _bits(image: Image.Image, path: Path) -> int:
    """Bits per pixel of one channel in the file: Pillow reports 8 for 2 and 4."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (1,))
        return bits[0] if isinstance(bits, tuple) and bits and isinstance(bits[0], int) else 8
    return {"1": 1, "L": 8, "P": 8}.get(image.mode, 16)


def _reads_itself(dataset: SegDataset) -> bool:
    """Whether the data set class overrides `label`, which then applies its rules."""
    return type(dataset).label is not SegDataset.label


def _ruled(dataset: SegDataset, value: int) -> int:
    return value if _reads_itself(dataset) else int(dataset.ruled(np.array([value]))[0])


def _is_value(dataset: SegDataset, value: int) -> bool:
    return 0 <= value < len(dataset.classes) or value == dataset.ignore_index


def _count(label: np.ndarray) -> dict[int, int]:
    """Value -> pixels. Counting is much faster than sorting, but needs small values."""
    if not label.size or (label.min() >= 0 and label.max() < 1 << 16):
        counts = np.bincount(label.ravel())
        values = np.flatnonzero(counts)
        return dict(zip(values.tolist(), counts[values].tolist(), strict=True))
    values, counts = np.unique(label, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _colours(label: np.ndarray) -> dict[tuple[int, ...], int]:
    """The most frequent colours of (H, W, channels), alpha left out."""
    label = label[..., : 3 if label.shape[2] >= 3 else 1].astype(np.int64)
    channels = label.shape[2]
    packed = sum(label[..., channel] << 16 * channel for channel in range(channels))  # faster to sort than rows
    colours, counts = np.unique(packed, return_counts=True)
    order = counts.argsort()[::-1][:COLOURS]
    return {tuple(int(colours[i]) >> 16 * channel & 0xFFFF for channel in range(channels)): int(counts[i]) for i in order}


def _equal_neighbours(label: np.ndarray) -> np.ndarray:
    """(H, W): how many of the four neighbours have the pixel's value; those beyond the border count as equal."""
    equal = np.full(label.shape, 4, np.uint8)
    rows, columns = label[1:] != label[:-1], label[:, 1:] != label[:, :-1]
    equal[1:] -= rows
    equal[:-1] -= rows
    equal[:, 1:] -= columns
    equal[:, :-1] -= columns
    return equal


Found = Iterator[tuple[Path | None, str]]


@dataclass(frozen=True)
class Check:
    """A mistake: `find` yields files and descriptions; `hint` is the repair, with the placeholders of `run._words`."""

    kind: str
    find: Callable[[Survey], Found]
    hint: str


def mistake(kind: str, hint: str) -> Callable[[Callable[[Survey], Found]], Check]:
    return lambda find: Check(kind, find, hint)


@dataclass
class Survey:
    """Everything read from a data set, for the checks."""

    dataset: SegDataset
    seen: list[Seen]
    explained: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.facts: dict[str, Any] = self.dataset.config.get("check") or {}
        self.ids = Counter(seen.sample.id for seen in self.seen)
        self.pixels: Counter[int] = Counter()  # stored value -> pixels
        for seen in self.seen:
            self.pixels.update(seen.values)
        self.ruled = {value: _ruled(self.dataset, value) for value in self.pixels}
        self.foreign = {value for value in self.pixels if not _is_value(self.dataset, self.ruled[value])}

    @property
    def labels(self) -> list[Seen]:
        """The label maps that were read and are not yet explained."""
        return [seen for seen in self.seen if seen.values and seen.sample.label_path not in self.explained]

    @property
    def coloured(self) -> list[Seen]:
        """The label maps of several channels that are not yet explained."""
        return [seen for seen in self.seen if seen.colours is not None and seen.sample.label_path not in self.explained]

    @property
    def shifts(self) -> bool:
        """Whether the data set's rules ignore 0 and lower other values by one."""
        return not _reads_itself(self.dataset) and _ruled(self.dataset, 0) == self.dataset.ignore_index

    @property
    def whole(self) -> bool:
        """Whether no image is missing, or, if the full number is unknown, there are at least as many images as classes."""
        expected = self.dataset.expected_images
        return len(self.ids) >= (len(self.dataset.classes) if expected is None else np.min(expected))

    @property
    def unexplained(self) -> bool:
        """Whether most label maps that were read have no mistake yet."""
        return 2 * len(self.labels) > sum(bool(seen.values) for seen in self.seen)

    @cached_property
    def histogram(self) -> dict[int, int]:
        total: Counter[int] = Counter()
        for value, pixels in self.pixels.items():
            total[self.ruled[value]] += pixels
        return dict(sorted(total.items()))

    @cached_property
    def list_file(self) -> Path | None:
        return self.dataset.root / self.dataset.config["ids"] if self.dataset.config.get("ids") else None

    @cached_property
    def label_files(self) -> dict[str, Path]:
        """File name -> path of all images in or beside the label folder."""
        folder = self.dataset.root / self.dataset.config["labels"]
        return {path.name: path for path in data_files(folder.parent, "**/*") if path.suffix.lower() in IMAGES}

    @cached_property
    def orphans(self) -> list[Path]:
        """Labels whose image is not listed; empty for data sets with a list of ids."""
        if self.list_file is not None:
            return []
        folder, suffix = self.dataset.root / self.dataset.config["labels"], self.dataset.config["label_suffix"]
        known = {seen.sample.label_path for seen in self.seen}
        images = {seen.sample.image_path for seen in self.seen}  # which may be in the same folder
        return [path for path in data_files(folder, f"**/*{suffix}") if path not in known | images]
