"""PASCAL Context: VOC 2010 in a tar, and a tar.gz of MATLAB label maps with the ids 1 to 459 of the full label set."""

import io
from pathlib import Path

import numpy as np
from scipy.io import savemat

from .drawing import encoded, scene, write_tar

# Ids of the full label set: some of the 59 classes, others that count as background there, `monkey` (256) and `unknown` (431).
IDS = {
    "2008_000003": [220, 2, 258, 1, 415, 9],
    "2008_000009": [360, 18, 256, 458, 22, 300],
    "2009_000012": [431, 259, 459, 23, 284, 65],
    "2010_000018": [1, 113, 144, 355, 424, 207],
}
TRAIN = "2008_000002"


def write_context(root: Path) -> None:
    """Four images of val, one of train, which must not be taken."""
    base = "VOCdevkit/VOC2010"
    images = {
        f"{base}/ImageSets/Main/val.txt": "".join(f"{name}\n" for name in IDS).encode(),
        f"{base}/ImageSets/Main/train.txt": f"{TRAIN}\n".encode(),
        f"{base}/ImageSets/Main/sheep_val.txt": "".join(f"{name} -1\n" for name in IDS).encode(),
    }
    labels = {}
    for number, (name, ids) in enumerate({TRAIN: [220, 2, 9], **IDS}.items()):
        image, label = scene(40 + number, ids, (96, 120 + number))
        images[f"{base}/JPEGImages/{name}.jpg"] = encoded(image, "JPEG", quality=92)
        labels[f"trainval/{name}.mat"] = matlab(LabelMap=label.astype(np.uint16))
    write_tar(root / "VOCtrainval_03-May-2010.tar", images)
    write_tar(root / "trainval.tar.gz", labels, "w:gz")


def matlab(**fields: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, fields, do_compression=True)
    return buffer.getvalue()


MINIATURES = dict.fromkeys(("context60", "context59", "context459"), write_context)
