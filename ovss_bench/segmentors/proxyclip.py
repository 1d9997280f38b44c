"""ProxyCLIP (Lan et al., ECCV 2024, arXiv 2408.04883): a vision encoder says which patches attend to which, CLIP what they
say."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..registry import SEGMENTORS
from .attention import cosine_matrix, proxy_attention, value_map
from .base import Segmentor, WindowBatch


@SEGMENTORS.register_module(name="proxyclip")
class ProxyCLIP(Segmentor):
    """The last block attends by the cosines of a vision encoder's features, on their grid; no residual, no feed-forward.

    `vfm`: the encoder, by name, or any callable WindowBatch -> (B, C, H, W); `feature`: what is taken from a named one (section
    3.2). `beta` and `gamma`: shift and scale of the adaptive normalisation (eq. 6). Ablations: `masking` of negative entries
    (eq. 7); `normalisation=False` takes the cosines as they are.
    """

    requires = ("vfm",)
    attention_maps = 1

    vfm: str | None = None
    feature: Literal["tokens", "q", "k", "v", "q+k"] = "tokens"
    beta: float = 1.2
    gamma: float = 3.0
    normalisation: bool = True
    masking: bool = True

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        features, trunk = batch.once(self.vfm), self.trunk(batch)
        block, grid = self.clip.block(-1, trunk.grid), features.shape[2:]
        values = value_map(block, trunk.tokens, grid)
        # Window by window: the mean is the window's own, and attention maps of a fine grid are large.
        mixed = torch.stack([self.attention(f.flatten(1).T).to(v.dtype) @ v for f, v in zip(features, values, strict=True)])
        return self.compare(self.clip.project(block.project(mixed[:, None])), grid)

    def attention(self, features: Tensor) -> Tensor:
        """Features (N, C) of one window -> who attends to whom (N, N), the same in all heads."""
        beta, gamma = (self.beta, self.gamma) if self.normalisation else (0.0, 1.0)
        return proxy_attention(cosine_matrix(features), beta, gamma, self.masking)
