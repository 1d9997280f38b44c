"""GEM (Bousselham et al., CVPR 2024, arXiv 2312.00878): a second path of self-self attention beside the last blocks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..encoders.clip import BlockView
from ..errors import OvssError
from ..ops.attention import attend
from ..types import ImageContext, WindowBatch
from .base import Segmentor


@SEGMENTORS.register_module(name="gem")
class GEM(Segmentor):
    """The last depth-1 blocks each add an ensemble of value-value, key-key and query-query attention to a stream of its own.

    `iterations` of self-self attention regroup the unit vectors before they weigh the values. `temperature` is the factor of
    the products; None takes it from the image (section 3.3). `residual=False` keeps the last block's contribution only.
    `min_max` stretches the map of every query to 0..1 over the image, as GEM's own heat maps are.
    """

    depth: int = 7
    iterations: int = 1
    temperature: float | None = None
    residual: bool = True
    min_max: bool = False

    @property
    def needs(self) -> frozenset[int]:
        if not 2 <= self.depth <= self.clip.depth + 1:
            raise OvssError(f"depth={self.depth}: with the {self.clip.depth} blocks of this CLIP, 2 to {self.clip.depth + 1}.")
        return frozenset(range(self.clip.depth - self.depth + 1, self.clip.depth))

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        trunk = self.trunk(batch)
        first, *others = sorted(self.needs)
        stream = trunk.states[first]
        for i in (first, *others):
            ensemble = self.self_self_attention(self.clip.block(i, trunk.grid), trunk.states[i])
            stream = stream + ensemble if self.residual else ensemble
        return self.cosines(stream, trunk.grid)

    def self_self_attention(self, block: BlockView, x: Tensor) -> Tensor:
        """The block's ensemble (B, T, D) for the tokens of the original stream that enter it."""
        y = block.ln_1(x)
        q, k, v = block.qkv(y)
        beta = self.temperature
        if beta is None:
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
