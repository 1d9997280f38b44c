"""A miniature PASCAL VOC in the official layout: JPEG images, palette PNG labels with 255 outlines, ImageSets."""

from pathlib import Path

import numpy as np
from mmseg.datasets import PascalVOCDataset
from PIL import Image

from ovss_bench.datasets.scenes import DEMO_CLOTHS, GROUNDS, draw_scene, void_border

VOC_PALETTE = [value for colour in PascalVOCDataset.METAINFO["palette"] for value in colour]


def write_voc(root: str | Path, images: int = 4, seed: int = 0) -> list[str]:
    """Writes VOCdevkit/VOC2012 below `root`: scenes of 90-120 x 100-150 pixels whose pieces stand for the 20 classes in turn
    (so ten images hold them all twice). Returns the ids."""
    rng = np.random.RandomState(seed)
    folder = Path(root) / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    ids = [f"2007_{33 + 6 * number:06d}" for number in range(images)]
    for number, name in enumerate(ids):
        classes = [(4 * number + i) % 20 + 1 for i in range(4)]
        height, width = rng.randint(90, 121), rng.randint(100, 151)
        cloths = [DEMO_CLOTHS[c] for c in classes]
        image, index = draw_scene(rng, height, width, cloths, number % len(GROUNDS), radius=(16, 30))
        label = np.array([0, *classes], np.uint8)[index]
        label[void_border(index)] = 255
        Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.jpg", quality=92)
        write_label(folder / "SegmentationClass" / f"{name}.png", label)
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("".join(f"{name}\n" for name in ids))
    return ids


def write_label(path: str | Path, label: np.ndarray) -> None:
    """(H, W) uint8 as a palette PNG with VOC's colours."""
    image = Image.fromarray(np.asarray(label, np.uint8)).convert("L")
    image.putpalette(VOC_PALETTE + [0] * 3 * (255 - len(VOC_PALETTE) // 3) + [224, 224, 192])
    image.save(path)
