"""Buildings, roads and water in aerial images: masks of one class, as likyoo/SegEarth-OV's converters binarise them.

Folders are those of SegEarth-OV's dataset_prepare.md: what ends in `_cvt` (or `_pre`) is made here of the official folder whose
name lacks that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import OvssError
from ..conversion import files, words, write_label, write_lines
from ..prepare import CONVERTERS, Task
from .aerial import copy, tiled

SUFFIXES = (".png", ".tif", ".jpg")
# Masks of JPEG files may be a little coloured.
NOISE = 48


@CONVERTERS.register_module(name="whu_aerial")
def whu_aerial(folder: Path) -> Iterator[Task]:
    images = files(folder / "val/image", "*.png")
    return masks((folder / "val/label", folder / "val/label_cvt"), {path.stem: path.stem for path in images})


@CONVERTERS.register_module(name="whu_sat_ii")
def whu_sat_ii(folder: Path) -> Iterator[Task]:
    test = folder / "1.cropped/test"
    images = files(test / "image", "*.tif")
    return masks((test / "label", test / "label_cvt"), {path.stem: path.stem for path in images}, ".tif")


@CONVERTERS.register_module(name="massachusetts_road")
@CONVERTERS.register_module(name="spacenet_road")
def roads(folder: Path) -> Iterator[Task]:
    images = files(folder / "img", "*.jpg")
    return masks((folder / "label", folder / "label_cvt"), {path.stem: path.stem for path in images})


@CONVERTERS.register_module(name="chn6_cug")
@CONVERTERS.register_module(name="deepglobe_road")
def roads_of_satellites(folder: Path) -> Iterator[Task]:
    """image/<id>_sat.jpg and label/<id>_mask.png lose the ends of their names."""
    images = files(folder / "image", "*_sat.jpg")
    ids = [path.stem.removesuffix("_sat") for path in images]
    yield from copies(zip(images, (folder / "image_cvt" / f"{name}.jpg" for name in ids), strict=True))
    yield from masks((folder / "label", folder / "label_cvt"), {name: f"{name}_mask" for name in ids})


@CONVERTERS.register_module(name="xbd")
def xbd(folder: Path) -> Iterator[Task]:
    """The images from before the disasters; a target holds 1 (and, after a disaster, the damage) where buildings are."""
    images = files(folder / "images", "*pre*.png")
    yield from copies((path, folder / "images_pre" / path.name) for path in images)
    names = {path.stem: f"{path.stem}_target" for path in images}
    yield from masks((folder / "targets", folder / "targets_cvt_pre"), names, threshold=1)


@CONVERTERS.register_module(name="inria")
def inria(folder: Path) -> Iterator[Task]:
    """27 labelled images of raw/train/{images,gt}/<id>.tif, in tiles of 1000 x 1000 (of which we chose the names)."""
    train = folder / "raw/train"
    ids = listed_images("inria_split_test.txt", train / "images", ".tif")
    sources = [(name, train / "images" / f"{name}.tif", train / "gt" / f"{name}.tif") for name in ids]
    name = "{name}_{left}_{top}_{right}_{bottom}"
    yield from tiled(sources, folder, "split_test", (1000, 1000), (1000, 1000), name, partial(binary, threshold=128))


@CONVERTERS.register_module(name="wbs_si")
def wbs_si(folder: Path) -> Iterator[Task]:
    """The 499 images of SegEarth-OV's list, in its order."""
    ids = listed_images("wbs_si_val.txt", folder / "Images", ".jpg")
    listed = folder / "val.txt"
    if listed.is_file() and set(words(listed)) < set(ids):
        listed.unlink()  # images were added since
    yield from masks((folder / "Masks", folder / "Masks_cvt"), {name: name for name in ids})
    yield Task(write_lines, (listed, ids), (listed,))


def masks(folders: tuple[Path, Path], names: dict[str, str], suffix: str = ".png", threshold: int = 128) -> Iterator[Task]:
    """Tasks that make the label maps of the images {id: name of the mask}, from the first folder into the second."""
    source, target = folders
    found = {path.stem: path for path in source.glob("*") if path.suffix.lower() in SUFFIXES}
    left = {key: name for key, name in names.items() if name in found or not (target / f"{key}{suffix}").exists()}
    missing = [name for name in left.values() if name not in found]
    if missing:
        raise OvssError(f"{source} lacks {len(missing)} masks, the first: {missing[0]}. Unpack the official archive there.")
    for key, name in left.items():
        yield Task(convert, (found[name], target / f"{key}{suffix}", threshold), (target / f"{key}{suffix}",))


def copies(paths: Iterable[tuple[Path, Path]]) -> Iterator[Task]:
    for source, target in paths:
        yield Task(copy, (source, target), (target,))


def convert(source: Path, target: Path, threshold: int) -> None:
    write_label(target, binary(source, threshold))


def binary(path: Path, threshold: int) -> np.ndarray:
    """(H, W) uint8, 1 where a mask in grey values reaches the threshold.

    Raises OvssError for a mask in colours, or one that holds 0 and 1 where 0 and 255 are expected.
    """
    with Image.open(path) as image:
        if image.mode not in ("1", "L") and np.ptp(np.array(image.convert("RGB")), axis=2).max() > NOISE:
            raise OvssError(f"mask {path} is in colours, expected black and white. Unpack the official archive again.")
        grey = np.array(image.convert("L"))
    if threshold > 1 and grey.max() == 1:
        raise OvssError(f"mask {path} holds 0 and 1, expected 0 and 255: it is converted already. Put the official one there.")
    return (grey >= threshold).astype(np.uint8)


def listed_images(name: str, folder: Path, suffix: str) -> list[str]:
    """The ids of a list beside this file of which the image is there. Raises OvssError if there is none."""
    ids = words(Path(__file__).parent / name)
    there = [key for key in ids if (folder / f"{key}{suffix}").is_file()]
    if not there:
        raise OvssError(
            f"{folder} has none of the {len(ids)} images that are used, {ids[0]}{suffix} and others. Unpack them there."
        )
    return there
