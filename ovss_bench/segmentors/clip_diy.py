"""CLIP-DIY (Wysoczanska et al., WACV 2024, arXiv 2309.14289): CLIP classifies patches of several sizes as if each were an
image."""

from itertools import product

import torch
from torch import Tensor

from ..config.recipe import Recipe
from ..config.registry import SEGMENTORS
from ..errors import OvssError
from ..ops.enlarge import resized_maps
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

    @classmethod
    def check(cls, recipe: Recipe, has_background: bool) -> None:
        super().check(recipe, has_background)
        weights, sides, divisor = (recipe.hyperparameters[name] for name in ("weights", "patch_sizes", "stride_divisor"))
        if len(weights) != len(sides):
            raise OvssError(f"weights={weights}: give one for each of patch_sizes={sides}.")
        if not 1 <= divisor <= min(sides):
            raise OvssError(
                f"stride_divisor={divisor}, patch_sizes={sides}: the stride is a size divided by stride_divisor, so "
                "stride_divisor must be at least 1 and at most the smallest size."
            )

    @torch.inference_mode()
    def image_scores(self, context: ImageContext) -> Tensor:
        """Softmax over the queries (Q, h, w) at the size of the resized image. There is no logit scale."""
        return self.image_cosines(context)[0].softmax(0)

    def image_cosines(self, context: ImageContext) -> Tensor:
        """Cosines (1, Q, h, w) at the size of the resized image, averaged over the patch sizes, times the objectness."""
        shape = context.resized.shape[:2]
        weighted = zip(self.weights, self.patch_cosines(context), strict=True)
        maps = sum(weight * resized_maps(cosines, shape) for weight, cosines in weighted)
        maps /= len(self.weights)
        background = self.vocabulary.background
        if self.foreground is not None and background is not None:
            (objects,) = resized_maps(self.tensor(context.once(self.foreground)).float()[None], shape)
            for query, c in enumerate(self.vocabulary.group):
                maps[query] *= 1 - objects if c == background else objects
        return maps[None]

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
        embeddings = self.once(context.cached, maker, lambda: self.embed(patches).numpy(force=True))
        parts = (self.text @ self.tensor(embeddings).T).split([rows * columns for rows, columns in grids], 1)
        return [part.unflatten(1, grid) for part, grid in zip(parts, grids, strict=True)]
