"""GLA-CLIP (Lee et al., CVPR 2026, arXiv 2603.23030): ProxyCLIP whose patches attend to those of all windows of the image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..ops.across_windows import attend_by_rows
from ..types import WindowBatch
from .base import Segmentor

# ProxyCLIP's shift and scale, which the official code uses where the dynamic ones are off.
SHIFT, SCALE = 1.2, 3.0


@SEGMENTORS.register_module(name="gla_clip")
class GLACLIP(Segmentor):
    """The last block attends by the cosines of a vision encoder's features, over all windows; no residual, no feed-forward.

    `vfm`: as in ProxyCLIP. Proxy anchors: the query of a patch is replaced `iterations` times by the mean of the keys whose
    cosine with it exceeds `rho`. Dynamic normalisation: the shift of the cosines grows with the number of windows, by
    `shift_growth` (lambda_1), and their scale with the rarity of similar keys, by `scale_growth` (lambda_2).

    Ablations: `extension=False` lets every window attend only to itself, between proxies and, as in the official code, with a
    fixed shift and scale; `proxies=False` leaves the queries as they are; `dynamic_shift` and `dynamic_scale`.
    """

    requires = ("vfm",)

    vfm: str | None = None
    rho: float = 0.55
    iterations: int = 2
    shift_growth: float = 0.3
    scale_growth: float = 30.0
    extension: bool = True
    proxies: bool = True
    dynamic_shift: bool = True
    dynamic_scale: bool = True

    @torch.inference_mode()
    def image_logits(self, batch: WindowBatch) -> Tensor:
        return self.logits(batch, len(batch.pixels))

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        """The same for separate windows: each is an image of one window."""
        return self.logits(batch, 1)

    def logits(self, batch: WindowBatch, together: int) -> Tensor:
        """Cosines (B, Q, h, w); `together` windows attend to each other."""
        features, trunk = batch.once(self.vfm), self.trunk(batch)
        block, grid = self.clip.block(-1, trunk.grid), features.shape[2:]
        keys, values = self.keys(features), block.value_map(trunk.tokens, grid)
        count = together if self.extension else 1
        parts = zip(keys.split(count), values.split(count), strict=True)
        mixed = torch.cat([self.attend(k.flatten(0, 1), v.flatten(0, 1), count) for k, v in parts]).view_as(values)
        return self.compare(self.clip.project(block.project(mixed[:, None])), grid)

    def keys(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) -> unit keys (B, h*w, C)."""
        return F.normalize(features.flatten(2).transpose(1, 2).float(), dim=-1)

    def attend(self, keys: Tensor, values: Tensor, windows: int) -> Tensor:
        """Keys (T, C) and values (T, D) of all patches of some windows -> the mixed values (T, D)."""
        if self.extension:
            return attend_by_rows(lambda rows: self.attention(keys, rows, windows), values)
        anchors, _ = self.anchors(keys, slice(0, len(keys)))
        return attend_by_rows(lambda rows: self.masked(anchors[rows] @ anchors.T, SHIFT, SCALE), values)

    def attention(self, keys: Tensor, rows: slice, windows: int) -> Tensor:
        """The attention (R, T) of some patches to all patches of the windows, the same for all heads."""
        anchors, counts = self.anchors(keys, rows)
        shift = 1 + self.shift_growth * math.log1p(windows) if self.dynamic_shift else SHIFT
        scale = 1 + self.scale_growth / counts[:, None] if self.dynamic_scale else SCALE
        return self.masked((anchors if self.proxies else keys[rows]) @ keys.T, shift, scale)

    def anchors(self, keys: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Keys (T, C) -> the proxy anchors (R, C) of some patches, unit vectors after the mean shift, and the number (R,) of
        keys in the last mean; a patch without similar keys takes its own."""
        anchors = keys[rows]
        near = anchors.new_empty(0)
        for iteration in range(max(self.iterations, 1)):
            near = anchors @ keys.T > self.rho
            near.diagonal(rows.start).logical_or_(~near.any(-1))
            if iteration < self.iterations:
                means = near.to(keys.dtype) @ keys / (near.sum(-1, keepdim=True) + 1e-6)
                anchors = F.normalize(means, dim=-1)
        return anchors, near.sum(-1)

    def masked(self, cosines: Tensor, shift: float, scale: float | Tensor) -> Tensor:
        """Cosines (R, T) -> attention (R, T): shifted by the row's mean and scaled, without negative entries; a row with only
        negative ones keeps its highest."""
        weights = scale * (cosines - shift * cosines.mean(-1, keepdim=True).clamp(min=0))
        least = weights.amax(-1, keepdim=True).clamp(max=0)
        return weights.masked_fill(weights < least, -torch.inf).softmax(-1)
