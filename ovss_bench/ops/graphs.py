"""Graphs over the patches and over the pixels of an image, and label propagation on them (LPOSS).

A graph is given by its affinity matrix W without diagonal, normalised to S = D^-1/2 W D^-1/2 with the degrees D of its nodes.
Propagated scores Z approximate the solution of (I - alpha S) Z = Y for scores Y by a few conjugate gradient steps per column.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .device import kept, to_device
from .solve import conjugate_gradients
from .windows import SlidingWindow

# These bound the memory and change no result.
NODES_PER_PASS = 1024
MAPS_PER_PASS = 48  # as many maps of the pixels of a square as fit into a core's first-level cache
ROWS_PER_PASS = {"cpu": 8, "cuda": 32}


@kept(16)
def cell_centres(windows: SlidingWindow, grid: tuple[int, int]) -> Tensor:
    """The centres (B*h*w, 2) of the cells of a grid (h, w) over each window, row by row, in pixels of the resized image."""
    lines = [(torch.arange(count) + 0.5) * side / count for side, count in zip(windows.shape, grid, strict=True)]
    cells = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).flatten(0, 1)
    return (torch.tensor(windows.origins)[:, None] + cells).flatten(0, 1)


def patch_affinity(features: Tensor, places: Tensor, k: int, gamma: float, sigma: float, power: float) -> Tensor:
    """Unit features (M, C) of patches and their places (M, 2) in pixels -> S (M, M), with an edge from each patch to its `k`
    nearest by cosine: max(cosine, 0)^gamma exp(-sigma distance^power). The patch itself is one of the `k`, at most M;
    mutual neighbours have twice the affinity."""
    nearest = [(part @ features.T).topk(min(k, len(features))) for part in features.split(NODES_PER_PASS)]
    cosines, indices = (torch.cat(parts) for parts in zip(*nearest, strict=True))
    distances = (places[:, None] - places[indices]).float().norm(dim=-1)
    edges = cosines.clamp(min=0) ** gamma * torch.exp(-sigma * distances**power)
    weights = edges.new_zeros(len(features), len(features)).scatter_(1, indices, edges)
    weights = (weights + weights.T).fill_diagonal_(0)
    scale = inverse_root(weights.sum(1))
    return weights.mul_(scale[:, None]).mul_(scale)


def inverse_root(degrees: Tensor) -> Tensor:
    """D^-1/2 of degrees of any shape; a node without edges has the degree 1."""
    return degrees.where(degrees > 0, 1).rsqrt()


def propagate_patches(scores: Tensor, affinity: Tensor, alpha: float, iterations: int, tolerance: float) -> Tensor:
    """Scores (M, Q) and S (M, M) -> propagated scores (M, Q). Computed in float64, as in the official code."""
    product = sparse_product(affinity)
    solve = partial(conjugate_gradients, iterations=iterations, tolerance=tolerance, over=(0,))
    return solve(lambda z: z - alpha * product(z), scores.double()).to(scores.dtype)


def sparse_product(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    """The function z (M, n) float64 -> `matrix` (M, M), whose entries are mostly 0, times z."""
    if matrix.device.type != "cpu":  # counting the nonzero entries would synchronise with a GPU
        return matrix.double().matmul
    from scipy.sparse import csr_array

    sparse = csr_array(matrix.numpy()).astype(np.float64)
    return lambda z: torch.from_numpy(sparse @ z.numpy())


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
    Lab colours. The matrix is never formed. Computed in float32; the official code uses float64.
    """
    size, reach = (maps.shape[1], maps.shape[2]), r // 2
    matrix = pixel_matrix(to_device(lab(image), maps.device), reach, tau, alpha)
    refined = maps.new_empty(maps.shape)
    for part, result in zip(maps.split(MAPS_PER_PASS), refined.split(MAPS_PER_PASS), strict=True):
        rows = part.flatten(1).T.contiguous()
        # Allocating memory of this size is slow, so each product overwrites the one before.
        operator = partial(pixel_product, matrix, size=size, reach=reach, out=torch.empty_like(rows))
        solution = conjugate_gradients(operator, rows, iterations=iterations, tolerance=tolerance, over=(0,))
        result.flatten(1).copy_(solution.T)
    return refined


