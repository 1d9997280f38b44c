"""Base class of the methods on a concept segmenter: windows, class maps, decision.

Shapes: C classes, (H, W) original image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..config.recipe import Recipe
from ..errors import OvssError
from ..ops.concept_maps import BestTwo
from ..ops.windows import axis
from ..types import ImageContext
from .base import NO_BACKGROUND
from .prompt_maps import PromptMaps


class ConceptSegmentor(PromptMaps):
    """The map of a class is the maximum over its queries. Pixels whose best class has a value below `prob_thd` become
    background.

    `slide_crop`: the side of windows every `slide_stride` pixels, for images with a longer side; 0: none. `mirror`: maps are
    averaged with those of the mirrored image.
    """

    slide_crop: int = 0
    slide_stride: int = 512
    mirror: bool = False

    @classmethod
    def check(cls, recipe: Recipe, has_background: bool) -> None:
        super().check(recipe, has_background)
        threshold, crop, stride = (recipe.hyperparameters[name] for name in ("prob_thd", "slide_crop", "slide_stride"))
        if threshold > 0 and not has_background:
            raise OvssError(f"prob_thd={threshold}, {NO_BACKGROUND}")
        if crop < 0 or stride < 1 or 0 < crop < stride:
            expected = "expected slide_stride above 0, and slide_crop of at least that, or 0 for no windows"
            raise OvssError(f"slide_crop={crop}, slide_stride={stride} of {recipe.segmentor}: {expected}.")

    @torch.inference_mode()
    def image_scores(self, context: ImageContext) -> Tensor:
        """Class maps (C, H, W). If `combine` is "paint", a query covers all classes before it."""
        size = context.original.shape[:2]
        planes = self.tensor(context.pixels).new_zeros(len(self.vocabulary.classes), *size)
        best = planes.new_zeros(size)
        for c, plane in self.query_maps(context, best):
            if self.combine == "paint":
                planes *= plane <= 0.5
            torch.maximum(planes[c], plane, out=planes[c])
            torch.maximum(best, plane, out=best)
        return planes

    @torch.inference_mode()
    def image_labels(self, context: ImageContext) -> tuple[Tensor, Tensor] | None:
        """Holds only the best two classes of each pixel so far."""
        if not self.decides_as(ConceptSegmentor):
            return None
        leading = BestTwo(context.original.shape[:2], like=self.tensor(context.pixels))
        for c, plane in self.query_maps(context, leading.best):
            if self.combine == "paint":
                leading.cover(plane > 0.5)
            leading.add(c, plane)
        return self.with_background(leading.labels, leading.best, leading.second), leading.best

    def query_maps(self, context: ImageContext, best: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The class and the map (H, W) of each query. `best`: the maximum of the maps so far, which the caller updates."""
        image = context.original
        views = self.views(*image.shape[:2])
        several = len(views) > 1
        maps = self.mean_maps(image, views) if several else self.prompt_maps(image, lambda: float(best.amin()), context.shared)
        return ((self.vocabulary.group[query], plane) for query, plane in maps)

    def mean_maps(self, image: np.ndarray, views: Sequence[tuple[slice, slice, bool]]) -> Iterator[tuple[int, Tensor]]:
        """The queries of `rows` and the means of their maps (H, W) over the views."""
        total: dict[int, Tensor] = {}
        count = np.zeros(image.shape[:2], np.float32)  # views of each pixel
        for rows, columns, mirrored in views:
            view = image[rows, columns]
            for query, plane in self.prompt_maps(view[:, ::-1] if mirrored else view):
                whole = total.setdefault(query, plane.new_zeros(image.shape[:2]))
                whole[rows, columns] += plane.flip(-1) if mirrored else plane
            count[rows, columns] += 1
        yield from ((query, total[query] / self.tensor(count)) for query in sorted(total))

    def decide(self, scores: Tensor, context: ImageContext) -> Tensor:
        best, labels = scores.max(0)
        two = len(scores) > 1 and not self.best_decides
        return self.with_background(labels, best, scores.topk(2, 0).values[1] if two else torch.zeros_like(best))

    def with_background(self, labels: Tensor, best: Tensor, second: Tensor) -> Tensor:
        """Labels (H, W) in which the uncertain pixels are background."""
        if self.prob_thd > 0:
            assert self.vocabulary.background is not None  # checked with prob_thd
            labels[self.uncertain(best, second)] = self.vocabulary.background
        return labels

    def uncertain(self, best: Tensor, second: Tensor) -> Tensor:
        """The pixels (H, W) bool that become background, by the values of their best two classes."""
        return best < self.prob_thd

    def views(self, height: int, width: int) -> list[tuple[slice, slice, bool]]:
        """Rows and columns of each window, row by row, and whether it is mirrored."""
        crop = self.slide_crop if 0 < self.slide_crop < max(height, width) else None
        sides = (axis(side, crop, self.slide_stride, 1, "none") for side in (height, width))
        rows, columns = ([slice(start, start + side.size) for start in side.starts] for side in sides)
        mirrored = (False, True) if self.mirror else (False,)
        return [(y, x, flag) for y in rows for x in columns for flag in mirrored]
