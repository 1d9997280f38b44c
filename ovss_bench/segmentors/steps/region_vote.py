"""CorrCLIP's map correction (Zhang et al., ICCV 2025, arXiv 2411.10086, section 3.4): a majority vote in every region."""

from torch import Tensor

from ...config.recipe import Recipe
from ...config.registry import STEPS
from ...ops.nearest import torch_nearest
from ...ops.vote import majority_vote
from ...types import ImageContext
from ..base import Segmentor
from .base import LabelStep, refuse_repetition


@STEPS.register_module(name="region_vote")
class RegionVote(LabelStep):
    """Every region gets its most frequent label, at the size of the result. `regions` as in CorrCLIP; the smallest id of an
    image means unsegmented, and keeps its labels."""

    requires = ("regions",)

    regions: str | None = None

    @classmethod
    def refusal(cls, base: type[Segmentor]) -> str | None:
        if "regions" in base.hyperparameters() and "regions" not in base.requires:  # LaVG
            return "the regions of the vote would replace the method's own masks"
        return super().refusal(base)

    @classmethod
    def check(cls, recipe: Recipe, has_background: bool) -> None:
        super().check(recipe, has_background)
        refuse_repetition(recipe, "region_vote", "correction", "votes in regions")  # of CorrCLIP

    def correct(self, label_map: Tensor, context: ImageContext) -> Tensor:
        label_map = super().correct(label_map, context)
        regions = torch_nearest(self.tensor(context.once(self.regions)).long(), context.size)
        return majority_vote(label_map, regions, skip=regions.min())
