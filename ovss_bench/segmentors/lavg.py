"""LaVG, lazy visual grounding (Kang and Cho, ECCV 2024, arXiv 2408.04961): objects are cut out first, by repeated normalised
cuts, and then named by SCLIP's features."""

from collections.abc import Iterable
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..config.recipe import Recipe
from ..config.registry import SEGMENTORS
from ..errors import OvssError
from ..image import normalize
from ..ops.crf import dense_crf
from ..ops.enlarge import resized_maps
from ..ops.nearest import torch_nearest
from ..ops.pictures import cleaned, masks_at, stretch
from ..ops.spectral import repeated_cuts
from ..types import ImageContext, WindowBatch
from .features import cut, pictures
from .sclip import SCLIP


@SEGMENTORS.register_module(name="lavg")
class LaVG(SCLIP):
    """Each mask of an image gets the mean logits of its pixels in the window; where masks overlap, the first counts. The pixels
    outside all masks form the last mask.

    The masks are at most `cuts` normalised cuts of the keys of `vfm`, by name or any callable WindowBatch -> (B, C, H, W), on
    the image stretched to a square of `cut_side` pixels; `tau` is the cosine above which two tokens are connected. A dense
    CRF (`crf`) follows, and holes are filled; a mask that loses half of itself is dropped. `regions` replaces the cuts: a
    name, a folder of region files, or any callable image -> (H, W) ids, where the smallest means no mask, or masks (n, H, W)
    in the order in which they count.

    `clear_background`: inside the last mask, the classes other than the background get the smallest logit of the window
    (VOC21 only).
    """

    positive = ("cuts", "cut_side")

    vfm: str | None = None
    feature: Literal["tokens", "q", "k", "v", "q+k"] = "k"
    regions: str | None = None
    cuts: int = 8
    tau: float = 0.3
    cut_side: int = 640
    crf: bool = True
    clear_background: bool = False

    @classmethod
    def check(cls, recipe: Recipe, has_background: bool) -> None:
        super().check(recipe, has_background)
        if recipe.hyperparameters["vfm"] is None and recipe.hyperparameters["regions"] is None:
            raise OvssError("lavg needs vfm, whose features it cuts into masks, or regions: give one of them.")

    # Section 3.1: panoptic cut

    def proposals(self, context: ImageContext) -> np.ndarray:
        """The masks (n, H, W) bool of an image at its original size."""
        if self.regions is not None:
            masks = np.asarray(context.once(self.regions))
            return masks.astype(bool) if masks.ndim == 3 else masks == np.unique(masks)[1:, None, None]
        digest = getattr(self.vfm, "digest", None)
        maker = digest and f"{digest} lavg {self.cuts} {self.tau} {self.cut_side} {self.crf}"
        return context.cached(maker, lambda: self.panoptic_cut(context))

    def panoptic_cut(self, context: ImageContext) -> np.ndarray:
        image = stretch(context.original, (self.cut_side, self.cut_side), "lanczos")
        pixels = self.tensor(normalize(image, "clip_exact"))[None]
        (features,) = torch.from_numpy(WindowBatch(pixels, contexts=[context]).once(self.vfm).numpy(force=True))
        coarse = repeated_cuts(features.flatten(1).T, features.shape[1:], self.cuts, self.tau)
        masks = torch_nearest(coarse, image.shape[:2]).numpy().astype(bool)
        if self.crf and len(masks):
            masks = [cleaned(*pair) for pair in zip(fitted(masks, image), masks, strict=True)]
        return masks_at(masks, context.original.shape[:2])

    def masks(self, context: ImageContext) -> Tensor:
        """(n + 1, H, W) bool at the size of the resized image; the last mask is the pixels outside all others."""
        if "masks" not in context.by_products:
            masks = self.tensor(self.proposals(context))
            masks = torch.cat([masks, ~masks.any(0, keepdim=True)])
            context.by_products["masks"] = torch_nearest(masks, context.resized.shape[:2]).bool()
        return context.by_products["masks"]

    # Section 3.2: object grounding

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        pairs = zip(super().patch_logits(batch), self.window_masks(batch), strict=True)
        return torch.stack([self.grounded(cosines, masks) for cosines, masks in pairs])

    def window_masks(self, batch: WindowBatch) -> Iterable[Tensor]:
        if batch.contexts is not None:
            return cut(self, batch, self.masks, padding=0)
        windows = zip(pictures(self, batch), batch.pixels, strict=True)
        return [self.masks(ImageContext(image, image, pixels, image.shape[:2])) for image, pixels in windows]

    def grounded(self, cosines: Tensor, masks: Tensor) -> Tensor:
        """Cosines (Q, h, w) and masks (n, H, W) of a window -> logits (Q, H, W) of the masks.

        The official code averages features; the mean of the logits is the same, as all steps are linear."""
        logits = resized_maps(cosines, masks.shape[1:])
        members = masks.flatten(1).to(logits)
        means = logits.flatten(1) @ members.T / members.sum(1).clamp(min=1)
        named = torch.where(masks.any(0), means[:, masks.byte().argmax(0)], logits)
        if self.clear_background and self.vocabulary.background is not None:
            named = torch.where(self.foreground[:, None, None] & masks[-1], named.min(), named)
        return named

    @cached_property
    def foreground(self) -> Tensor:
        """The queries (Q,) bool that are not the background's."""
        return self.tensor(np.array([c != self.vocabulary.background for c in self.vocabulary.group]))


def fitted(masks: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Masks (n, H, W) bool after a dense CRF on the image (H, W, 3), one mask at a time; probabilities as in
    `panoptic_cut/crf.py` of the official code."""
    planes = torch.from_numpy(np.stack([~masks, masks], 1)).float().softmax(1)
    refined = dense_crf(planes, torch.from_numpy(image).float(), smooth=(3.0, 7.0), bilateral=(50.0, 5.0, 10.0))
    return refined.argmax(1).numpy().astype(bool)
