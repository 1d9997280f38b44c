"""PEARL's text-aware Laplacian propagation (Pei et al., CVPR 2026, arXiv 2603.21528): cosines are smoothed along the edges of
the image."""

from torch import Tensor

from ...config.registry import STEPS
from ...ops.enlarge import resized_maps
from ...ops.laplacian import laplacian_smoothing, text_gains
from ...types import ImageContext
from .base import PixelStep


@STEPS.register_module(name="tlp")
class LaplacianPropagation(PixelStep):
    """A Laplacian system on a grid of about `grid` cells per side, solved by `cg_iters` steps of conjugate gradients
    (pearl/prop.py of the official code). `ke_img`: how sharply weights fall at an edge; `tau_s`, `diag_boost`: temperature and
    diagonal of the similarities between queries."""

    positive = ("grid", "tau_s")

    grid: int = 80
    tau_s: float = 0.5
    diag_boost: float = 10.0
    ke_img: float = 5.0
    cg_iters: int = 25

    def refine(self, cosines: Tensor, context: ImageContext) -> Tensor:
        cosines = super().refine(cosines, context)
        guide = resized_maps(self.tensor(context.pixels), cosines.shape[1:])
        gains = text_gains(self.text, self.tau_s, self.diag_boost)
        return laplacian_smoothing(cosines, guide, gains, self.grid, self.ke_img, iterations=self.cg_iters)
