"""PAMR: pixel-adaptive mask refinement (Araslanov and Roth, CVPR 2020, arXiv 2005.08104)."""

from collections.abc import Iterator, Sequence
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

from .compose import in_cache
from .device import kept
from .enlarge import enlarge

MAPS_PER_PASS = 64  # bounds the memory; maps do not depend on each other


class PAMR:
    """Smooths maps along the colours of a guide (K, H, W): every pixel becomes a convex combination of its neighbours, `steps`
    times."""

    def __init__(self, guide: Tensor, steps: int = 10, dilations: Sequence[int] = (8, 16)) -> None:
        self.size, self.steps = guide.shape[1:], steps
        self.order, self.back, self.neighbours = neighbour_index(*self.size, tuple(dilations), like=guide)
        self.weights = affinity(guide, dilations).flatten(1).T.index_select(0, self.order)

    def __call__(self, maps: Tensor) -> Tensor:
        """(C, h, w) -> (C, H, W); maps are resized to the guide first (bilinear, align_corners=True)."""
        return torch.cat(self.in_order(maps), 1).index_select(0, self.back).T.unflatten(1, self.size)

    def in_order(self, maps: Tensor) -> list[Tensor]:
        """The refined maps in parts (H*W, c), with pixels in `order`: pixel i is in row `back[i]`."""
        if maps.shape[1:] != self.size:
            maps = enlarge(maps, self.size, align_corners=True)
        weights, refined = self.weights.to(maps.dtype), []
        for part in maps.flatten(1).T.contiguous().split(MAPS_PER_PASS, 1):
            rows = part.index_select(0, self.order)
            for _ in range(self.steps):  # embedding_bag is four times as fast as weighted sums of shifted maps
                rows = F.embedding_bag(self.neighbours, rows, per_sample_weights=weights, mode="sum")
            refined.append(rows)
        return refined


def affinity(guide: Tensor, dilations: Sequence[int]) -> Tensor:
    """The weights (P, H, W) of the P = 8*len(dilations) neighbours, dilation by dilation, row by row; they sum to 1.

    Softmax over the neighbours of -|x - x_p| / (1e-8 + 0.1 s), averaged over the K channels, with s the standard deviation
    (Bessel's correction) over the nine positions of all dilations, so the centre counts once per dilation.
    """
    # A band of rows at a time, so that the neighbours' colours stay in a core's cache.
    rows = in_cache(9 * len(dilations) * guide[:, 0].numel(), like=guide)
    bands = zip(guide.split(rows, 1), *(shift.split(rows, 1) for shift in _neighbours(guide, dilations)), strict=True)
    weights = []
    for centre, *neighbours in bands:
        shifted = torch.stack(neighbours)
        everything = torch.cat([shifted, centre.expand(len(dilations), *centre.shape)])
        # torch's own std over the first dimension takes several times as long.
        deviation = ((everything - everything.mean(0)).square().sum(0) / (len(everything) - 1)).sqrt()
        distance = (centre - shifted).abs() / (1e-8 + 0.1 * deviation)
        weights.append((-distance.mean(1)).softmax(0))
    return torch.cat(weights, 1)


@kept(8)
def neighbour_index(height: int, width: int, dilations: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """An order of the pixels (H*W,), the place of each pixel in it (H*W,), and in this order the places (H*W, P) of the
    neighbours of each pixel, which are sorted as in `affinity`.

    Neighbours are a multiple of g = gcd(dilations) away, so the image falls apart into g^2 grids of every g-th pixel, which
    meet at the border only. With one grid after the other, neighbours are close in memory, and stay in a core's cache.
    """
    step = gcd(*dilations)
    pixels = torch.arange(height * width).view(height, width)
    grid = (pixels // width % step) * step + pixels % width % step
    order = grid.flatten().argsort(stable=True)
    back = order.argsort()
    neighbours = torch.stack(list(_neighbours(back.view(1, height, width).double(), dilations)), -1)
    return order, back, neighbours.view(height * width, -1)[order].int()


def _neighbours(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """The eight shifts of (C, H, W) for each dilation; outside the image the nearest border pixel."""
    height, width = maps.shape[1:]
    for d in dilations:
        padded = F.pad(maps, (d, d, d, d), mode="replicate")
        for dy in (0, d, 2 * d):
            for dx in (0, d, 2 * d):
                if (dy, dx) != (d, d):
                    yield padded[:, dy : dy + height, dx : dx + width]
