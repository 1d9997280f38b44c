"""NACLIP (Hajimiri, Ben Ayed, Dolz, WACV 2025, arXiv 2404.08181): attention to the neighbourhood of each patch."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..ops.attention import attend
from ..ops.device import kept
from .base import LastBlockSegmentor


@SEGMENTORS.register_module(name="naclip")
class NACLIP(LastBlockSegmentor):
    """Key-key attention with a Gaussian bonus around each patch; no residual connection, no feed-forward network (section 3.2).

    `sigma`: standard deviation of the bonus, in patches. `strategy` (the paper's ablation): `naclip`; `kk`, without the bonus;
    `nonly`, the bonus alone at the scale of the products.
    """

    attention_maps = 1
    scores_sum_to_one = True
    residual: bool = False
    sigma: float = 5.0
    strategy: Literal["naclip", "kk", "nonly"] = "naclip"

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.strategy == "kk":
            return attend(k, k, v)
        bonus = neighbourhood(grid, self.sigma, like=k).to(k)
        if self.strategy == "naclip":
            return attend(k, k, v, bias=bonus)
        # The mean over heads and pairs of |q_p| |k_p'| is a product of means per head.
        scale = (q.norm(dim=-1).mean(-1) * k.norm(dim=-1).mean(-1)).mean(-1) * q.shape[-1] ** -0.5
        return (scale.view(-1, 1, 1, 1) * bonus).softmax(-1) @ v


@kept(64)
def neighbourhood(grid: tuple[int, int], sigma: float) -> Tensor:
    """Omega (1+N, 1+N): exp(-distance^2 / (2 sigma^2)), both in patches; 0 from and to the class token."""
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in grid), indexing="ij")
    place = torch.stack([y.flatten(), x.flatten()], 1)
    distance = (place[:, None] - place).square().sum(-1)
    return F.pad(torch.exp(-distance / (2 * sigma**2)), (1, 0, 1, 0))
