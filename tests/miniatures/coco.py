"""COCO: images of val2017 with COCO-Stuff's pixel maps, COCO-Stuff 10k with MATLAB label maps, and CLIPer's masks of 2014."""

from pathlib import Path

import numpy as np

from .context import matlab
from .drawing import encoded, scene, write_files, write_zip

# Category ids less one: things up to 89, stuff from 91 on, 255 unlabelled.
PIXELS = {
    "000000000139": [255, 0, 2, 91, 10, 181],
    "000000000285": [105, 12, 21, 255, 89, 27],
    "000000000632": [181, 43, 45, 64, 66, 92],
    "000000000724": [0, 69, 71, 81, 255, 118],
}
TRAIN = "000000000009"


def write_coco(root: Path) -> None:
    """Four images of val; the archive of the labels also holds train, which must not be taken."""
    images, labels = {"val2017/": b""}, {}
    for number, (name, values) in enumerate({TRAIN: [0, 91, 4], **PIXELS}.items()):
        image, label = scene(60 + number, values, (96, 112 + number))
        split = "train2017" if name == TRAIN else "val2017"
        if split == "val2017":
            images[f"val2017/{name}.jpg"] = encoded(image, "JPEG", quality=92)
        labels[f"{split}/{name}.png"] = encoded(label.astype(np.uint8), "PNG")
    write_zip(root / "val2017.zip", images)
    write_zip(root / "stuffthingmaps_trainval2017.zip", labels)


def write_coco10k(root: Path) -> None:
    """Three images of test, one of train. Labels are category ids, 0 unlabelled; the images are all of COCO's train2014."""
    files, test = {}, []
    for number, values in enumerate([[0, 1, 92], [0, 1, 3, 92, 11, 182], [106, 13, 22, 0, 90], [182, 44, 0, 46, 65, 67]]):
        name = f"COCO_train2014_{77 + 100 * number:012d}"
        image, label = scene(80 + number, values, (96, 112 + number))
        files[f"images/{name}.jpg"] = encoded(image, "JPEG", quality=92)
        files[f"annotations/{name}.mat"] = matlab(S=label.astype(np.uint8), names=np.array(["unlabeled", "person"], object))
        test += [name] * (number > 0)
    files["imageLists/test.txt"] = "".join(f"{name}\n" for name in test).encode()
    files["imageLists/train.txt"] = b"COCO_train2014_000000000077\n"
    write_zip(root / "cocostuff-10k-v1.1.zip", files)


def write_coco2014(root: Path) -> None:
    """Three images of CLIPer's list, and one of val2014 that is not on it."""
    images, labels, listed = {}, {"coco_seg_anno/000000000009.png": encoded(np.zeros((9, 9), np.uint8), "PNG")}, []
    for number, values in enumerate([[0, 1, 2], [0, 1, 80, 33], [7, 0, 40, 79, 12], [0, 25, 56, 63, 1]]):
        name = f"{42 + 31 * number:012d}"
        image, label = scene(90 + number, values, (96, 112 + number))
        images[f"val2014/COCO_val2014_{name}.jpg"] = encoded(image, "JPEG", quality=92)
        labels[f"coco_seg_anno/{name}.png"] = encoded(label.astype(np.uint8), "PNG")
        listed += [f"COCO_val2014_{name}\n"] * (number > 0)
    write_zip(root / "val2014.zip", images)
    write_files(root / "COCO2014", {**labels, "val_5k.txt": "".join(listed).encode()})


MINIATURES = {
    "coco_stuff": write_coco,
    "coco_object": write_coco,
    "coco_stuff10k": write_coco10k,
    "coco_object_2014": write_coco2014,
}
