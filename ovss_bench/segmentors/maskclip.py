"""MaskCLIP (Zhou, Loy, Dai, ECCV 2022, arXiv 2112.01071): in the last block every token outputs its value vector."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..types import WindowBatch
from .base import LastBlockSegmentor


@SEGMENTORS.register_module(name="maskclip")
class MaskCLIP(LastBlockSegmentor):
    """Value-only last block, optionally with the paper's two refinements (section 3.3), both off in its published figures.

    `prompt_denoising`: suppresses classes whose probability reaches this value nowhere in the window. `key_smoothing`: patches
    below this confidence take an average over all patches, weighted by the similarity of their keys.
    """

    prompt_denoising: float = 0.0
    key_smoothing: float = 0.0

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        return v

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        logits = super().patch_logits(batch)
        if self.prompt_denoising > 0:
            peak = (100 * logits).softmax(1).amax((2, 3), keepdim=True)
            logits = logits.masked_fill(peak < self.prompt_denoising, -100)
        if self.key_smoothing > 0:
            logits = self.smoothed(logits, self.keys(batch))
        return logits

    def keys(self, batch: WindowBatch) -> Tensor:
        """Keys of the patches after the output projection (B, N, D), as in the official code."""
        trunk = self.trunk(batch)
        block = self.clip.block(-1, trunk.grid)
        return block.project(block.qkv(block.ln_1(trunk.tokens))[1])[:, 1:].float()

    def smoothed(self, logits: Tensor, keys: Tensor) -> Tensor:
        """Logits (B, Q, h, w), keys (B, N, D) -> probabilities (B, Q, h, w), averaged where uncertain. Keys are normalised over
        the tokens instead of the channels, a slip of the official code that its numbers depend on."""
        keys = F.normalize(keys, dim=1)
        probabilities = (100 * logits).softmax(1).flatten(2)
        averaged = probabilities @ keys @ keys.transpose(1, 2)
        certain = probabilities.amax(1, keepdim=True) >= self.key_smoothing
        return torch.where(certain, probabilities, averaged).view_as(logits)
