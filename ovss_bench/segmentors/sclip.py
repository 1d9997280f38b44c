"""SCLIP (Wang, Mei, Yuille, ECCV 2024, arXiv 2312.01597): correlative self-attention in the last block."""

from torch import Tensor

from ..config.registry import SEGMENTORS
from ..ops.attention import attend
from .base import LastBlockSegmentor


@SEGMENTORS.register_module(name="sclip")
class SCLIP(LastBlockSegmentor):
    """Attention softmax(q q^T / sqrt d) + softmax(k k^T / sqrt d); its rows sum to 2, and are not halved (section 3.2)."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        return attend(q, q, v) + attend(k, k, v)
