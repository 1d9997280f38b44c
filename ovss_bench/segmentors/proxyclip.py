"""ProxyCLIP (Lan et al., ECCV 2024, arXiv 2408.04883): a vision encoder says which patches attend to which, CLIP what they
say."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..registry import SEGMENTORS
from .attention import cosine_matrix, empty_rows, proxy_attention, value_map
from .base import Segmentor, WindowBatch

# A cosine so high that it decides wherever it has a part, as NaN does: in other windows, and in pixels between two patches.
CERTAIN = 1e6


@SEGMENTORS.register_module(name="proxyclip")
class ProxyCLIP(Segmentor):
    """The last block attends by the cosines of a vision encoder's features, on their grid; no residual, no feed-forward.

    `vfm`: the encoder, by name, or any callable WindowBatch -> (B, C, H, W); `feature`: what is taken from a named one (section
    3.2). `beta` and `gamma`: shift and scale of the adaptive normalisation (eq. 6). Ablations: `masking` of negative entries
    (eq. 7); `normalisation=False` takes the cosines as they are.

    `empty_rows`: where the mean cosine of a window exceeds 1 / beta, the masking leaves nothing, and the official softmax is NaN.
    `official`: as there, such a window becomes class 0 with all pixels that it shares with other windows. `diagonal`: its patches
    attend to themselves. How many windows there were, and how many of this kind, is counted in either case.
    """

    requires = ("vfm",)

    vfm: str | None = None
    feature: Literal["tokens", "q", "k", "v", "q+k"] = "tokens"
    beta: float = 1.2
    gamma: float = 3.0
    normalisation: bool = True
    masking: bool = True
    empty_rows: Literal["official", "diagonal"] = "official"

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        features, trunk = batch.once(self.vfm), self.trunk(batch)
        block, grid = self.clip.block(-1, trunk.grid), features.shape[2:]
        values = value_map(block, trunk.tokens, grid)
        # Window by window: the mean is the window's own, and attention maps of a fine grid are large.
        mixed, empty = [], []
        for window, v in zip(features, values, strict=True):
            attention, without = self.attention(window.flatten(1).T)
            mixed.append(attention.to(v.dtype) @ v)
            empty.append(without)
        cosines = self.compare(self.clip.project(block.project(torch.stack(mixed)[:, None])), grid)
        empty = torch.stack(empty).unflatten(1, grid)
        real = empty[: len(empty) - batch.padding]
        self.observed.update(windows=len(real), empty_windows=real.flatten(1).any(1).sum())
        if self.empty_rows == "official":
            first = self.vocabulary.by_class[1][0]
            cosines[:, first] = cosines[:, first].masked_fill(empty, CERTAIN)
        return cosines

    def attention(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, C) of one window -> who attends to whom (N, N), the same in all heads, and whose row is empty (N,)."""
        beta, gamma = (self.beta, self.gamma) if self.normalisation else (0.0, 1.0)
        similarity = cosine_matrix(features)
        empty = empty_rows(similarity, beta) & self.masking
        return proxy_attention(similarity, beta, gamma, self.masking), empty
