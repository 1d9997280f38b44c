"""ADE20K with 847 classes, from the full release (ADE20K_2021_17_01)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ....errors import OvssError
from ....files import DATASET_FACTS
from ..conversion import CONVERTERS, Task, files, lookup_table, read_pixels, require, words, write_image, write_label
from .mess_parts import IMAGES, LABELS

# The id of each class in the full release, one per line in label order (the list of MaskFormer and CAT-Seg).
IDS = [int(number) for number in words(DATASET_FACTS / "ids/ade847_ids.txt")]
TRAIN_IDS = lookup_table({original: new for new, original in enumerate(IDS)}, 65535, np.uint16, 26 * 256)
SHORT_SIDE = 512


@CONVERTERS.register_module(name="ade847")
def ade847(folder: Path) -> Iterator[Task]:
    """Writes images_detectron2/validation/<id>.jpg and annotations_detectron2/validation/<id>.tif from each
    ADE_val_<number>.jpg and ..._seg.png at any depth of images/ADE/validation. MESS's prepare_ade20k_full_sem_seg.py instead
    reads the names from a pickle."""
    for label in files(folder / "images/ADE/validation", "**/ADE_val_*_seg.png"):
        image = label.with_name(label.name.removesuffix("_seg.png") + ".jpg")
        require([image])
        targets = folder / IMAGES / "validation" / image.name, folder / LABELS / "validation" / f"{image.stem}.tif"
        yield Task(write_pair, (image, label, *targets), targets)


def write_pair(image_path: Path, label_path: Path, image_target: Path, label_target: Path) -> None:
    """Reduces both to a short side of at most 512 pixels; the image becomes a JPEG with Pillow's default quality."""
    image, label = read_pixels(image_path), train_ids(read_pixels(label_path), label_path)
    if image.shape[:2] != label.shape:
        raise OvssError(f"{label_path} differs in size from {image_path}. Unpack the official archive again.")
    size = reduced(label.shape)
    if size != label.shape:
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)
    write_image(image_target, image)
    write_label(label_target, label)


def train_ids(colours: np.ndarray, path: Path) -> np.ndarray:
    """(H, W, 3) RGB -> (H, W) uint16: the label of class id 256 * floor(R / 10) + G; 65535 for ids outside the 847."""
    if colours.ndim != 3:
        raise OvssError(f"{path} has one channel, expected colours as in the full release (ADE20K_2021_17_01).")
    red, green = colours[..., 0].astype(np.int32), colours[..., 1]
    return TRAIN_IDS[red // 10 * 256 + green]


def reduced(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) reduced to a short side of at most 512."""
    return size if min(size) <= SHORT_SIDE else tuple(round(side / min(size) * SHORT_SIDE) for side in size)
