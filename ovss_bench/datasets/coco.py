"""COCO 2014, in which images and labels have different names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..registry import DATASETS
from .base import SegDataset


@DATASETS.register_module(name="coco_2014")
class Coco2014(SegDataset):
    """Image COCO_val2014_<12 digits>.jpg, label <12 digits>.png; the list of ids may have either form, or just numbers."""

    def _open(self) -> Any:
        opened = super()._open()
        images, labels = self.root / self.config["images"], self.root / self.config["labels"]
        for info in opened.data_list:
            number = Path(info["img_path"]).stem.rpartition("_")[2].zfill(12)
            info["img_path"] = str(images / f"COCO_val2014_{number}{self.config['image_suffix']}")
            info["seg_map_path"] = str(labels / f"{number}{self.config['label_suffix']}")
        return opened
