"""COCO-Stuff and COCO-Object from the pixel maps of COCO-Stuff.

164k: `annotations/val2017/<id>.png` (stuffthingmaps) holds the COCO category id minus one, 0 to 181, and 255 for unlabelled
pixels. 10k: `raw/annotations/<id>.mat`, field `S`, holds the category id, and 0 for unlabelled pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..conversion import CONVERTERS, Task, copied, files, labelled, words
from .values import matlab_numbers, numbers

# Without the categories that COCO never used, the 182 values are 80 things (values up to 90) and 91 kinds of stuff.
UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
STUFF = {value: value - sum(unused < value for unused in UNUSED) for value in range(182) if value not in UNUSED}
STUFF_164K = STUFF | {255: 255}
STUFF_10K = {value + 1: new + 1 for value, new in STUFF.items()} | {0: 0}
OBJECT = {value: new + 1 if value <= 90 else 0 for value, new in STUFF.items()} | {255: 0}


@CONVERTERS.register_module(name="coco_stuff")
def coco_stuff(folder: Path) -> Iterator[Task]:
    """Writes <id>_labelTrainIds.png next to the original: 171 classes and 255 (mmseg, coco_stuff164k.py)."""
    return _beside(folder, "_labelTrainIds.png", STUFF_164K)


@CONVERTERS.register_module(name="coco_object")
def coco_object(folder: Path) -> Iterator[Task]:
    """Writes <id>_instanceTrainIds.png next to the original: the 80 things, and 0 for stuff and unlabelled pixels, so that no
    pixel is ignored (SCLIP, cvt_coco_object.py; GroupViT). Labels drawn from COCO's instance polygons are different."""
    return _beside(folder, "_instanceTrainIds.png", OBJECT)


def _beside(folder: Path, suffix: str, codes: dict[int, int]) -> Iterator[Task]:
    labels, read = folder / "annotations/val2017", partial(numbers, codes=codes)
    for image in files(folder / "images/val2017", "*.jpg"):
        yield labelled(read, labels / f"{image.stem}.png", labels / f"{image.stem}{suffix}")


@CONVERTERS.register_module(name="coco_stuff10k")
def coco_stuff10k(folder: Path) -> Iterator[Task]:
    """Writes images/test2014 and annotations/test2014/<id>_labelTrainIds.png, with 0 for unlabelled pixels (mmseg,
    coco_stuff10k.py)."""
    read = partial(matlab_numbers, field="S", codes=STUFF_10K)
    for name in words(folder / "raw/imageLists/test.txt"):
        label = folder / f"annotations/test2014/{name}_labelTrainIds.png"
        yield copied(folder / f"raw/images/{name}.jpg", folder / f"images/test2014/{name}.jpg")
        yield labelled(read, folder / f"raw/annotations/{name}.mat", label)
