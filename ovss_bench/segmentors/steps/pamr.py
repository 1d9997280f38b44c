"""PAMR (Araslanov and Roth, CVPR 2020, arXiv 2005.08104) on the cosines at full size, as in NACLIP's code."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...config.registry import STEPS
from ...errors import OvssError
from ...ops.pamr import PAMR
from ...types import ImageContext
from .base import PixelStep


@STEPS.register_module(name="pamr")
class PAMRStep(PixelStep):
    """`pamr_iterations` of PAMR with the recipe's `pamr_dilations` (naclip.py: pamr_steps=10, pamr_stride=(8, 16)). As the
    first step it gives the same as the recipe value `pamr_steps`; it can also follow another refinement."""

    uses = ("pamr_dilations",)
    positive = ("pamr_iterations",)

    pamr_iterations: int = 10

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if steps := self.recipe.pamr_steps:
            origin = self.recipe.origins.get("pamr_steps", "the caller")
            raise OvssError(
                f"{self.recipe.segmentor}: the recipe applies PAMR already (pamr_steps={steps} from {origin}). Leave the step "
                "pamr out, or set pamr_steps=0."
            )

    def refine(self, cosines: Tensor, context: ImageContext) -> Tensor:
        cosines = super().refine(cosines, context)
        guide = F.interpolate(context.pixels[None].to(cosines.device), context.size, mode="bilinear")[0]
        return PAMR(guide, self.pamr_iterations, self.recipe.pamr_dilations)(cosines)
