"""GEM (Bousselham et al., CVPR 2024, arXiv 2312.00878): a second path of self-self attention beside the last blocks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..errors import OvssError
from ..ops.attention import attend
from ..types import ImageContext, Trunk, WindowBatch
from .base import Segmentor


@SEGMENTORS.register_module(name="gem")
class GEM(Segmentor):
    """The last depth-1 blocks each add an ensemble of value-value, key-key and query-query attention to a second stream.

    `iterations` of self-self attention group the unit vectors before they weight the values. `temperature` is the factor of
    the products; None computes it from the image (section 3.3). `residual=False` keeps only the last block's contribution.
    `min_max` stretches the map of every query to 0..1 over the image, as in GEM's heat maps.
    """

    depth: int = 7
    iterations: int = 1
    temperature: float | None = None
    residual: bool = True
    min_max: bool = False

    @property
    def blocks(self) -> range:
        """The blocks that add to the second stream."""
        if not 2 <= self.depth <= self.clip.depth + 1:
            blocks = self.clip.depth
            raise OvssError(f"depth={self.depth}: expected 2 to {blocks + 1}, as this CLIP has {blocks} blocks.")
        return range(self.clip.depth - self.depth + 1, self.clip.depth)

    @property
    def needs_qkv(self) -> frozenset[int]:
        return frozenset(self.blocks)

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        trunk = self.trunk(batch)
        stream = trunk.states[self.blocks[0]]
        for i in self.blocks:
            ensemble = self.self_self_attention(trunk, i)
            stream = stream + ensemble if self.residual else ensemble
        return self.cosines(stream, trunk.grid)

    def self_self_attention(self, trunk: Trunk, i: int) -> Tensor:
        """The ensemble (B, T, D) of block i for the tokens of the original stream that enter it."""
        block, (q, k, v) = self.clip.block(i, trunk.grid), self.clip.qkv(trunk, i)
        beta = self.temperature
        if beta is None:
            y = block.ln_1(trunk.states[i])
            beta = y.float().norm(dim=-1).mean(-1).to(y.dtype) * v.shape[-1] ** -0.5
        outputs = []
        for u in (v, k, q):
            u = F.normalize(u, dim=-1)
            for _ in range(self.iterations):
                u = F.normalize(attend(u, u, u, scale=beta), dim=-1)
            outputs.append(attend(u, u, v, scale=beta))
        return block.project(sum(outputs) / 3)

    @property
    def refines(self) -> bool:
        return self.min_max

    def refine(self, cosines: Tensor, context: ImageContext) -> Tensor:
        return min_max(cosines)


def min_max(maps: Tensor) -> Tensor:
    """(Q, H, W) -> each map stretched to 0..1 over the image; a flat map becomes 0."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)
