"""PASCAL VOC 2012: JPEG images, palette PNG labels with 255 outlines, and lists of ids; officially in one tar."""

from pathlib import Path

import numpy as np
from mmseg.datasets import PascalVOCDataset

from .drawing import encoded, scene, write_files, write_tar

PALETTE = [value for colour in PascalVOCDataset.METAINFO["palette"] for value in colour]
PALETTE += [0] * 3 * (255 - len(PALETTE) // 3) + [224, 224, 192]
BASE = "VOCdevkit/VOC2012"


def voc_files(images: int, seed: int) -> dict[str, bytes]:
    """Scenes of 90-120 x 100-150 pixels whose pieces stand for the 20 classes in turn (so ten images hold them all twice), and
    val.txt, which lists them."""
    rng, files = np.random.RandomState(seed), {}
    ids = [f"2007_{33 + 6 * number:06d}" for number in range(images)]
    for number, name in enumerate(ids):
        classes = [0, *((4 * number + i) % 20 + 1 for i in range(4))]
        image, label = scene(100 * seed + number, classes, (rng.randint(90, 121), rng.randint(100, 151)), outline=255)
        files[f"{BASE}/JPEGImages/{name}.jpg"] = encoded(image, "JPEG", quality=92)
        files[f"{BASE}/SegmentationClass/{name}.png"] = encode_label(label)
    return files | {f"{BASE}/ImageSets/Segmentation/val.txt": "".join(f"{name}\n" for name in ids).encode()}


def write_voc(root: str | Path, images: int = 4, seed: int = 0) -> list[str]:
    """The unpacked layout below `root`. Returns the ids."""
    files = voc_files(images, seed)
    write_files(Path(root), files)
    return files[f"{BASE}/ImageSets/Segmentation/val.txt"].decode().split()


def write_archive(root: Path) -> None:
    """The official tar, with images of train, too."""
    train = voc_files(1, 9)
    extra = {name.replace("2007_000033", "2007_000032"): content for name, content in train.items() if "ImageSets" not in name}
    extra[f"{BASE}/ImageSets/Segmentation/train.txt"] = b"2007_000032\n"
    write_tar(root / "VOCtrainval_11-May-2012.tar", voc_files(4, 0) | extra)


def encode_label(label: np.ndarray) -> bytes:
    """(H, W) as a palette PNG with VOC's colours."""
    return encoded(np.asarray(label, np.uint8), "PNG", PALETTE)


def write_label(path: str | Path, label: np.ndarray) -> None:
    Path(path).write_bytes(encode_label(label))


MINIATURES = {"voc21": write_archive, "voc20": write_archive}
