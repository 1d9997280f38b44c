"""Windows of an image that see each other (GLA-CLIP, OV-Stitcher): maps of the whole image, stitched from those of the windows,
and attention over the patches of all windows, in parts that fit into memory."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PART_BYTES = 2**26  # of the attention weights that are held at a time, in float32


def attend_by_rows(weights: Callable[[slice], Tensor], values: Tensor, part_bytes: int = PART_BYTES) -> Tensor:
    """A V for values V (N, D), without the matrix A (N, N): `weights` gives some rows of it (R, N). The parts depend on N only,
    so that an image gets the same result in any run."""
    count = len(values)
    step = max(1, part_bytes // (4 * count))
    parts = (slice(start, min(start + step, count)) for start in range(0, count, step))
    return torch.cat([weights(rows).to(values.dtype) @ values for rows in parts])


def stitch(maps: Tensor, corners: Sequence[tuple[int, int]]) -> Tensor:
    """Maps of windows (B, C, h, w) whose first cells are at `corners` (row, column) -> (C, H, W), the mean over the windows of
    every cell; 0 where windows leave a gap."""
    height, width = (max(corner[axis] for corner in corners) + maps.shape[2 + axis] for axis in (0, 1))
    total, count = maps.new_zeros(maps.shape[1], height, width), maps.new_zeros(height, width)
    for part, (row, column) in zip(maps, corners, strict=True):
        total[:, row : row + maps.shape[2], column : column + maps.shape[3]] += part
        count[row : row + maps.shape[2], column : column + maps.shape[3]] += 1
    return total / count.clamp(min=1)
