"""Vanilla CLIP (Radford et al., ICML 2021, arXiv 2103.00020), its head applied to every token: the baseline."""

from torch import Tensor

from ..config.registry import SEGMENTORS
from ..ops.attention import attend
from .base import LastBlockSegmentor


@SEGMENTORS.register_module(name="clip")
class CLIP(LastBlockSegmentor):
    """The unmodified image encoder: query-key attention, residual and feed-forward network in the last block."""

    scores_sum_to_one = True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        return attend(q, k, v)
