"""PAMR: pixel-adaptive mask refinement (Araslanov and Roth, CVPR 2020, arXiv 2005.08104; pamr.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pamr(guide: Tensor, maps: Tensor, steps: int = 10, dilations: Sequence[int] = (8, 16), chunk: int = 32) -> Tensor:
    """Smooths maps (C, h, w) along the colours of the guide (K, H, W): every pixel becomes a convex combination of its
    neighbours, `steps` times. Maps of another size are enlarged first (align_corners=True). Returns (C, H, W).

    Exact for any `chunk` of maps refined at a time, which bounds the memory.
    """
    if maps.shape[1:] != guide.shape[1:]:
        maps = F.interpolate(maps[None], guide.shape[1:], mode="bilinear", align_corners=True)[0]
    weights = affinity(guide, dilations)
    refined = []
    for part in maps.split(chunk):
        for _ in range(steps):
            part = sum(weight * neighbour for weight, neighbour in zip(weights, _neighbours(part, dilations), strict=True))
        refined.append(part)
    return torch.cat(refined)


def affinity(guide: Tensor, dilations: Sequence[int]) -> Tensor:
    """The weights (P, H, W) of the P = 8*len(dilations) neighbours, dilation by dilation, row by row; they sum to 1.

    Softmax over the neighbours of -|x - x_p| / (1e-8 + 0.1 s), averaged over the K channels, with s the standard deviation
    (Bessel's correction) over the nine positions of every dilation, the centre once for each.
    """
    neighbours = torch.stack(list(_neighbours(guide, dilations)))
    everything = torch.cat([neighbours, guide.expand(len(dilations), *guide.shape)])
    distance = (guide - neighbours).abs() / (1e-8 + 0.1 * everything.std(0))
    return (-distance.mean(1)).softmax(0)


def _neighbours(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """The eight shifts of (C, H, W) for each dilation; outside the image the nearest border pixel."""
    height, width = maps.shape[1:]
    for d in dilations:
        padded = F.pad(maps, (d, d, d, d), mode="replicate")
        for dy in (0, d, 2 * d):
            for dx in (0, d, 2 * d):
                if (dy, dx) != (d, d):
                    yield padded[:, dy : dy + height, dx : dx + width]
