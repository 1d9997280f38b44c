"""Resizing of maps, and PAMR in another order of the pixels, against the plain computation."""

import pytest
import torch
import torch.nn.functional as F

from ovss_bench.ops.compose import TILE_BYTES
from ovss_bench.ops.enlarge import enlarge, to_coarse, window_of_unit_maps
from ovss_bench.ops.pamr import PAMR, affinity


def maps_of(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(7, 9), (40, 33), (3, 2), (1, 1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)])
def test_maps_are_enlarged_in_any_layout(order, size, align_corners):
    back = torch.tensor(order).argsort().tolist()
    maps = maps_of(5, 7, 9).permute(order).contiguous().permute(back)
    result = enlarge(maps, size, align_corners)
    torch.testing.assert_close(result, F.interpolate(maps[None], size, mode="bilinear", align_corners=align_corners)[0])
    assert result.movedim(0, -1).is_contiguous()  # otherwise PyTorch has copied it


@pytest.mark.parametrize("size", [(40, 52), (33, 61), (6, 9)])
@pytest.mark.parametrize("grid", [(4, 6), (11, 9), (30, 1)])
@pytest.mark.parametrize(
    "window", [((0, 24, 0, 24), (8, 20, 5, 28)), ((-5, 30, 1, 20), (3, 33, 4, 23)), ((0, 1, 0, 1), (0, 9, 0, 9))]
)
def test_a_window_of_unit_maps_needs_no_map_of_all_places(window, grid, size):
    maps = maps_of(8, 6, 9)
    window = [(first, length, start, min(end, side)) for (first, length, start, end), side in zip(window, size, strict=True)]
    whole = F.normalize(F.interpolate(maps[None], size, mode="bilinear"), dim=1)
    for axis, (first, length, start, end) in zip((2, 3), window, strict=True):
        whole = whole.index_select(axis, torch.arange(first, first + length).clamp(start, end - 1))
    expected = F.interpolate(whole, grid, mode="bilinear")[0]
    torch.testing.assert_close(window_of_unit_maps(maps, size, window, grid), expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("size", [(7, 9), (14, 18), (11, 23), (4, 5), (1, 1)])
def test_attention_to_an_enlarged_map_is_attention_to_the_map(size):
    maps, attention = maps_of(5, 7, 9), maps_of(6, size[0] * size[1]).softmax(1)
    enlarged = F.interpolate(maps[None], size, mode="bilinear")[0]
    result = to_coarse(attention, size, (7, 9)) @ maps.flatten(1).T
    torch.testing.assert_close(result, attention @ enlarged.flatten(1).T, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dilations", [(8, 16), (1, 2), (4, 6), (3,), (2, 3, 12)])
@pytest.mark.parametrize("size", [(19, 30), (16, 16), (5, 37)])
def test_pamr_averages_the_neighbours_step_by_step(size, dilations):
    guide, maps = maps_of(3, *size), maps_of(70, *size)  # more than are refined at a time
    weights, expected = affinity(guide, dilations), maps
    for _ in range(3):
        padded = {d: F.pad(expected[None], (d, d, d, d), mode="replicate")[0] for d in dilations}
        shifts = [(d, y, x) for d in dilations for y in (-d, 0, d) for x in (-d, 0, d) if (y, x) != (0, 0)]
        expected = sum(
            weight * padded[d][:, d + y : d + y + size[0], d + x : d + x + size[1]]
            for weight, (d, y, x) in zip(weights, shifts, strict=True)
        )
    torch.testing.assert_close(PAMR(guide, 3, dilations)(maps), expected)


@pytest.mark.parametrize("dilations", [(8, 16), (1, 2), (3,)])
@pytest.mark.parametrize("rows", [1, 4, 19, 50])
def test_the_weights_of_pamr_do_not_depend_on_the_bands(rows, dilations, monkeypatch):
    guide = maps_of(3, 19, 30)
    neighbours = torch.stack(
        [
            F.pad(guide[None], (d, d, d, d), mode="replicate")[0, :, d + y : d + y + 19, d + x : d + x + 30]
            for d in dilations
            for y in (-d, 0, d)
            for x in (-d, 0, d)
        ]
    )
    deviation = neighbours.std(0)
    others = neighbours[[n for n in range(len(neighbours)) if n % 9 != 4]]
    expected = (-((guide - others).abs() / (1e-8 + 0.1 * deviation)).mean(1)).softmax(0)
    monkeypatch.setitem(TILE_BYTES, "cpu", 4 * 9 * len(dilations) * 3 * 30 * rows)
    torch.testing.assert_close(affinity(guide, dilations), expected)