def lab(image: np.ndarray) -> Tensor:
    """RGB (H, W, 3) uint8 -> CIE Lab under D65 (3, H, W): L / 100, a / 128, b / 128."""
    from skimage.color import rgb2lab

    scaled = rgb2lab(image) / (100, 128, 128)
    return torch.from_numpy(scaled.astype(np.float32)).permute(2, 0, 1).contiguous()


def pixel_matrix(colours: Tensor, reach: int, tau: float, alpha: float) -> Tensor:
    """Colours (3, H, W) -> I - alpha S as (H*W, P): for each pixel the entries of the P pixels of the square around it, row by
    row, itself in the middle; 0 outside the image."""
    shape = colours.shape[1:]
    shifts = _shifts(reach)
    matrix = colours.new_zeros(len(shifts), *shape)
    # S is symmetric: each edge is computed once, and the opposite of the shift k is the k-th from the end.
    edges = [(k, *_overlap(shape, shift)) for k, shift in enumerate(shifts[: len(shifts) // 2])]
    for k, here, there in edges:
        # torch's own norm over the first dimension takes several times as long.
        distance = (colours[here] - colours[there]).square_().sum(0).sqrt_()
        matrix[k][here] = matrix[-1 - k][there] = torch.exp(distance / -tau)
    scale = inverse_root(matrix.sum(0))
    for k, here, there in edges:
        factor = -alpha * scale[here] * scale[there]
        matrix[k][here] *= factor
        matrix[-1 - k][there] *= factor
    matrix[len(shifts) // 2] = 1
    return matrix.flatten(1).T.contiguous()


def pixel_product(matrix: Tensor, rows: Tensor, size: tuple[int, int], reach: int, out: Tensor) -> Tensor:
    """The matrix of `pixel_matrix` times rows (H*W, n) of n maps, written to `out` (H*W, n), which is returned."""
    height, width = size
    count = ROWS_PER_PASS[rows.device.type]
    for top in range(0, height, count):
        bottom = min(top + count, height)
        first, last = max(0, top - reach - 1), min(height, bottom + reach + 1)
        index = neighbour_rows(top - first, bottom - top, last - bottom, width, reach, like=rows)
        place = slice(top * width, bottom * width)
        # As in ops/pamr.py, several times as fast as weighted sums of shifted maps.
        source = rows[first * width : last * width]
        out[place] = F.embedding_bag(index, source, per_sample_weights=matrix[place], mode="sum")
    return out


@kept(16)
def neighbour_rows(above: int, rows: int, below: int, width: int, reach: int) -> Tensor:
    """The flat indices (rows * width, P) of the P pixels of the square around each pixel of `rows` rows, in an image with
    `above` and `below` further rows. Outside the image the index is an arbitrary valid one."""
    pixels = (above * width + torch.arange(rows * width))[:, None]
    shifts = torch.tensor([dy * width + dx for dy, dx in _shifts(reach)])
    return (pixels + shifts).clamp(0, (above + rows + below) * width - 1).int()


def _shifts(reach: int) -> list[tuple[int, int]]:
    side = range(-reach, reach + 1)
    return [(dy, dx) for dy in side for dx in side]


def _overlap(shape: Sequence[int], shift: tuple[int, int]) -> tuple[Any, Any]:
    """Indices into the last two dimensions: all pixels whose neighbour at this shift is inside (H, W), and these neighbours."""
    here = (slice(max(0, -step), max(0, side - max(0, step))) for side, step in zip(shape, shift, strict=True))
    there = (slice(max(0, step), max(0, side + min(0, step))) for side, step in zip(shape, shift, strict=True))
    return (..., *here), (..., *there)
