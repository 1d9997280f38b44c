"""COCO 2014, where an image and its label have different names."""

from __future__ import annotations

from functools import cached_property

from ..config.registry import DATASETS
from .base import Sample, SegDataset


@DATASETS.register_module(name="coco_2014")
class Coco2014(SegDataset):
    """Image COCO_val2014_<12 digits>.jpg, label <12 digits>.png. The id list may use either form, or plain numbers."""

    @cached_property
    def listed(self) -> list[Sample]:
        """All images in the order of the list."""
        samples = []
        for line, name in self._listed_ids():
            number = name.rpartition("/")[2].rpartition("_")[2].zfill(12)
            image = f"COCO_val2014_{number}"
            image_path = self.root / self.config["images"] / f"{image}{self.config['image_suffix']}"
            label_path = self.root / self.config["labels"] / f"{number}{self.config['label_suffix']}"
            samples.append(Sample(image, image_path, label_path, line))
        return samples
