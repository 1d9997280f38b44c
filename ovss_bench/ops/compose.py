"""Composition of the patch grids of all windows to cosines at the size of the result, exact and separable.

The official order is: grid -> bilinear to the (possibly padded) window -> crop -> sum over windows -> divide by the count ->
bilinear to the original size. All steps are linear, window starts are a Cartesian product and the count is a product of a
count per row and one per column, so the chain is one separable map: Out[q] = M_h G[q] M_w^T, with G[q] the grids of all
windows side by side and M = U(out <- length) diag(1/count) S, where S stacks U(window <- cells) at the starts. Rows of M have
6 to 8 non-zeros.

The result is computed in tiles that stay in a core's cache until labels are decided; the full Q x H x W array never exists. The
cells of all windows are sorted by position, so a tile needs a contiguous block of cells, and both products are plain matrix
products, with the queries last in memory.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from .device import kept, one_thread
from .windows import Axis, SlidingWindow

TILE_BYTES = {"cpu": 2**21, "cuda": 2**28}  # fits into the cache of a core; keeps a GPU busy
TILE_COLUMNS = 64


def in_cache(values: int, like: Tensor) -> int:
    """How many rows of `values` float32 numbers to compute at a time on the device of `like`; at least one."""
    return max(1, TILE_BYTES[like.device.type] // (4 * values))


def bilinear_matrix(out: int, size: int) -> Tensor:
    """(out, size) float64: `interpolate(mode="bilinear", align_corners=False)` along one side."""
    position = ((torch.arange(out, dtype=torch.float64) + 0.5) * size / out - 0.5).clamp(min=0)
    low = position.floor().long().clamp(max=size - 1)
    weight = position - low
    matrix = torch.zeros(out, size, dtype=torch.float64)
    rows = torch.arange(out)
    matrix[rows, low] += 1 - weight
    matrix[rows, (low + 1).clamp(max=size - 1)] += weight
    return matrix


@kept(256)
def axis_matrix(axis: Axis, cells: int, out: int) -> tuple[Tensor, Tensor]:
    """M of one side, for `cells` per window: (out, windows * cells) float32 with the cells sorted by position, and that order
    (windows * cells)."""
    window = bilinear_matrix(axis.enlarged, cells)[axis.before : axis.before + axis.size]
    total = torch.zeros(axis.length, len(axis.starts) * cells, dtype=torch.float64)
    count = torch.zeros(axis.length, 1, dtype=torch.float64)
    for i, start in enumerate(axis.starts):
        total[start : start + axis.size, i * cells : (i + 1) * cells] = window
        count[start : start + axis.size] += 1
    position = torch.tensor(axis.starts).view(-1, 1) + (torch.arange(cells) + 0.5) * axis.enlarged / cells
    order = position.flatten().argsort(stable=True)
    return (bilinear_matrix(out, axis.length) @ (total / count))[:, order].float(), order


@kept(1024)
def _parts(axis: Axis, cells: int, out: int, length: int) -> list[tuple[slice, slice, Tensor]]:
    """M of one side in parts of `length` rows: (rows, cells with non-zero weights, that part of M)."""
    matrix, _ = axis_matrix(axis, cells, out)
    parts = []
    for start in range(0, out, length):
        part = matrix[start : start + length]
        used = part.any(0).nonzero()
        needed = slice(int(used.min()), int(used.max()) + 1)
        parts.append((slice(start, start + len(part)), needed, part[:, needed].contiguous()))
    return parts


def compose(
    grids: Tensor, windows: SlidingWindow, size: tuple[int, int], tile_bytes: int | None = None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yields (rows, columns, cosines (rows, columns, Q)) of tiles that cover the size (H, W) of the result.

    `grids` (windows, Q, cells_y, cells_x) in the order of `windows.origins`; the cells need not be CLIP's patches. Each
    tile reuses the memory of the one before.
    """
    rows, columns, device = windows.rows, windows.columns, grids.device
    queries, cells_y, cells_x = grids.shape[1:]
    pixels = max(1, (tile_bytes or TILE_BYTES[device.type]) // (4 * queries))
    width = min(size[1], max(TILE_COLUMNS, pixels // size[0]))
    height = min(size[0], max(1, pixels // width))
    order_y = axis_matrix(rows, cells_y, size[0], like=grids)[1][:, None]
    order_x = axis_matrix(columns, cells_x, size[1], like=grids)[1]
    joined = grids.unflatten(0, (len(rows.starts), len(columns.starts))).permute(0, 3, 1, 4, 2)
    joined = joined[order_y // cells_y, order_y % cells_y, order_x // cells_x, order_x % cells_x]
    buffer = torch.empty(height * width * queries, device=device)
    for across, cells, horizontal in _parts(columns, cells_x, size[1], width, like=grids):
        strip = (horizontal @ joined[:, cells]).flatten(1)
        for down, cells, vertical in _parts(rows, cells_y, size[0], height, like=grids):
            tile = buffer[: len(vertical) * strip.shape[1]].view(len(vertical), -1)
            with one_thread() if device.type == "cpu" else nullcontext():
                torch.mm(vertical, strip[cells], out=tile)
            yield down, across, tile.view(len(vertical), -1, queries)


def composed_maps(grids: Tensor, windows: SlidingWindow, size: tuple[int, int], contiguous: bool = False) -> Tensor:
    """All tiles of `compose` as maps (Q, H, W), with the queries of a pixel side by side in memory, or `contiguous`. The latter
    transposes tiles in a core's cache, which takes a third of the time of `composed_maps(...).contiguous()`."""
    queries = grids.shape[1]
    maps = grids.new_empty(queries, *size).movedim(0, -1) if contiguous else grids.new_empty(*size, queries)
    for rows, columns, tile in compose(grids, windows, size):
        maps[rows, columns] = tile
    return maps.movedim(-1, 0)
