"""ClearCLIP (Lan et al., ECCV 2024, arXiv 2407.12442): the last block is reduced to its attention."""

from torch import Tensor

from ..config.registry import SEGMENTORS
from ..ops.attention import attend
from .base import LastBlockSegmentor


@SEGMENTORS.register_module(name="clearclip")
class ClearCLIP(LastBlockSegmentor):
    """Query-query attention, no residual connection, no feed-forward network (section 3.3)."""

    residual: bool = False

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        return attend(q, q, v)
