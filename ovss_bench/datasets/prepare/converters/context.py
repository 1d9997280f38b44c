"""PASCAL Context from the label maps of the 459-class release: `raw/trainval/<id>.mat`, field `LabelMap`, values 1 to 459."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ..conversion import CONVERTERS, Task, labelled, words, write_lines
from .values import matlab_numbers

# Background (0) and the 59 classes as ids of the full label set, in the order of their new labels (mmseg, pascal_context.py).
CONTEXT_60 = (
    *(0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159, 162),
    *(187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416),
    *(420, 424, 427, 440, 445, 454, 458),
)
# Papers evaluate all 5105 validation images of VOC 2010 except this one: mmseg's converter writes 5104 images of val and 4996
# of train (mmsegmentation issue 394, PyTorch-Encoding issue 155), and the lists of CAT-Seg and CLIPer have the same 5104.
LEFT_OUT = "2010_001606"
TO_60 = dict.fromkeys(range(460), 0) | {value: new for new, value in enumerate(CONTEXT_60)}
TO_459 = {value: value - 1 for value in range(1, 460)} | {0: 65535}


@CONVERTERS.register_module(name="context60")
def context60(folder: Path) -> Iterator[Task]:
    """Writes SegmentationClassContext/<id>.png: the position in `CONTEXT_60`, and background for the other 400 classes.

    mmseg instead makes its maps from trainval_merged.json, with the package `detail`. The ids are the same, but whether that
    file merges some of the other 400 classes into the 59 has not been verified. Existing maps from mmseg's converter are kept.
    """
    return _tasks(folder, "SegmentationClassContext", ".png", TO_60)


@CONVERTERS.register_module(name="context459")
def context459(folder: Path) -> Iterator[Task]:
    """Writes annotations_detectron2/pc459_val/<id>.tif: the value minus one in 16 bits, and 65535 for unlabelled pixels, as in
    CAT-Seg and MESS's prepare_pascal_context_459.py. MESS skips images without a map; here a missing map is an error."""
    return _tasks(folder, "annotations_detectron2/pc459_val", ".tif", TO_459, np.uint16)


def _tasks(folder: Path, labels: str, suffix: str, codes: dict[int, int], dtype: type = np.uint8) -> Iterator[Task]:
    ids, listed = _ids(folder), folder / "ImageSets/SegmentationContext/val.txt"
    yield Task(write_lines, (listed, sorted(ids)), (listed,))
    read = partial(matlab_numbers, field="LabelMap", codes=codes, dtype=dtype)
    for name in ids:
        yield labelled(read, folder / "raw/trainval" / f"{name}.mat", folder / labels / f"{name}{suffix}")


def _ids(folder: Path) -> list[str]:
    """The validation images: those of VOC 2010's main task except `LEFT_OUT`, or the user's list."""
    listed = folder / "raw/pascalcontext_val.txt"
    if listed.is_file():
        return words(listed)
    return [name for name in words(folder / "ImageSets/Main/val.txt") if name != LEFT_OUT]
