"""The pixel step of LPOSS+ (Stojnic et al., CVPR 2025, arXiv 2503.19777): labels propagate between pixels of similar colour."""

from torch import Tensor

from ...config.recipe import Recipe
from ...config.registry import STEPS
from ...ops.enlarge import resized_maps
from ...ops.graphs import propagate_pixels
from ...types import ImageContext
from .base import PixelStep, refuse_repetition


@STEPS.register_module(name="lposs_pixels")
class PixelPropagation(PixelStep):
    """On the pixels of the resized image, (I - `pixel_alpha` S) Z = Y is solved for the cosines Y by at most `pixel_maxiter`
    steps of conjugate gradients, or to the relative residual `pixel_tol`. S joins all pixels that are at most `pixel_r` // 2
    rows and columns apart, by exp(-distance / `pixel_tau`) of their Lab colours. Z is several times as large as Y."""

    positive = ("pixel_tau", "pixel_r")

    pixel_alpha: float = 0.95
    pixel_tau: float = 0.01
    pixel_r: int = 13
    pixel_tol: float = 1e-6
    pixel_maxiter: int = 10

    @classmethod
    def check(cls, recipe: Recipe, has_background: bool) -> None:
        super().check(recipe, has_background)
        refuse_repetition(recipe, "lposs_pixels", "pixel_refine", "propagates over pixels")  # of LPOSS

    def refine(self, cosines: Tensor, context: ImageContext) -> Tensor:
        cosines, image = super().refine(cosines, context), context.resized
        maps = resized_maps(cosines, image.shape[:2])
        graph = self.pixel_tau, self.pixel_r, self.pixel_alpha
        maps = propagate_pixels(maps, image, *graph, self.pixel_maxiter, self.pixel_tol)
        return resized_maps(maps, context.size)
