"""SC-CLIP (arXiv 2411.15869): CLIP calibrates itself, repairs anomalous patches and aggregates features by the similarities of
middle layers."""

import torch
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..encoders.clip import BlockView
from ..errors import OvssError
from ..ops.attention import attend, cosine_matrix, proxy_attention
from ..ops.outliers import aggregate, local_outlier_factors, mend
from ..types import WindowBatch
from .base import Segmentor


@SEGMENTORS.register_module(name="scclip")
class SCCLIP(Segmentor):
    """All steps are per window. Indices count the outputs of blocks from 0, `multi_end_idx` excluded; names as in the official
    code.

    The share `lof_contamination` of patches with the largest local outlier factors (`lof_neighbors`) is replaced by the mean
    of their neighbours (`repair`). The last block gets only the patches, aggregated by the similarities of the layer
    `pre_adjust_idx` that are at least `beta`. It attends half by keys, half by the similarities of that layer, centred and
    times `temperature` (`calibrate`). The class token of the residual stream is added with the weight `res_cls`. A second pass
    over the sum of the layers `multi_start_idx` to `multi_end_idx` is added (`multi_level`), and the result is aggregated by
    the similarities of the layer `post_adjust_idx`. `aggregate=False` leaves out both aggregations.

    Deviations: the official code takes the number of rows instead of columns for the coordinates of anomalous patches, which
    is right on square windows only. Its outlier factors of equal patches are NaN; here they are 1. In a window of one colour,
    rounding may lift the mean above all similarities, and its softmax is NaN; here such patches attend to themselves.
    """

    positive = ("lof_neighbors",)
    shares = ("lof_contamination",)
    attention_maps = 1

    beta: float = 0.4
    pre_adjust_idx: int = 8
    post_adjust_idx: int = 3
    multi_start_idx: int = 3
    multi_end_idx: int = 10
    res_cls: float = 0.3
    lof_neighbors: int = 30
    lof_contamination: float = 0.05
    temperature: float = 3.0
    repair: bool = True
    aggregate: bool = True
    calibrate: bool = True
    multi_level: bool = True

    @property
    def needs(self) -> frozenset[int]:
        levels = range(self.multi_start_idx, self.multi_end_idx) if self.multi_level else ()
        indices = {self.pre_adjust_idx, self.post_adjust_idx, *levels}
        if not 0 <= min(indices) <= max(indices) < self.clip.depth - 1 or (self.multi_level and not levels):
            raise OvssError(
                f"{self.recipe.segmentor} can use the outputs 0 to {self.clip.depth - 2} of this CLIP's {self.clip.depth} "
                f"blocks, not pre_adjust_idx={self.pre_adjust_idx}, post_adjust_idx={self.post_adjust_idx}, "
                f"multi_start_idx={self.multi_start_idx}, multi_end_idx={self.multi_end_idx} (excluded). Choose others."
            )
        return frozenset(index + 1 for index in indices)

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        trunk = self.trunk(batch)
        block = self.clip.block(-1, trunk.grid)
        patches, middle = trunk.tokens[:, 1:], trunk.states[self.pre_adjust_idx + 1][:, 1:]
        if self.repair:
            anomalous = self.anomalies(patches)
            patches, middle = (mend(x, anomalous, trunk.grid) for x in (patches, middle))
        similarity = cosine_matrix(middle)
        if self.aggregate:
            patches = aggregate(patches, similarity, self.beta)
        attention = proxy_attention(similarity, beta=1, gamma=self.temperature)[:, None].to(patches)
        result = self.last_block(block, patches, attention) + self.res_cls * trunk.tokens[:, :1]
        if self.multi_level:
            levels = sum(trunk.states[i + 1] for i in range(self.multi_start_idx, self.multi_end_idx))
            result = result + self.last_block(block, levels[:, 1:], attention) + self.res_cls * levels[:, :1]
        if self.aggregate:
            result = aggregate(result, cosine_matrix(trunk.states[self.post_adjust_idx + 1][:, 1:]), self.beta)
        return self.compare(self.clip.project(result), trunk.grid)

    def anomalies(self, patches: Tensor) -> Tensor:
        """Patches (B, N, D) -> (B, N) bool: local outlier factors above a quantile of their window."""
        factors = local_outlier_factors(patches, self.lof_neighbors)
        return factors > factors.quantile(1 - self.lof_contamination, 1, keepdim=True)

    def last_block(self, block: BlockView, patches: Tensor, attention: Tensor) -> Tensor:
        """The output of the last block's attention for patches (B, N, D) without class token; `attention` (B, 1, N, N): that of
        the middle layer."""
        _, k, v = block.qkv(block.ln_1(patches))
        o = attend(k, k, v)
        return block.project((o + attention @ v) / 2 if self.calibrate else o)
