"""ProxyCLIP (Lan et al., ECCV 2024, arXiv 2408.04883): attention from the features of a vision encoder, values from CLIP."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..ops.attention import cosine_matrix, empty_rows, proxy_attention
from ..ops.enlarge import to_coarse
from ..types import ImageContext, WindowBatch
from .base import Segmentor


@SEGMENTORS.register_module(name="proxyclip")
class ProxyCLIP(Segmentor):
    """The last block attends by the cosines of a vision encoder's features, on their grid; no residual connection, no
    feed-forward network.

    `vfm`: the encoder, by name, or any callable WindowBatch -> (B, C, H, W); `feature`: which output of a named encoder to
    use (section 3.2). `beta` and `gamma`: shift and scale of the adaptive normalisation (eq. 6). Ablations: `masking` of
    negative entries (eq. 7); `normalisation=False` leaves out eq. 6.

    `empty_rows`: where the mean cosine of a window exceeds 1 / beta, everything is masked, and the official softmax is NaN.
    `official`: as there, every pixel that such a window covers becomes class 0. `diagonal`: its patches attend to themselves.
    In either case, results state the number of such windows and of all windows.
    """

    requires = ("vfm",)
    attention_maps = 1

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
        values = block.value_map(trunk.tokens, trunk.grid)
        # Window by window: attention maps on a fine grid are large.
        mixed, empty = [], []
        for window, v in zip(features, values, strict=True):
            attention, without = self.attention(window.flatten(1).T)
            mixed.append(to_coarse(attention, grid, trunk.grid).to(v.dtype) @ v)
            empty.append(without)
        self.note(torch.stack(empty).any(1), batch)
        return self.compare(self.clip.project(block.project(torch.stack(mixed)[:, None])), grid)

    def note(self, empty: Tensor, batch: WindowBatch) -> None:
        """Counts all windows and the `empty` ones (B,) bool, and records their places in the contexts."""
        real = len(empty) - batch.padding
        self.observed.update(windows=real, empty_windows=empty[:real].sum())
        for is_empty, (context, place) in zip(empty, batch.places(), strict=False):
            context.by_products.setdefault("windows", []).append((place, is_empty))

    def correct(self, label_map: Tensor, context: ImageContext) -> Tensor:
        if self.empty_rows == "diagonal":
            return label_map
        covered = label_map.new_zeros(context.resized.shape[:2], dtype=torch.float32)
        for place, empty in context.by_products["windows"]:
            covered[place] += empty
        # NaN spreads to every pixel that is interpolated from it.
        covered = F.interpolate(covered[None, None], label_map.shape, mode="bilinear")[0, 0]
        return label_map.masked_fill(covered > 0, 0)

    def attention(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, C) of one window -> attention (N, N), the same in all heads, and its empty rows (N,) bool."""
        beta, gamma = (self.beta, self.gamma) if self.normalisation else (0.0, 1.0)
        similarity = cosine_matrix(features)
        return proxy_attention(similarity, beta, gamma, self.masking), empty_rows(similarity, beta) & self.masking
