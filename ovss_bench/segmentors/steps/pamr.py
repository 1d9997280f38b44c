"""PAMR (Araslanov and Roth, CVPR 2020, arXiv 2005.08104) on the cosines at full size, as in NACLIP's code."""

from torch import Tensor

from ...config.recipe import Recipe
from ...config.registry import STEPS
from ...errors import OvssError
from ...ops.enlarge import resized_maps
from ...ops.pamr import PAMR
from ...types import ImageContext
from .base import PixelStep


@STEPS.register_module(name="pamr")
class PAMRStep(PixelStep):
    """PAMR with `pamr_iterations` and the recipe's `pamr_dilations` (naclip.py: pamr_steps=10, pamr_stride=(8, 16)). As the
    first step it equals the recipe value `pamr_steps`; it can also follow another refinement."""

    uses = ("pamr_dilations",)
    positive = ("pamr_iterations",)

    pamr_iterations: int = 10

    @classmethod
    def check(cls, recipe: Recipe, has_background: bool) -> None:
        super().check(recipe, has_background)
        if steps := recipe.pamr_steps:
            origin = recipe.origins.get("pamr_steps", "the caller")
            raise OvssError(
                f"{recipe.segmentor}: the recipe applies PAMR already (pamr_steps={steps} from {origin}). Leave the step "
                "pamr out, or set pamr_steps=0."
            )

    def refine(self, cosines: Tensor, context: ImageContext) -> Tensor:
        cosines = super().refine(cosines, context)
        guide = resized_maps(context.pixels.to(cosines.device), context.size)
        return PAMR(guide, self.pamr_iterations, self.recipe.pamr_dilations)(cosines)
