"""Spectra of patch graphs: low-rank graphs and pairs of heads (CASS), and normalised cuts (Shi and Malik, PAMI 2000; LaVG).

All in float64: the eigenvectors of close eigenvalues depend on the last digits. Their signs follow a convention.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

DENSE = 1024  # larger problems are solved for two eigenvectors only
CLOSE = 1e-6  # relative difference of entries that are equal but for rounding


def graph_spectrum(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features (..., N, d) -> the eigenvalues (..., d) of their graph features @ features^T / sqrt(d), largest first, and its
    unit eigenvectors (..., N, d), zero where the eigenvalue is.

    The graph has rank d at most, and the nonzero eigenvalues of the d x d Gram matrix.
    """
    x = features.double() * features.shape[-1] ** -0.25
    values, vectors = torch.linalg.eigh((x.transpose(-2, -1) @ x).nan_to_num())  # NaN shows in the eigenvectors below
    values, vectors = values.flip(-1).clamp(min=0), x @ vectors.flip(-1)
    # Eigenvectors of the eigenvalue 0 hold only rounding errors.
    positive = values > 1e-12 * values[..., :1]
    return values * positive, torch.where(positive[..., None, :], vectors / values.sqrt()[..., None, :], 0)


def best_pairs(cost: np.ndarray, tolerance: float = 1e-6) -> list[int]:
    """The column of each row in the assignment of least `cost` (n, n). Of those within `tolerance` of it, it is the first in
    lexicographic order, as ties are frequent and rounding would decide them."""
    from scipy.optimize import linear_sum_assignment

    def least(rows: list[int], columns: list[int]) -> float:
        part = cost[np.ix_(rows, columns)]
        return float(part[linear_sum_assignment(part)].sum())

    rows, free, pairs = list(range(len(cost))), list(range(len(cost))), []
    left = least(rows, free) + tolerance
    for row in rows:
        for column in free:
            others = [other for other in free if other != column]
            if cost[row, column] + least(rows[row + 1 :], others) <= left:
                break
        pairs.append(column)
        left, free = left - cost[row, column], others
    return pairs


def first_sign(vectors: Tensor) -> Tensor:
    """The sign (...) of the entry of largest magnitude in vectors (..., N), the first of nearly equal ones."""
    sizes = vectors.abs()
    first = (sizes >= (1 - CLOSE) * sizes.amax(-1, keepdim=True)).to(torch.uint8).argmax(-1, keepdim=True)
    return vectors.gather(-1, first).sign()[..., 0]


def cut_vector(affinity: Tensor) -> Tensor:
    """Symmetric affinities A (..., N, N), N > 1, with rows of positive sum D -> the second smallest generalised eigenvector e
    (..., N) of (D - A, D), with e^T D e = 1 and `first_sign` 1: the relaxed normalised cut."""
    scale = affinity.double().sum(-1).rsqrt()
    matrix = scale[..., None] * affinity * scale[..., None, :]
    if matrix.shape[-1] <= DENSE:
        unit = torch.linalg.eigh(matrix)[1][..., -2]
    else:
        vectors = [_second(each) for each in matrix.view(-1, *matrix.shape[-2:]).numpy(force=True)]
        unit = torch.from_numpy(np.stack(vectors)).to(matrix).view(matrix.shape[:-1])
    vector = scale * unit
    return vector * first_sign(vector)[..., None]


def _second(matrix: np.ndarray) -> np.ndarray:
    """The eigenvector of the second largest eigenvalue, by Lanczos' method from a fixed start."""
    from scipy.sparse.linalg import eigsh

    start = np.random.RandomState(0).uniform(size=len(matrix))
    values, vectors = eigsh(matrix, k=2, which="LA", v0=start, ncv=40, tol=1e-10)  # pyright: ignore[reportArgumentType]
    return vectors[:, values.argmin()]


def repeated_cuts(
    features: Tensor,
    grid: tuple[int, int],
    count: int = 8,
    tau: float = 0.3,
    eps: float = 1e-5,
    sign: Callable[[int], float] = lambda number: 1.0,
) -> Tensor:
    """Tokens (N, C) of a grid (h, w) -> masks (n, h, w) bool, n <= count, which overlap in degenerate cases only (MaskCut,
    CutLER, arXiv 2301.11320, section 3.2; with LaVG's changes).

    Each cut divides the tokens that are in no mask yet, by affinities of 1 above a cosine of `tau`, else `eps`, until at most
    five are left. `sign(number)` is the sign given to the largest entry of each eigenvector, which decides whether the corner
    rule swaps the two sides.
    """
    from skimage.measure import label

    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    free, masks = torch.arange(len(unit), device=unit.device), []
    while len(masks) < count and len(free) > 5:
        affinity = torch.where(unit[free] @ unit[free].T > tau, 1.0, eps).double()
        part, seed = _part(cut_vector(affinity) * sign(len(masks)), free, grid)
        numbered: Any = label(part.view(grid).numpy(force=True), connectivity=1)
        components = numbered.ravel()
        # If the seed is not in the part, this is label 0: everything outside it, including tokens of other masks.
        mask = torch.from_numpy(components == components[seed]).to(unit.device)
        masks.append(mask.view(grid))
        free = free[~mask[free]]
    return torch.stack(masks) if masks else torch.zeros(0, *grid, dtype=torch.bool, device=unit.device)


def _part(vector: Tensor, free: Tensor, grid: tuple[int, int]) -> tuple[Tensor, int]:
    """The side of a cut (N,) bool that is taken as an object, and its seed token."""
    values = vector.new_full((grid[0] * grid[1],), float(vector.abs().min()))
    part = torch.zeros_like(values, dtype=torch.bool)
    values[free], part[free] = vector, vector > vector.mean()
    seed = int(values.abs().argmax())
    corners = part.view(grid)[[0, 0, -1, -1], [0, -1, 0, -1]]
    if corners.sum() >= 3 or not part[seed]:
        values, part = -values, ~part & torch.zeros_like(part).index_fill(0, free, True)
        seed = int(values.argmax())
    return part, int(values.argmax())
