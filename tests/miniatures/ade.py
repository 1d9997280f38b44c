"""ADE20K: the scene parsing challenge in a zip, and the full release, whose colours hold the classes, as it is unpacked."""

from pathlib import Path

import numpy as np

from .drawing import encoded, scene, write_files, write_zip

# Class ids of the full release; 1857 is class 255 of the 847 (pier), 3148 their last, and 1 and 600 are not among them.
FULL = {
    "urban/street/ADE_val_00000001": [2978, 312, 2420, 1, 1831],
    "home_or_hotel/bedroom/ADE_val_00000002": [976, 165, 447, 600, 1831],
    "nature_landscape/coast/ADE_val_00000003": [2420, 1857, 3148, 2855, 1],
}


def write_ade(root: Path) -> None:
    """Three images of validation, one of training, which must not be taken. 0 is `other`."""
    files = {"ADEChallengeData2016/objectInfo150.txt": b"Idx\tRatio\tTrain\tVal\tStuff\tName\n"}
    for number, values in enumerate([[1, 2, 3], [0, 1, 150, 13], [3, 22, 0, 61, 127], [5, 0, 90, 149, 8]]):
        name = f"validation/ADE_val_{number:08d}" if number else "training/ADE_train_00000001"
        image, label = scene(100 + number, values, (96, 112 + number))
        files[f"ADEChallengeData2016/images/{name}.jpg"] = encoded(image, "JPEG", quality=92)
        files[f"ADEChallengeData2016/annotations/{name}.png"] = encoded(label.astype(np.uint8), "PNG")
    write_zip(root / "ADEChallengeData2016.zip", files)


def write_ade_full(root: Path) -> None:
    """Three images of validation in folders of scenes, with parts and instances; one of training."""
    files = {}
    train = {"urban/street/ADE_train_00016869": [2978, 312, 1]}
    for number, (path, values) in enumerate({**FULL, **train}.items()):
        split, name = "training" if path in train else "validation", path.rsplit("/", 1)[1]
        image, label = scene(110 + number, values, (96, 112 + number))
        base = f"images/ADE/{split}/{path}"
        colours = encoded(full_colours(label), "PNG")
        files |= {f"{base}.jpg": encoded(image, "JPEG", quality=95), f"{base}_seg.png": colours, f"{base}_parts_1.png": colours}
        files |= {
            f"{base}.json": b"{}",
            f"{base}/instance_000_{name}.png": encoded(np.uint8(255 * (label == values[1])), "PNG"),
        }
    write_files(root / "ADE20K_2021_17_01", files)


def full_colours(ids: np.ndarray) -> np.ndarray:
    """(H, W) class ids -> (H, W, 3) RGB: floor(R / 10) * 256 + G is the class, B the instance."""
    return np.stack([ids // 256 * 10, ids % 256, (ids * 37) % 256], -1).astype(np.uint8)


MINIATURES = {"ade20k": write_ade, "ade847": write_ade_full}
