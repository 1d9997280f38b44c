"""SegEarth-OV (Li et al., CVPR 2025, arXiv 2410.01768): features upsampled to the pixels, and less of the global bias of CLIP's
class token, for remote sensing images."""

from typing import Any

import torch
from torch import Tensor

from ..config.hyperparameters import File
from ..config.registry import SEGMENTORS
from ..encoders.feature_upsampler import load_upsampler
from ..encoders.trained import check_channels
from ..ops.attention import attend
from ..types import WindowBatch
from .base import LastBlockSegmentor


@SEGMENTORS.register_module(name="segearth_ov")
class SegEarthOV(LastBlockSegmentor):
    """The sum of three self-self attentions in the last block, without residual connection or feed-forward network; then
    SimFeatUp (section 3.2) and global bias alleviation (section 3.3).

    `checkpoint`: the upsampler; None: the cosines of the patches are interpolated. `bias` (lambda): weight of the class token's
    cosines, which are added to those of all pixels of its window, as in the official code. The paper's equation adds features.
    """

    residual: bool = False
    checkpoint: File | None = None
    bias: float = -0.3

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.upsampler = None
        if self.checkpoint is not None:
            self.upsampler = self.own(load_upsampler, str(self.checkpoint), self.clip.patch_size)
            channels = self.clip.model.visual.proj.shape[1]
            check_channels(
                f"checkpoint {self.checkpoint} upsamples features", self.upsampler.channels, channels, self.clip.name
            )

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        return attend(q, q, v) + attend(k, k, v) + attend(v, v, v)

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        """Cosines (B, Q, h, w) on the patch grid, or on the pixels with an upsampler."""
        trunk = self.trunk(batch)
        x = self.once(self.last_block, self.clip.block(-1, trunk.grid), trunk.tokens)
        embeddings = self.clip.project(x).float()
        bias = self.bias * self.compare(embeddings[:, :1], (1, 1))
        if not self.upsampler:
            return self.compare(embeddings[:, 1:], trunk.grid) + bias
        height, width = (side * self.clip.patch_size for side in trunk.grid)
        maps = embeddings[:, 1:].transpose(1, 2).unflatten(2, trunk.grid)
        fine = self.once(self.upsampled, maps, batch.pixels[..., :height, :width])
        return torch.cat([self.compare(each, (height, width)) for each in fine]) + bias

    def upsampled(self, maps: Tensor, pixels: Tensor) -> list[Tensor]:
        """The features (1, pixels, E) of each window, computed one by one, as they are large."""
        windows = zip(maps.split(1), pixels.split(1), strict=True)
        return [self.upsampler(*window).flatten(2).transpose(1, 2) for window in windows]
