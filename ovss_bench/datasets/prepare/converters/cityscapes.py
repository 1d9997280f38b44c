"""Cityscapes: the 19 evaluated classes from the 34 annotated ids (cityscapesScripts, json2labelImg.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ....errors import OvssError, reading
from ..conversion import CONVERTERS, UNPACK, Task, files, labelled
from .values import numbers

IDS = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road", "sidewalk"),
    *("parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole", "polegroup"),
    *("traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "caravan"),
    *("trailer", "train", "motorcycle", "bicycle"),
)
NOT_DRAWN = "license plate"  # id -1
EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# 255 is -1 in 8 bits.
TRAIN_IDS = dict.fromkeys([*range(len(IDS)), 255], 255) | {value: new for new, value in enumerate(EVALUATED)}


@CONVERTERS.register_module(name="cityscapes")
def cityscapes(folder: Path) -> Iterator[Task]:
    """Writes <id>_gtFine_labelTrainIds.png from <id>_gtFine_labelIds.png next to it, or from <id>_gtFine_polygons.json."""
    from_ids = partial(numbers, codes=TRAIN_IDS)
    for image in files(folder / "leftImg8bit/val", "*/*_leftImg8bit.png"):
        stem = folder / "gtFine/val" / image.parent.name / image.name.replace("_leftImg8bit.png", "_gtFine")
        maps, polygons, target = (Path(f"{stem}_{end}") for end in ("labelIds.png", "polygons.json", "labelTrainIds.png"))
        read, source = (from_ids, maps) if maps.exists() or not polygons.exists() else (from_polygons, polygons)
        yield labelled(read, source, target)


def from_polygons(source: Path) -> np.ndarray:
    """Draws the objects in file order, later ones on top."""
    with reading(f"polygon file {source}", UNPACK):
        annotation = json.loads(source.read_text("utf-8"))
        label = Image.new("L", (annotation["imgWidth"], annotation["imgHeight"]), 255)
        drawer = ImageDraw.Draw(label)
        for item in annotation["objects"]:
            if item["label"] != NOT_DRAWN and not item.get("deleted"):
                drawer.polygon([tuple(point) for point in item["polygon"]], fill=TRAIN_IDS[_id(item["label"], source)])
    return np.array(label)


def _id(name: str, path: Path) -> int:
    """The id of a class name; a group of objects (`cargroup`) has the id of a single object."""
    if name not in IDS:
        name = name.removesuffix("group")
    if name not in IDS:
        raise OvssError(f"{path} has an object '{name}', which is not a class of Cityscapes. {UNPACK}")
    return IDS.index(name)
