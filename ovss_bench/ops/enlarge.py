"""Bilinear resizing of maps of many channels: of all places, or of those that a window needs."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .compose import bilinear_matrix
from .device import kept


def resized_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (C, h, w) -> (C, *size), bilinear."""
    return F.interpolate(maps[None], [*size], mode="bilinear")[0]


def enlarge(maps: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """`interpolate(mode="bilinear")` of maps (C, h, w) to (C, *size), with the channels of a place side by side in memory.

    Cosines are such maps, as views. Given one, PyTorch computes in this layout and then copies the result into the other one,
    which takes up to 50 times as long as the computation; the strides of a contiguous (1, h, w, C) spare the copy.
    """
    places = maps.permute(1, 2, 0).contiguous()[None]
    return F.interpolate(places.permute(0, 3, 1, 2), [*size], mode="bilinear", align_corners=align_corners)[0]


def window_of_unit_maps(
    maps: Tensor, size: tuple[int, int], window: Sequence[tuple[int, int, int, int]], grid: tuple[int, int]
) -> Tensor:
    """Resizes maps (C, h, w) to `size`, makes the C numbers of each place a unit vector, cuts a window, and resizes that to
    `grid`: (C, *grid), bilinear. `window`: for rows and columns its first place and its length in the resized map, and the
    first place that it shows, and the one after the last; others, which are padding, have the nearest value that it shows.

    Of the resized map a cell of `grid` needs two rows and two columns only. Resizing is separable, M_h X M_w^T with M_h (H, h)
    and M_w (W, w), so rows of both matrices give these places, and the map of all places never exists.
    """
    places, weights = [], []
    for cells, (first, length, start, end) in zip(grid, window, strict=True):
        index, weight = nearest_two(cells, length, like=maps)
        places.append((index + first).clamp(start, end - 1))
        weights.append(weight.to(maps))
    down, across = (
        resizing(out, side, like=maps).to(maps)[index] for out, side, index in zip(size, maps.shape[1:], places, strict=True)
    )
    needed = F.normalize(down @ (maps @ across.T), dim=0)
    rows = (needed.unflatten(1, weights[0].shape) * weights[0][..., None]).sum(2)
    return (rows.unflatten(2, weights[1].shape) * weights[1]).sum(3)


def to_coarse(attention: Tensor, fine: Sequence[int], coarse: Sequence[int]) -> Tensor:
    """Attention (R, H*W) to the places of a map that is enlarged bilinearly from `coarse` (h, w) to `fine` (H, W) -> attention
    to the places of the map itself (R, h*w).

    Enlarging is linear, U M with U = M_h x M_w (see `window_of_unit_maps`), so A (U M) = (A U) M: as the map has many channels,
    it costs less to apply U to the attention.
    """
    if tuple(fine) == tuple(coarse):
        return attention
    down, across = (resizing(out, side, like=attention).to(attention) for out, side in zip(fine, coarse, strict=True))
    return (down.T @ (attention.unflatten(1, tuple(fine)) @ across)).flatten(1)


@kept(256)
def resizing(out: int, size: int) -> Tensor:
    """The matrix (out, size) float32 of `interpolate(mode="bilinear")` along one side."""
    return bilinear_matrix(out, size).float()


@kept(256)
def nearest_two(out: int, size: int) -> tuple[Tensor, Tensor]:
    """The two of `size` places that each of `out` is interpolated from, one after the other (2 * out,) int64, or the only one;
    and their weights (out, 2)."""
    weights, places = bilinear_matrix(out, size).topk(min(2, size))
    return places.flatten(), weights.float()
