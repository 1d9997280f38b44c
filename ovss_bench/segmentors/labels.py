"""Label maps in files, written by any external program (docs/outside.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..auxiliary.label_maps import LabelMaps
from ..config.registry import SEGMENTORS
from ..datasets.base import SegDataset
from ..datasets.lists import Sample
from ..errors import OvssError
from ..progress import Progress
from ..types import ImageContext
from .base import Segmentor


class LabelMapSegmentor(Segmentor):
    """Takes the label map of each image from `maps`, which `begin` sets."""

    uses_clip = False
    outside = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.maps: LabelMaps | None = None

    def accepted_names(self) -> list[set[str]]:
        """For each class, its name and those of its queries."""
        vocabulary = self.vocabulary
        names = [{name} for name in vocabulary.classes]
        for query, c in zip(vocabulary.queries, vocabulary.group, strict=True):
            if c >= 0:
                names[c].add(query)
        return names

    def image_scores(self, context: ImageContext) -> Tensor:
        """The class indices, as a single plane (1, H, W)."""
        if self.maps is None:
            hint = "Use ob.evaluate or `ovss eval`."
            raise OvssError(f"{self.recipe.segmentor} finds label maps by the images of a data set. {hint}")
        return self.tensor(self.maps.read(context.id, context.original.shape[:2])).float()[None]

    def decide(self, scores: Tensor, context: ImageContext) -> Tensor:
        return scores[0].long()


@SEGMENTORS.register_module(name="labels")
class Labels(LabelMapSegmentor):
    """Label maps in the folder `path`, or in a JSON file of run-length encodings. `label_offset` is added to the stored values;
    `allow_missing` gives no class to images without a map; `resize_maps` resizes maps of another size than their image, by
    nearest neighbour."""

    requires = ("path",)
    path: Path | None = None
    label_offset: int | None = None
    allow_missing: bool = False
    resize_maps: bool = False

    def begin(self, dataset: SegDataset, samples: Sequence[Sample], progress: Progress) -> None:
        """Raises OvssError for everything that is wrong with the maps of these images."""
        assert self.path is not None  # it is required
        options = self.label_offset, self.allow_missing, self.resize_maps
        self.maps = LabelMaps(self.path, dataset, self.accepted_names(), *options)
        self.maps.check(samples)
