"""CorrCLIP's map correction (Zhang et al., ICCV 2025, arXiv 2411.10086, section 3.4): a majority vote in every region."""

from typing import Any

from torch import Tensor

from ...config.registry import STEPS
from ...errors import OvssError
from ...ops.nearest import torch_nearest
from ...ops.vote import majority_vote
from ...types import ImageContext
from .base import LabelStep


@STEPS.register_module(name="region_vote")
class RegionVote(LabelStep):
    """Every region gets its most frequent label, at the size of the result. `regions` as in CorrCLIP; the smallest id of an
    image means unsegmented, and keeps its labels."""

    requires = ("regions",)

    regions: str | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if getattr(self, "correction", False):  # of CorrCLIP
            hint = "Leave region_vote out, or set correction=false."
            raise OvssError(f"{self.recipe.segmentor}: the base method votes in regions already. {hint}")

    def correct(self, label_map: Tensor, context: ImageContext) -> Tensor:
        label_map = super().correct(label_map, context)
        regions = torch_nearest(self.tensor(context.once(self.regions)).long(), context.size)
        return majority_vote(label_map, regions, skip=regions.min())
