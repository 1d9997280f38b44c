"""CLIP-DIY (Wysoczanska et al., WACV 2024, arXiv 2309.14289): CLIP classifies patches of several sizes as if each were an
image."""

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..errors import OvssError
from ..ops.scores import Decision, by_class
from ..types import ImageContext
from .base import Segmentor


@SEGMENTORS.register_module(name="clip_diy")
class CLIPDIY(Segmentor):
    """Cosines of overlapping square patches, averaged over the patch sizes (section 3.2), times the objectness of each pixel
    (section 3.3).

    `patch_sizes`: sides in pixels of the resized image, capped at its short side; `weights`: one for each. The stride is the
    size divided by `stride_divisor`. `foreground` gives the objectness. Without it, or without a background class (a case that
    the paper leaves open), the cosines alone decide.
    """

    patch_sizes: tuple[int, ...] = (256, 128, 64)
    stride_divisor: int = 2
    weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    foreground: str | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if len(self.weights) != len(self.patch_sizes):
            raise OvssError(f"weights={self.weights}: give one for each of patch_sizes={self.patch_sizes}.")
        if not 1 <= self.stride_divisor <= min(self.patch_sizes):
            raise OvssError(
                f"stride_divisor={self.stride_divisor}, patch_sizes={self.patch_sizes}: a size divided by the divisor is a "
                "step in pixels, so both must be positive and no size below the divisor."
            )

    @torch.inference_mode()
    def image_scores(self, context: ImageContext) -> Tensor:
        """Softmax over the queries (Q, h, w) at the size of the resized image. There is no logit scale."""
        shape = context.resized.shape[:2]
        weighted = zip(self.weights, self.patch_cosines(context), strict=True)
        maps = sum(weight * F.interpolate(cosines[None], shape, mode="bilinear")[0] for weight, cosines in weighted)
        maps /= len(self.weights)
        background = self.vocabulary.background
        if self.foreground is not None and background is not None:
            objects = self.tensor(context.once(self.foreground)).float()[None, None]
            objects = F.interpolate(objects, shape, mode="bilinear")[0, 0]
            for query, c in enumerate(self.vocabulary.group):
                maps[query] *= 1 - objects if c == background else objects
        return maps.softmax(0)

    def decide(self, scores: Tensor, context: ImageContext) -> Tensor:
        order = by_class(self.vocabulary, like=scores)[1]
        return Decision(self.vocabulary).from_cosines([scores[order].movedim(0, -1)])

    def patch_cosines(self, context: ImageContext) -> list[Tensor]:
        """For each size the cosines (Q, rows, columns) of its patches with the queries."""
        image, grids, patches = context.resized, [], []
        for size in self.patch_sizes:
            size = min(size, *image.shape[:2])
            rows, columns = (range(0, side - size + 1, size // self.stride_divisor) for side in image.shape[:2])
            grids.append((len(rows), len(columns)))
            patches += [image[y : y + size, x : x + size] for y, x in product(rows, columns)]
        maker = repr((*self.embed_key, self.patch_sizes, self.stride_divisor, self.recipe.resize, image.shape))
        embeddings = context.cached(maker, lambda: self.embed(patches).numpy(force=True))
        parts = (self.text @ self.tensor(embeddings).T).split([rows * columns for rows, columns in grids], 1)
        return [part.unflatten(1, grid) for part, grid in zip(parts, grids, strict=True)]
