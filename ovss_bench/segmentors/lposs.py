"""LPOSS and LPOSS+ (CVPR 2025, arXiv 2503.19777): MaskCLIP's scores, propagated over the patches of all windows of an image and
over its pixels."""

from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..ops.compose import composed_maps
from ..ops.enlarge import resized_maps
from ..ops.graphs import cell_centres, patch_affinity, propagate_patches, propagate_pixels
from ..ops.scores import best_of_classes
from ..ops.windows import SlidingWindow
from ..types import ImageContext, WindowBatch
from .base import LastBlockSegmentor

PIXELS = ("pixel_refine", "tau", "r")  # the hyperparameters of LPOSS+


@SEGMENTORS.register_module(name="lposs")
class LPOSS(LastBlockSegmentor):
    """The value path of the last block gives the cosines Y of each patch. On a graph of the patches of all windows, with
    separate nodes for overlapping windows, (I - alpha S) Z = Y is solved by at most `cg_maxiter` steps of conjugate gradients,
    or to the relative residual `cg_tol`. The scores Z may be negative or exceed 1: they decide without a softmax.

    `vfm`: the encoder whose features join patches, by name, or any callable WindowBatch -> (B, C, H, W); `feature`: the output
    of a named encoder. Each patch has edges to its `k` nearest by the cosine of these features: max(cosine, 0)^`gamma`, times
    exp(-`sigma` distance^`pix_dist_pow`) in pixels of the resized image.

    `pixel_refine` (LPOSS+): a second propagation over the pixels of the resized image, between all that are at most `r` // 2
    rows and columns apart, by exp(-distance / `tau`) of their Lab colours.
    """

    requires = ("vfm",)
    positive = ("k", "tau", "r")

    vfm: str | None = None
    feature: Literal["tokens", "q", "k", "v", "q+k"] = "v"
    alpha: float = 0.95
    gamma: float = 3.0
    k: int = 400
    sigma: float = 0.01
    pix_dist_pow: float = 1.0
    cg_tol: float = 1e-6
    cg_maxiter: int = 10
    pixel_refine: bool = False
    tau: float = 0.01
    r: int = 13

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        return v

    @torch.inference_mode()
    def image_logits(self, batch: WindowBatch) -> Tensor:
        """Propagated scores (B, Q, h, w) on the grid of the encoder, computed once for LPOSS and LPOSS+."""
        (context,) = batch.contexts or ()
        values = (value for name, value in self.recipe.hyperparameters.items() if name not in PIXELS)
        key = type(self), self.vfm, self.text_bytes, *values
        if key not in batch.shared:
            batch.shared[key] = self.propagated(batch, context)
        return batch.shared[key]

    @cached_property
    def text_bytes(self) -> bytes:
        return self.text.float().numpy(force=True).tobytes()

    def propagated(self, batch: WindowBatch, context: ImageContext) -> Tensor:
        features, cosines = batch.once(self.vfm), super().patch_logits(batch)
        grid = (features.shape[2], features.shape[3])
        if cosines.shape[2:] != grid:
            cosines = F.interpolate(cosines, grid, mode="bilinear")
        affinity = self.once(self.affinity, features, context)
        scores = cosines.permute(0, 2, 3, 1).flatten(0, 2)
        scores = propagate_patches(scores, affinity, self.alpha, self.cg_maxiter, self.cg_tol)
        return scores.view(len(cosines), *grid, -1).permute(0, 3, 1, 2)

    def affinity(self, features: Tensor, context: ImageContext) -> Tensor:
        """S between all patches, for the features (B, C, h, w) of the windows of an image."""
        unit = F.normalize(features.float(), dim=1).permute(0, 2, 3, 1).flatten(0, 2)
        places = cell_centres(self.windows(context), features.shape[2:], like=unit)
        return patch_affinity(unit, places, self.k, self.gamma, self.sigma, self.pix_dist_pow)

    def windows(self, context: ImageContext) -> SlidingWindow:
        return SlidingWindow.by(self.recipe, *context.resized.shape[:2], self.clip.patch_size)

    @property
    def refines(self) -> bool:
        """Without synonyms and pixel refinement, all steps after the patches are linear."""
        return self.pixel_refine or self.has_synonyms

    @property
    def has_synonyms(self) -> bool:
        group = [c for c in self.vocabulary.group if c >= 0]
        return len(set(group)) < len(group)

    def refine(self, cosines: Tensor, context: ImageContext) -> Tensor:
        """Scores (Q, H, W), refined at the size of the resized image: propagated over pixels, then for each query the maximum
        over the synonyms of its class."""
        maps = self.at_resized(cosines, context)
        if self.pixel_refine:
            maps = propagate_pixels(maps, context.resized, self.tau, self.r, self.alpha, self.cg_maxiter, self.cg_tol)
        if self.has_synonyms:
            best = self.scores(maps, context)
            maps = torch.stack([maps[q] if c < 0 else best[c] for q, c in enumerate(self.vocabulary.group)])
        return resized_maps(maps, context.size)

    def at_resized(self, cosines: Tensor, context: ImageContext) -> Tensor:
        """The patch scores composed at the size of the resized image; with PAMR, the `cosines`, which it has changed, resized
        to it."""
        size = context.resized.shape[:2]
        if self.recipe.pamr_steps:
            return resized_maps(cosines, size)
        return composed_maps(context.by_products["logits"], self.windows(context), size, contiguous=not self.pixel_refine)

    def scores(self, cosines: Tensor, context: ImageContext) -> Tensor:
        """Scores (Q, ...) -> the best of each class (C, ...), -infinity without queries."""
        return best_of_classes(cosines, self.vocabulary, -torch.inf)

    def decide(self, planes: Tensor, context: ImageContext) -> Tensor:
        return planes.argmax(0)
