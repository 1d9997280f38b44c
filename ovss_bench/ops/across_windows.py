"""Attention across the windows of an image (GLA-CLIP, OV-Stitcher), in parts that fit into memory, and stitching of window maps
(also Trident)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PART_BYTES = 2**26  # float32 attention weights in memory at a time


def attend_by_rows(weights: Callable[[slice], Tensor], values: Tensor, part_bytes: int = PART_BYTES) -> Tensor:
    """The product A V for values V (N, D), without the whole matrix A (N, N): `weights` returns the requested rows of A (R, N).
    The parts depend on N only, so that an image gets the same result in any run."""
    count = len(values)
    step = max(1, part_bytes // (4 * count))
    parts = (slice(start, min(start + step, count)) for start in range(0, count, step))
    return torch.cat([weights(rows).to(values.dtype) @ values for rows in parts])


def stitch(maps: Tensor, corners: Sequence[tuple[int, int]]) -> Tensor:
    """Maps of windows (B, C, h, w) with their top-left cells at `corners` (row, column) -> (C, H, W): for each cell the mean
    over its windows, 0 without any."""
    height, width = (max(corner[axis] for corner in corners) + maps.shape[2 + axis] for axis in (0, 1))
    total, count = maps.new_zeros(maps.shape[1], height, width), maps.new_zeros(height, width)
    for part, (row, column) in zip(maps, corners, strict=True):
        total[:, row : row + maps.shape[2], column : column + maps.shape[3]] += part
        count[row : row + maps.shape[2], column : column + maps.shape[3]] += 1
    return total / count.clamp(min=1)
