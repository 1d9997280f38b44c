"""Bilinear resizing of maps with many channels, whole or only where a window needs them."""

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

    Maps of cosines are views with this layout. PyTorch would compute in it, then copy the result to the default layout, which
    takes up to 50 times as long as the computation. The strides of a contiguous (1, h, w, C) avoid the copy.
    """
    places = maps.permute(1, 2, 0).contiguous()[None]
    return F.interpolate(places.permute(0, 3, 1, 2), [*size], mode="bilinear", align_corners=align_corners)[0]


def window_of_unit_maps(
    maps: Tensor, size: tuple[int, int], window: Sequence[tuple[int, int, int, int]], grid: tuple[int, int]
) -> Tensor:
    """Resizes maps (C, h, w) to `size`, normalises the channels of each place to a unit vector, cuts out a window, and resizes
    that to `grid`: (C, *grid), bilinear. `window`, for rows and columns: its start and its length in the resized map, and the
    start and the end of the part inside the image. Places outside that part are padding, and take the nearest value in it.

    A cell of `grid` needs only two rows and two columns of the resized map. Resizing is separable, M_h X M_w^T with M_h (H, h)
    and M_w (W, w), so some rows of both matrices suffice, and the whole resized map never exists.
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
    (R, h*w) to the places of the map before that.

    Enlarging is linear, U M with U = M_h x M_w (see `window_of_unit_maps`), so A (U M) = (A U) M. As the map has many channels,
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
    """The two of `size` places that each of `out` places is interpolated from, side by side (2 * out,) int64, and their weights
    (out, 2). With `size` 1 there is one instead of two."""
    weights, places = bilinear_matrix(out, size).topk(min(2, size))
    return places.flatten(), weights.float()
