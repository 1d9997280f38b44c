"""PAMR: pixel-adaptive mask refinement (Araslanov and Roth, CVPR 2020, arXiv 2005.08104)."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .device import kept

MAPS_PER_PASS = 32  # bounds the memory; maps do not depend on each other


class PAMR:
    """Smooths maps along the colours of a guide (K, H, W): every pixel becomes a convex combination of its neighbours, `steps`
    times."""

    def __init__(self, guide: Tensor, steps: int = 10, dilations: Sequence[int] = (8, 16)) -> None:
        self.size, self.steps = guide.shape[1:], steps
        self.weights = affinity(guide, dilations).flatten(1).T.contiguous()
        self.neighbours = neighbour_index(*self.size, tuple(dilations), like=guide)

    def __call__(self, maps: Tensor) -> Tensor:
        """(C, h, w) -> (C, H, W); maps are resized to the guide first (bilinear, align_corners=True)."""
        if maps.shape[1:] != self.size:
            maps = F.interpolate(maps[None], self.size, mode="bilinear", align_corners=True)[0]
        weights, refined = self.weights.to(maps.dtype), []
        for part in maps.split(MAPS_PER_PASS):
            rows = part.flatten(1).T.contiguous()
            for _ in range(self.steps):  # embedding_bag is four times as fast as weighted sums of shifted maps
                rows = F.embedding_bag(self.neighbours, rows, per_sample_weights=weights, mode="sum")
            refined.append(rows.T)
        return torch.cat(refined).unflatten(1, self.size)


def affinity(guide: Tensor, dilations: Sequence[int]) -> Tensor:
    """The weights (P, H, W) of the P = 8*len(dilations) neighbours, dilation by dilation, row by row; they sum to 1.

    Softmax over the neighbours of -|x - x_p| / (1e-8 + 0.1 s), averaged over the K channels, with s the standard deviation
    (Bessel's correction) over the nine positions of all dilations, so the centre counts once per dilation.
    """
    neighbours = torch.stack(list(_neighbours(guide, dilations)))
    everything = torch.cat([neighbours, guide.expand(len(dilations), *guide.shape)])
    # torch's own std over the first dimension takes several times as long.
    deviation = ((everything - everything.mean(0)).square().sum(0) / (len(everything) - 1)).sqrt()
    distance = (guide - neighbours).abs() / (1e-8 + 0.1 * deviation)
    return (-distance.mean(1)).softmax(0)


@kept(8)
def neighbour_index(height: int, width: int, dilations: tuple[int, ...]) -> Tensor:
    """The flat indices (H*W, P) of the neighbours of each pixel, in the order of `affinity`."""
    pixels = torch.arange(height * width, dtype=torch.float64).view(1, height, width)
    return torch.stack(list(_neighbours(pixels, dilations)), -1).view(height * width, -1).int()


def _neighbours(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """The eight shifts of (C, H, W) for each dilation; outside the image the nearest border pixel."""
    height, width = maps.shape[1:]
    for d in dilations:
        padded = F.pad(maps, (d, d, d, d), mode="replicate")
        for dy in (0, d, 2 * d):
            for dx in (0, d, 2 * d):
                if (dy, dx) != (d, d):
                    yield padded[:, dy : dy + height, dx : dx + width]
