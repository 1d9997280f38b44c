"""Cityscapes: two zips with a folder per city; the labels as polygons, ids, and colours."""

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from .drawing import encoded, scene, write_zip

NAMES = {
    0: "unlabeled",
    3: "out of roi",
    7: "road",
    8: "sidewalk",
    9: "parking",
    11: "building",
    17: "pole",
    19: "traffic light",
}
NAMES |= {21: "vegetation", 23: "sky", 24: "person", 26: "cargroup", 30: "trailer", 31: "train", 33: "bicycle"}
LABELS = {
    "train/aachen/aachen_000000_000019": [7, 11, 23],
    "val/frankfurt/frankfurt_000000_000294": [7, 11, 23, 26, 3],
    "val/lindau/lindau_000001_000019": [8, 21, 24, 30, 33],
    "val/munster/munster_000002_000019": [0, 7, 31, 17, 19],
    "val/munster/munster_000003_000019": [9, 7, 26, 21, 33],
}


def write_cityscapes(root: Path) -> None:
    """Four images of val in three cities, one of train, which must not be taken."""
    images, labels = {"README": b"", "license.txt": b""}, {"README": b"", "license.txt": b""}
    for number, (path, ids) in enumerate(LABELS.items()):
        image, label = scene(120 + number, ids, (96, 192))
        annotation = polygons(label, ids)
        drawn = draw(annotation)
        images[f"leftImg8bit/{path}_leftImg8bit.png"] = encoded(image, "PNG")
        labels[f"gtFine/{path}_gtFine_polygons.json"] = json.dumps(annotation).encode()
        labels[f"gtFine/{path}_gtFine_labelIds.png"] = encoded(drawn, "PNG")
        labels[f"gtFine/{path}_gtFine_instanceIds.png"] = encoded(drawn.astype(np.uint16), "PNG")
        labels[f"gtFine/{path}_gtFine_color.png"] = encoded(np.stack([drawn * 7, drawn, drawn], -1), "PNG")
    write_zip(root / "leftImg8bit_trainvaltest.zip", images)
    write_zip(root / "gtFine_trainvaltest.zip", labels)


def polygons(label: np.ndarray, ids: list[int]) -> dict:
    """The annotation of a scene: its pieces from the ground up, a licence plate, and an object that was deleted."""
    height, width = label.shape
    objects = [{"label": NAMES[ids[0]], "polygon": [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]}]
    for value in ids[1:]:
        for outline in cv2.findContours(np.uint8(label == value), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
            if len(outline) > 2:
                objects.append({"label": NAMES[value], "polygon": outline[:, 0].tolist()})
    objects.append({"label": "license plate", "polygon": [[5, 5], [25, 5], [25, 15], [5, 15]]})
    objects.append({"label": "sky", "polygon": [[30, 5], [50, 5], [50, 15]], "deleted": 1})
    return {"imgHeight": height, "imgWidth": width, "objects": objects}


def draw(annotation: dict) -> np.ndarray:
    """(H, W) ids as cityscapesScripts draws them: the licence plate has a negative one, and is left out."""
    ids = {name: value for value, name in NAMES.items()}
    label = Image.new("L", (annotation["imgWidth"], annotation["imgHeight"]), 0)
    for item in annotation["objects"]:
        if item["label"] in ids and "deleted" not in item:
            ImageDraw.Draw(label).polygon([tuple(point) for point in item["polygon"]], fill=ids[item["label"]])
    return np.array(label)


MINIATURES = {"cityscapes": write_cityscapes}
