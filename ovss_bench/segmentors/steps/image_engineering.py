"""ITACLIP's image engineering (Aydin et al., CVPR Workshops 2025, arXiv 2411.12044, section 3.2): the cosines of five copies of
each window."""

import torch
from torch import Tensor

from ...config.recipe import Recipe
from ...config.registry import STEPS
from ...errors import OvssError
from ...ops.image_engineering import image_engineering
from ...types import WindowBatch
from ..base import Segmentor
from .base import WindowStep, refuse_repetition


@STEPS.register_module(name="image_engineering")
class ImageEngineering(WindowStep):
    """The base method sees each window, and grey, blurred and flipped copies of it. The mean over the flipped copies has the
    weight 1 - `engineering_weight`, the mean over the other three the rest."""

    engineering_weight: float = 0.75

    @classmethod
    def refusal(cls, base: type[Segmentor]) -> str | None:
        if base.image_logits:
            return "the method sees all windows of an image together, and altered copies of a window have no place in it"
        if "regions" in base.hyperparameters():
            return "the method has regions of the image, and altered copies of a window have none"
        return super().refusal(base)

    @classmethod
    def check(cls, recipe: Recipe, has_background: bool) -> None:
        super().check(recipe, has_background)
        refuse_repetition(recipe, "image_engineering", "img_engineering", "alters its windows")  # of ITACLIP
        for name, whole, window in (("whole_image", True, False), ("image_level", "image", "window")):  # of CASS, of RF-CLIP
            if recipe.window != "whole" and recipe.hyperparameters.get(name) == whole:
                reason = "the base method compares texts with the whole image, which altered windows do not have"
                raise OvssError(f"{recipe.segmentor}: {reason}. Set {name}={str(window).lower()}, or window=whole.")

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        return image_engineering(super().patch_logits, batch, self.engineering_weight)
