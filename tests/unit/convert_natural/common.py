"""Helpers of the tests of natural-image data sets."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import Cityscapes

from miniatures import MINIATURES
from miniatures.context import matlab
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.layout import prepared_folder
from ovss_bench.datasets.prepare.conversion import CONVERTERS
from ovss_bench.datasets.prepare.run import prepare

CONVERTED = ["context60", "context459", "coco_stuff", "coco_object", "coco_stuff10k", "ade847", "cityscapes"]


def make(name, root):
    """The miniature, prepared, and its folder."""
    MINIATURES[name](root)
    prepare(name, root, quiet=True, workers=1)
    return prepared_folder(dataset_config(name)[1], root)


def outputs(name, folder):
    return [
        target for task in CONVERTERS.get(dataset_config(name)[1]["prepare"]["converter"])(folder) for target in task.targets
    ]


def naive(label, table):
    return np.array([[table[int(value)] for value in row] for row in label])


def stored(path):
    """What a label file holds, its values and its mode."""
    with Image.open(path) as image:
        return np.array(image), image.mode


def archived(path, name):
    with zipfile.ZipFile(path) as file:
        return np.array(Image.open(io.BytesIO(file.read(name))))


def matlab_in(data, field):
    from scipy.io import loadmat

    return loadmat(io.BytesIO(data))[field]


def context_maps(root):
    with tarfile.open(root / "trainval.tar.gz") as file:
        names = [name for name in file.getnames() if "2008_000002" not in name]
        return {Path(name).stem: matlab_in(file.extractfile(name).read(), "LabelMap") for name in names}


ADE = {2978: 0, 312: 1, 2420: 2, 2855: 3, 976: 5, 447: 6, 165: 7, 1831: 11, 1857: 255, 3148: 846, 1: 65535, 600: 65535}


CITYSCAPES = {entry.id: entry.train_id for entry in Cityscapes.classes}


# Where a label comes from, and values that it must not hold.
RAW = {
    "context60": ("raw/trainval/2008_000009.mat", [460, 255 + 256]),
    "context459": ("raw/trainval/2008_000009.mat", [460, 65535]),
    "coco_stuff": ("annotations/val2017/000000000285.png", [11, 90, 182, 254]),
    "coco_object": ("annotations/val2017/000000000285.png", [11, 90, 182, 254]),
    "coco_stuff10k": ("raw/annotations/COCO_train2014_000000000177.mat", [12, 91, 183, 255]),
    "cityscapes": ("gtFine/val/lindau/lindau_000001_000019_gtFine_labelIds.png", [34, 254]),
    "ade847": ("images/ADE/validation/home_or_hotel/bedroom/ADE_val_00000002_seg.png", []),
}


LABEL = {
    "context60": "SegmentationClassContext/2008_000009.png",
    "context459": "annotations_detectron2/pc459_val/2008_000009.tif",
    "coco_stuff": "annotations/val2017/000000000285_labelTrainIds.png",
    "coco_object": "annotations/val2017/000000000285_instanceTrainIds.png",
    "coco_stuff10k": "annotations/test2014/COCO_train2014_000000000177_labelTrainIds.png",
    "cityscapes": "gtFine/val/lindau/lindau_000001_000019_gtFine_labelTrainIds.png",
    "ade847": "annotations_detectron2/validation/ADE_val_00000002.tif",
}


def write_raw(path, label):
    if path.suffix == ".mat":
        path.write_bytes(matlab(**{"S" if "COCO" in path.name else "LabelMap": label}))
    else:
        Image.fromarray(label.astype(np.uint8)).save(path)
