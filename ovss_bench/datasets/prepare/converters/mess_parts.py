"""Shared functions of the converters for MESS: reading lists, and tasks that write images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ....errors import OvssError
from ....files import write_atomic
from ..conversion import Task, copy, labelled, list_lines
from .aerial import read_picture

IMAGES, LABELS = "images_detectron2", "annotations_detectron2"
Reader = Callable[[Path], np.ndarray]  # raw label map -> (H, W) uint8 classes


def two_columns(path: Path) -> list[tuple[str, str]]:
    """The rows (number, value) of a list."""
    rows = [line.split() for line in list_lines(path)]
    if wrong := [" ".join(row) for row in rows if len(row) != 2]:
        raise OvssError(f"{path} has the line '{wrong[0]}', expected a number and a value. Unpack the official archive.")
    return [(number, value) for number, value in rows]


def listed(path: Path) -> list[str]:
    """The names in a list without suffixes, which the list may include."""
    return [Path(line).stem for line in list_lines(path)]


def one_of(folder: Path, name: str, suffixes: Sequence[str]) -> Path:
    """The file with this name and one of the suffixes. Raises OvssError if there is none."""
    for path in (folder / (name + suffix) for suffix in suffixes):
        if path.is_file():
            return path
    raise OvssError(f"there is no {name}{' or '.join(suffixes)} in {folder}. Unpack the official archive there.")


def pictured(source: Path, target: Path, images: str = "original") -> Task:
    """The task that writes an image: a copy or, if the target has another suffix, the same pixels in another format. For
    `mess`, the JPEG file is recompressed as in MESS's scripts, with Pillow's quality of 75 and without the EXIF orientation;
    this changes pixels by up to 40."""
    make = copy if images == "original" and source.suffix == target.suffix else recode
    return Task(make, (source, target), (target,))


def recode(source: Path, target: Path) -> None:
    """Saves the Pillow image, not an array, to keep the JPEG comment as in MESS's scripts; the fingerprint depends on it."""
    read_picture(source)  # refuses bit depths that Pillow would clip
    with Image.open(source) as image:
        picture = image.convert("RGB")
    write_atomic(target, lambda temporary: picture.save(temporary))


def pair(read: Reader, image: Path, label: Path, folder: Path, name: str, images: str = "original") -> tuple[Task, Task]:
    """The tasks that write a test image under `name` and its label map as a PNG file of the same name."""
    target = folder / LABELS / "test" / name
    return pictured(image, folder / IMAGES / "test" / name, images), labelled(read, label, target.with_suffix(".png"))
