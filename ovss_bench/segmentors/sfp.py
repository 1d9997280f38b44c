"""SFP (Jin et al., ICCV 2025, pages 20291-20300): outlying patches are replaced by their neighbours before the last block, and
patches are mixed by the similarities of a middle block."""

from typing import Literal

import torch
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..errors import OvssError
from ..ops.attention import attend, cosine_matrix, proxy_attention
from ..ops.outliers import aggregate, local_outlier_factors, mend
from ..types import Trunk, WindowBatch
from .base import Segmentor


@SEGMENTORS.register_module(name="sfp")
class SFP(Segmentor):
    """All steps are per window. Blocks are counted from 1; a number stands for the block's output.

    Outliers (`detector`): `attention`: patches to which the class token attends, times `cls_factor`, more than they attend to
    themselves, in the block before the last; `norm`: the patches of largest norm that enter the last block; at most
    `max_outliers` of either kind. `lof`: all patches that enter the last block with a local outlier factor (`lof_neighbors`)
    above its quantile `lof_quantile`. Outliers are replaced by the mean of their neighbours (`purify`), or by 0 if all of these
    are outliers, too.

    Similarities are cosines of at least `similarity`: S1 of the purified `reference_block`, S2 of the `auxiliary_block`. The
    last block gets only the patches, averaged by S1. It attends in equal parts by keys, by queries and by S1, centred and
    times `sharpening`. The sum of the blocks `first_level` to `last_level` passes through the last block's values by S1 alone
    and is added (`multi_level`). Both get `cls_weight` times their class token, and S2 averages the result.

    Deviations: the official code confuses rows and columns of outliers on windows that are not square, and fails there. A patch
    that is replaced by 0 is similar to none: its official softmax is NaN; here it attends to itself.
    """

    positive = ("max_outliers", "lof_neighbors")
    shares = ("lof_quantile",)
    attention_maps = 2

    purify: bool = True
    detector: Literal["attention", "norm", "lof"] = "attention"
    max_outliers: int = 10
    cls_factor: float = 1.5
    lof_neighbors: int = 30
    lof_quantile: float = 0.95
    similarity: float = 0.4
    sharpening: float = 3.0
    cls_weight: float = 0.3
    reference_block: int = 9
    auxiliary_block: int = 4
    multi_level: bool = True
    first_level: int = 4
    last_level: int = 10

    @property
    def needs(self) -> frozenset[int]:
        levels = range(self.first_level, self.last_level + 1) if self.multi_level else ()
        blocks = {self.reference_block, self.auxiliary_block, *levels}
        if not 1 <= min(blocks) <= max(blocks) < self.clip.depth or (self.multi_level and not levels):
            raise OvssError(
                f"{self.recipe.segmentor} can use the blocks 1 to {self.clip.depth - 1} of this CLIP's {self.clip.depth}, not "
                f"reference_block={self.reference_block}, auxiliary_block={self.auxiliary_block}, "
                f"first_level={self.first_level}, last_level={self.last_level}. Choose others."
            )
        return frozenset(blocks)  # the output of block b, counted from 1, is the input of block b, counted from 0

    @property
    def needs_qkv(self) -> frozenset[int]:
        return frozenset({self.clip.depth - 2} if self.purify and self.detector == "attention" else ())

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        trunk = self.trunk(batch)
        patches, reference = trunk.tokens[:, 1:], trunk.states[self.reference_block][:, 1:]
        if self.purify:
            outlying = self.outliers(trunk)
            patches, reference = (mend(x, outlying, trunk.grid, isolated=0.0) for x in (patches, reference))
        middle, auxiliary = self.similarities(reference), self.similarities(trunk.states[self.auxiliary_block][:, 1:])
        by_middle = proxy_attention(middle, beta=1, gamma=self.sharpening)[:, None].to(patches)

        block = self.clip.block(-1, trunk.grid)
        q, k, v = block.qkv(block.ln_1(aggregate(patches, middle, self.similarity)))
        mixed = (attend(k, k, v) + attend(q, q, v) + by_middle @ v) / 3
        result = block.project(mixed) + self.cls_weight * trunk.tokens[:, :1]
        if self.multi_level:
            levels = sum(trunk.states[b] for b in range(self.first_level, self.last_level + 1))
            v = block.values(block.ln_1(levels[:, 1:]))
            result = result + block.project(by_middle @ v) + self.cls_weight * levels[:, :1]
        return self.compare(self.clip.project(aggregate(result, auxiliary, self.similarity)), trunk.grid)

    def similarities(self, patches: Tensor) -> Tensor:
        """(B, N, D) -> cosines (B, N, N), 0 where they are below `similarity`."""
        cosines = cosine_matrix(patches)
        return cosines.masked_fill(cosines < self.similarity, 0)

    def outliers(self, trunk: Trunk) -> Tensor:
        """Which patches are outliers: (B, N) bool."""
        patches = trunk.tokens[:, 1:]
        if self.detector == "lof":
            factors = local_outlier_factors(patches, self.lof_neighbors)
            return factors > factors.quantile(self.lof_quantile, 1, keepdim=True)
        strength = patches.float().norm(dim=-1) if self.detector == "norm" else self.attended(trunk)
        strongest = strength.sort(descending=True, stable=True).indices[:, : self.max_outliers]
        return torch.zeros_like(strength, dtype=torch.bool).scatter_(1, strongest, True) & (strength > -torch.inf)

    def attended(self, trunk: Trunk) -> Tensor:
        """How much the class token attends to each patch in the block before the last, times `cls_factor`, as the mean over
        the heads (B, N); -inf where the patch attends to itself at least as much."""
        attention = self.clip.attention(trunk, self.clip.depth - 2).float().mean(1)
        by_class, itself = self.cls_factor * attention[:, 0, 1:], attention.diagonal(dim1=1, dim2=2)[:, 1:]
        return by_class.masked_fill(by_class <= itself, -torch.inf)
