"""Buildings, roads and water in aerial images: masks of one class, binarised as in the converters of likyoo/SegEarth-OV.

Folders are named as in SegEarth-OV's dataset_prepare.md and converters; those ending in `_cvt` or `_pre` are written here.
configs/dataset lists the names in use for the raw folders (`prepare.raw`: images, masks).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ....errors import OvssError
from ....files import DATASET_FACTS, data_files
from ...config import alternatives, dataset_config
from ...layout import first_existing, first_suffix
from ..conversion import CONVERTERS, Task, copied, files, labelled, words, write_lines
from .aerial import COLUMNS_FIRST, boxes, split_folders, tiled

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
NOISE = 48  # maximum difference between the channels of a grey mask, since JPEG masks may be slightly coloured


def binarised(name: str, folder: Path) -> Iterator[Task]:
    """Binarises masks that have the names of their images."""
    config, (images, source) = dataset_config(name)[1], raw(name, folder)
    suffix = alternatives(config["label_suffix"])[0]
    return masks(source, folder / config["labels"], [path.stem for path in images], suffix)


def satellite_roads(name: str, folder: Path) -> Iterator[Task]:
    """Binarises masks and removes the endings of images <id>_sat.jpg and masks <id>_mask.png."""
    images, source = raw(name, folder, "*_sat")
    ids = [path.stem.removesuffix("_sat") for path in images]
    for image, key in zip(images, ids, strict=True):
        yield copied(image, folder / "image_cvt" / f"{key}.jpg")
    yield from masks(source, folder / "label_cvt", ids, end="_mask")


for _name in ("whu_aerial", "whu_sat_ii", "massachusetts_road", "spacenet_road"):
    CONVERTERS.register_module(name=_name, module=lambda folder, name=_name: binarised(name, folder))
for _name in ("chn6_cug", "deepglobe_road"):
    CONVERTERS.register_module(name=_name, module=lambda folder, name=_name: satellite_roads(name, folder))


@CONVERTERS.register_module(name="xbd")
def xbd(folder: Path) -> Iterator[Task]:
    """The images from before the disasters; their targets hold 1 for buildings (later ones hold the damage)."""
    images, source = raw("xbd", folder, "*pre*")
    for path in images:
        yield copied(path, folder / "images_pre" / path.name)
    yield from masks(source, folder / "targets_cvt_pre", [path.stem for path in images], end="_target", threshold=1)


@CONVERTERS.register_module(name="inria")
def inria(folder: Path) -> Iterator[Task]:
    """27 labelled images <id>.tif of raw/train, selected and cut into tiles of 1000 x 1000 as in SegEarth-OV."""
    images, labels = raw_folders("inria", folder)
    ids = listed_images("inria_split_test.txt", images, ".tif")
    sources = [(name, images / f"{name}.tif", labels / f"{name}.tif") for name in ids]
    grid, read = partial(boxes, tile=(1000, 1000), step=(1000, 1000)), partial(binary, threshold=128)
    yield from tiled(sources, split_folders(folder, "split_test"), COLUMNS_FIRST, grid, read)


@CONVERTERS.register_module(name="wbs_si")
def wbs_si(folder: Path) -> Iterator[Task]:
    """The 499 images of SegEarth-OV's list, in its order."""
    images, source = raw_folders("wbs_si", folder)
    ids = listed_images("wbs_si_val.txt", images, ".jpg")
    listed = folder / "val.txt"
    if listed.is_file() and set(words(listed)) < set(ids):
        listed.unlink()  # images have been added since it was written
    yield from masks(source, folder / "Masks_cvt", ids)
    yield Task(write_lines, (listed, ids), (listed,))


def raw_folders(name: str, folder: Path) -> tuple[Path, Path]:
    """The raw folders of images and masks: for each, the first name in the configuration that exists."""
    images, source = dataset_config(name)[1]["prepare"]["raw"]
    return folder / first_existing(images, folder), folder / first_existing(source, folder)


def raw(name: str, folder: Path, stem: str = "*") -> tuple[list[Path], Path]:
    """The sorted raw images of a data set and the folder of their masks. Raises OvssError if there are no images."""
    images, source = raw_folders(name, folder)
    return files(images, stem + first_suffix(dataset_config(name)[1]["image_suffix"], images)), source


def masks(source: Path, to: Path, ids: list[str], suffix: str = ".png", end: str = "", threshold: int = 128) -> Iterator[Task]:
    """Tasks that write label maps to the folder `to`, from the masks <id><end> in the folder `source`."""
    available = {path.stem: path for path in data_files(source) if path.suffix.lower() in SUFFIXES}
    if missing := [key + end for key in ids if key + end not in available and not (to / f"{key}{suffix}").exists()]:
        raise OvssError(f"{source} lacks {len(missing)} masks, the first: {missing[0]}. Unpack the official archive there.")
    for key in ids:
        if key + end in available:
            yield labelled(partial(binary, threshold=threshold), available[key + end], to / f"{key}{suffix}")


def binary(path: Path, threshold: int) -> np.ndarray:
    """(H, W) uint8, 1 where a mask reaches the threshold. Raises OvssError for coloured masks, and for 0 and 1 instead of 0 and
    255."""
    with Image.open(path) as image:
        if image.mode not in ("1", "L") and np.ptp(np.array(image.convert("RGB")), axis=2).max() > NOISE:
            raise OvssError(f"mask {path} is in colours, expected black and white. Unpack the official archive again.")
        grey, lossy = np.array(image.convert("L")), image.format == "JPEG"  # JPEG may turn black into 1
    if threshold > 1 and grey.max() == 1 and not lossy:
        raise OvssError(f"mask {path} holds 0 and 1, expected 0 and 255: it is already converted. Restore the official mask.")
    return (grey >= threshold).astype(np.uint8)


def listed_images(name: str, folder: Path, suffix: str) -> list[str]:
    """The ids of a list in datasets/ids whose images exist. Raises OvssError if no image exists."""
    ids = words(DATASET_FACTS / "ids" / name)
    existing = [key for key in ids if (folder / f"{key}{suffix}").is_file()]
    if not existing:
        raise OvssError(f"{folder} has none of the {len(ids)} images of {name} ({ids[0]}{suffix}, ...). Unpack them there.")
    return existing
