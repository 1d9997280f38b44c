"""From the patch grids of all windows to class cosines at the original size, exactly and separably.

The official order is: grid -> bilinear to the (padded) window -> cut -> sum over windows -> divide by the count -> bilinear to
the original size. All steps are linear, window starts are a Cartesian product and the count is a product of a count per row
and one per column, so the chain is one separable map: Out[q] = M_h G[q] M_w^T, with G[q] the grids of all windows side by
side and M = U(out <- length) diag(1/count) S, where S stacks U(window <- cells) at the starts. Rows of M have 6 to 8 non-zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from .windows import Axis, SlidingWindow


def bilinear_matrix(out: int, size: int) -> Tensor:
    """(out, size) float64: what `interpolate(mode="bilinear", align_corners=False)` does along one side."""
    position = ((torch.arange(out, dtype=torch.float64) + 0.5) * size / out - 0.5).clamp(min=0)
    low = position.floor().long().clamp(max=size - 1)
    weight = position - low
    matrix = torch.zeros(out, size, dtype=torch.float64)
    rows = torch.arange(out)
    matrix[rows, low] += 1 - weight
    matrix[rows, (low + 1).clamp(max=size - 1)] += weight
    return matrix


@lru_cache(maxsize=256)
def axis_matrix(axis: Axis, cells: int, out: int) -> Tensor:
    """M of one side, for grids of `cells` over each padded window: (out, windows * cells) float32."""
    window = bilinear_matrix(axis.padded, cells)[axis.before : axis.before + axis.size]
    total = torch.zeros(axis.length, len(axis.starts) * cells, dtype=torch.float64)
    count = torch.zeros(axis.length, 1, dtype=torch.float64)
    for i, start in enumerate(axis.starts):
        total[start : start + axis.size, i * cells : (i + 1) * cells] = window
        count[start : start + axis.size] += 1
    return (bilinear_matrix(out, axis.length) @ (total / count)).float()


def compose(grids: Tensor, windows: SlidingWindow, size: tuple[int, int], block: int = 32) -> Iterator[tuple[slice, Tensor]]:
    """Yields (rows, cosines (Q, len(rows), W)) in blocks of rows of the original size (H, W).

    `grids` (windows, Q, cells_y, cells_x) in the order of `windows.origins`; the cells need not be CLIP's patches.
    """
    rows, columns = windows.rows, windows.columns
    joined = grids.unflatten(0, (len(rows.starts), len(columns.starts))).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    vertical = axis_matrix(rows, grids.shape[2], size[0]).to(grids.device)
    across = joined @ axis_matrix(columns, grids.shape[3], size[1]).to(grids.device).T
    for start in range(0, size[0], block):
        part = vertical[start : start + block]
        used = part.any(0).nonzero()[:, 0]
        yield slice(start, start + len(part)), torch.einsum("rk,qkw->qrw", part[:, used], across[:, used])
