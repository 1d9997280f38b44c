"""Graphs over the patches and over the pixels of an image, and label propagation on them (LPOSS).

A graph is its affinity matrix W without diagonal, normalised to S = D^-1/2 W D^-1/2 with the degrees D of its nodes.
Propagated scores solve (I - alpha S) Z = Y for the given scores Y, each column by itself, as far as a few steps of conjugate
gradients lead.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .device import kept, to_device
from .solve import conjugate_gradients
from .windows import SlidingWindow

NODES_PER_PASS = 1024  # whose similarities to all others are held at a time
MAPS_PER_PASS = 32  # propagated over pixels at a time; maps do not depend on each other
ROWS_PER_PASS = 32  # of the image, in a product with the affinities of its pixels


@kept(16)
def cell_centres(windows: SlidingWindow, grid: tuple[int, int]) -> Tensor:
    """The centres (B*h*w, 2) of the cells of a grid (h, w) over each window, row by row, in pixels of the resized image."""
    lines = [(torch.arange(count) + 0.5) * side / count for side, count in zip(windows.shape, grid, strict=True)]
    cells = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).flatten(0, 1)
    return (torch.tensor(windows.origins)[:, None] + cells).flatten(0, 1)


def patch_affinity(features: Tensor, places: Tensor, k: int, gamma: float, sigma: float, power: float) -> Tensor:
    """Unit features (M, C) of patches and their places (M, 2) in pixels -> S (M, M), with an edge from each patch to its `k`
    nearest by cosine: max(cosine, 0)^gamma exp(-sigma distance^power). The patch itself counts among the `k`, of which there
    are at most M; patches that are near each other both ways have twice the affinity."""
    nearest = [(part @ features.T).topk(min(k, len(features))) for part in features.split(NODES_PER_PASS)]
    cosines, indices = (torch.cat(parts) for parts in zip(*nearest, strict=True))
    distances = (places[:, None] - places[indices]).float().norm(dim=-1)
    edges = cosines.clamp(min=0) ** gamma * torch.exp(-sigma * distances**power)
    weights = edges.new_zeros(len(features), len(features)).scatter_(1, indices, edges)
    weights = (weights + weights.T).fill_diagonal_(0)
    scale = inverse_root(weights.sum(1))
    return scale[:, None] * weights * scale


def inverse_root(degrees: Tensor) -> Tensor:
    """D^-1/2 of degrees of any shape; a node without edges has the degree 1."""
    return degrees.where(degrees > 0, 1).rsqrt()


def propagate_patches(scores: Tensor, affinity: Tensor, alpha: float, iterations: int, tolerance: float) -> Tensor:
    """Scores (M, Q) and S (M, M) -> propagated scores (M, Q). In float64 inside, as in the official code."""
    matrix = affinity.double()
    solve = partial(conjugate_gradients, iterations=iterations, tolerance=tolerance, over=(0,))
    return solve(lambda z: z - alpha * (matrix @ z), scores.double()).to(scores.dtype)


def propagate_pixels(
    maps: Tensor,
    image: np.ndarray,
    tau: float = 0.01,
    r: int = 13,
    alpha: float = 0.95,
    iterations: int = 10,
    tolerance: float = 1e-6,
) -> Tensor:
    """Score maps (Q, H, W) of an image (H, W, 3) uint8 RGB -> propagated score maps (Q, H, W).

    Each pixel has edges to all others in the square of `r` x `r` pixels around it: exp(-distance / tau), with the distance in
    Lab colours. The matrix is never formed. In float32, in the official code in float64.
    """
    size, reach = (maps.shape[1], maps.shape[2]), r // 2
    affinity = pixel_affinity(to_device(lab(image), maps.device), reach, tau)

    def operator(z: Tensor) -> Tensor:
        return z - alpha * pixel_product(affinity, z, size, reach)

    refined = []
    for part in maps.split(MAPS_PER_PASS):
        rows = part.flatten(1).T.contiguous()
        refined.append(conjugate_gradients(operator, rows, iterations=iterations, tolerance=tolerance, over=(0,)).T)
    return torch.cat(refined).unflatten(1, size)


def lab(image: np.ndarray) -> Tensor:
    """RGB (H, W, 3) uint8 -> CIE Lab under D65 (3, H, W): L / 100, a / 128, b / 128."""
    from skimage.color import rgb2lab

    scaled = rgb2lab(image) / (100, 128, 128)
    return torch.from_numpy(scaled.astype(np.float32)).permute(2, 0, 1).contiguous()


def pixel_affinity(colours: Tensor, reach: int, tau: float) -> Tensor:
    """Colours (3, H, W) -> S as (H*W, P), the P neighbours of each pixel row by row; 0 for those outside of the image."""
    inside = torch.ones_like(colours[0])
    shifted = zip(_neighbours(colours, reach), _neighbours(inside, reach), strict=True)
    # torch's own norm over the first dimension takes several times as long.
    weights = torch.stack(
        [torch.exp((colours - other).square().sum(0).sqrt() / -tau) * is_inside for other, is_inside in shifted]
    )
    scale = inverse_root(weights.sum(0))
    for number, other in enumerate(_neighbours(scale, reach)):
        weights[number] *= scale * other
    return weights.flatten(1).T.contiguous()


def pixel_product(affinity: Tensor, rows: Tensor, size: tuple[int, int], reach: int) -> Tensor:
    """S of `pixel_affinity` times rows (H*W, n) of n maps."""
    height, width = size
    padded = F.pad(rows.view(height, width, -1), (0, 0, reach, reach, reach, reach)).flatten(0, 1)
    index, across = neighbour_rows(ROWS_PER_PASS, width, reach, like=rows), width + 2 * reach
    products = []
    for first, part in enumerate(affinity.split(ROWS_PER_PASS * width)):
        below = padded[first * ROWS_PER_PASS * across :]
        # As in ops/pamr.py, several times as fast as weighted sums of shifted maps.
        products.append(F.embedding_bag(index[: len(part)], below, per_sample_weights=part, mode="sum"))
    return torch.cat(products)


@kept(8)
def neighbour_rows(rows: int, width: int, reach: int) -> Tensor:
    """(rows * width, P): where the neighbours of the pixels in the first rows are in an image of this width that is padded by
    `reach` on all sides."""
    across = width + 2 * reach
    first = (reach + torch.arange(rows))[:, None] * across + reach + torch.arange(width)
    shifts = torch.tensor([dy * across + dx for dy, dx in _shifts(reach)])
    return (first.flatten()[:, None] + shifts).int()


def _shifts(reach: int) -> list[tuple[int, int]]:
    side = range(-reach, reach + 1)
    return [(dy, dx) for dy in side for dx in side if (dy, dx) != (0, 0)]


def _neighbours(maps: Tensor, reach: int) -> Iterator[Tensor]:
    """The shifts of (..., H, W) by each neighbour; 0 outside."""
    height, width = maps.shape[-2:]
    padded = F.pad(maps, (reach, reach, reach, reach))
    for dy, dx in _shifts(reach):
        top, left = reach + dy, reach + dx
        yield padded[..., top : top + height, left : left + width]
