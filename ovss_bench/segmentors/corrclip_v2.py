"""CorrCLIPv2 (github.com/zdk258/CorrCLIP, CorrCLIPv2; no paper yet): CorrCLIP with features of the whole image, and retrieval
of similar regions from unlabelled images."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..ops.enlarge import enlarge, resized_maps
from ..types import ImageContext, WindowBatch
from .corrclip import CorrCLIP
from .features import image_features, window_features
from .merged_regions import region_means


@SEGMENTORS.register_module(name="corrclip_v2")
class CorrCLIPv2(CorrCLIP):
    """Unlike CorrCLIP, the vision encoder sees the whole image, regions are not merged, and for each region the `num_support`
    most similar regions are retrieved from `bank`, a RegionBank, if there is one; their cosines are mixed in with the weight
    `support` (alpha in the official code). `vfm` may also be a folder of features.
    """

    positive = ("spatial_blocks", "num_support")

    feature: Literal["tokens", "q", "k", "v", "q+k"] = "tokens"
    merge_eps: float = 0.0
    bank: str | None = None
    num_support: int = 20
    support: float = 0.5

    def features(self, batch: WindowBatch) -> Tensor:
        """Cut from the image's unit features at the resized size, (B, C, 2h, 2w) for a patch grid of h x w."""
        grid = [2 * side for side in self.trunk(batch).grid]
        if batch.contexts is None:
            return F.interpolate(batch.once(self.vfm), grid, mode="bilinear")
        return window_features(self, batch, self.coarse, grid)

    def coarse(self, context: ImageContext) -> Tensor:
        """Features (C, h, w) of the whole image at its original size, on the grid of the vision encoder."""
        if "coarse" not in context.by_products:
            context.by_products["coarse"] = image_features(self, context, round)[0]
        return context.by_products["coarse"]

    @property
    def refines(self) -> bool:
        return self.bank is not None

    @torch.inference_mode()
    def refine(self, cosines: Tensor, context: ImageContext) -> Tensor:
        """Mixes in the cosines of the regions retrieved from the bank."""
        regions, retrieved = self.retrieve(context)
        support = self.bank.cosines(retrieved, self.text, self.vocabulary)[:, regions]
        support = resized_maps(support, context.size)
        return (1 - self.support) * cosines + self.support * support

    def retrieve(self, context: ImageContext) -> tuple[Tensor, Tensor]:
        """The regions (h, w) of the resized image, numbered from 0 in the order of their ids, and the indices
        (regions, num_support) of the most similar regions in the bank."""
        ids, regions = self.region_map(context, context.resized.shape[:2]).unique(return_inverse=True)
        features = F.normalize(enlarge(self.coarse(context), regions.shape).flatten(1).T, dim=-1)
        keys = F.normalize(region_means(features, regions.flatten(), len(ids)), dim=-1)
        return regions, self.bank.search(keys, self.num_support)
