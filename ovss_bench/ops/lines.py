"""Lines between the patches of a grid (ResCLIP)."""

import torch
from torch import Tensor

from .device import kept


@kept(64)
def sight_lines(grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (S, h, h) and columns (S, w, w) of S samples of the line between any two patches, S the longer side of the grid, at
    least 2; and the Chebyshev distance of any two patches (h, w, h, w)."""
    share = torch.linspace(0, 1, max(*grid, 2))[:, None, None]  # not k / longest: the last bit decides ties
    sides = [torch.arange(side) for side in grid]
    rows, columns = (((1 - share) * side[:, None] + share * side).round().long() for side in sides)
    down, across = ((side[:, None] - side).abs() for side in sides)
    return rows, columns, torch.maximum(down[:, None, :, None], across[:, None, :])
