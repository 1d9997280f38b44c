"""Windows by mmseg's rule, and the separable composition against the plain loop of the official codes."""

import pytest
import torch
import torch.nn.functional as F

from ovss_bench.ops.compose import axis_matrix, compose, composed_maps
from ovss_bench.ops.windows import SlidingWindow, axis

LENGTHS = (1, 7, 16, 31, 47, 48, 49, 63, 71, 72, 73, 96, 97, 100, 143, 200)
WINDOWS = ((48, 24), (48, 48), (32, 16), (50, 33), (17, 5), (224, 112), (1, 1))


def official_windows(length, crop, stride):
    """(start, end) of each window along one side."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    ends = [min(i * stride + crop, length) for i in range(count)]
    return [(max(end - crop, 0), end) for end in ends]


@pytest.mark.parametrize(("crop", "stride"), WINDOWS)
@pytest.mark.parametrize("length", LENGTHS)
def test_starts_follow_mmsegs_rule(length, crop, stride):
    windows = axis(length, crop, stride, 16, "none")
    assert [(start, start + windows.size) for start in windows.starts] == official_windows(length, crop, stride)


@pytest.mark.parametrize("length", LENGTHS)
def test_whole_is_one_window(length):
    windows = axis(length, None, 112, 16, "none")
    assert (windows.starts, windows.size) == ((0,), length)


@pytest.mark.parametrize(
    ("size", "pad", "before", "padded", "cells"),
    [
        (48, "none", 0, 48, 3),
        (50, "none", 0, 50, 3),
        (50, "center", 7, 64, 4),
        (49, "center", 7, 64, 4),
        (50, "corner", 0, 64, 4),
        (64, "center", 0, 64, 4),
        (9, "none", 0, 16, 1),
        (9, "center", 3, 16, 1),
        (1, "corner", 0, 16, 1),
    ],
)
def test_padding_to_the_patch(size, pad, before, padded, cells):
    windows = axis(size, None, 16, 16, pad)
    assert (windows.before, windows.padded, windows.cells) == (before, padded, cells)


@pytest.mark.parametrize("pad", ["none", "center", "corner", "corner_black"])
@pytest.mark.parametrize("size", [(60, 90), (48, 48), (20, 70), (5, 50)], ids=str)
def test_windows_show_the_image_at_their_origin_and_zeros_outside(size, pad):
    pixels = torch.randn(3, *size, generator=torch.Generator().manual_seed(1))
    windows = SlidingWindow.of(*size, 50, 30, 16, pad)
    border = 64
    surrounded = F.pad(pixels, (border,) * 4)
    cut = windows.cut(pixels)
    rows, columns = (official_windows(side, 50, 30) for side in size)
    assert len(cut) == len(windows.origins) == len(rows) * len(columns)
    for window, (y, x), corner in zip(cut, windows.origins, [(r[0], c[0]) for r in rows for c in columns], strict=True):
        assert (y + windows.rows.before, x + windows.columns.before) == corner
        expected = torch.zeros(3, *windows.shape)
        top, left = windows.rows.before, windows.columns.before
        inside = slice(top, top + windows.rows.size), slice(left, left + windows.columns.size)
        from_image = surrounded[:, border + y :, border + x :][:, : windows.shape[0], : windows.shape[1]]
        expected[:, inside[0], inside[1]] = from_image[:, inside[0], inside[1]]
        assert torch.equal(window, expected)


def test_padding_may_have_a_colour():
    """Black is not zero after the normalisation."""
    pixels, fill = torch.zeros(3, 20, 40), torch.tensor([-1.5, 0.5, 2.0]).view(3, 1, 1)
    (window,) = SlidingWindow.of(20, 40, 48, 24, 16, "corner_black").cut(pixels, fill)
    assert window.shape == (3, 32, 48)
    assert (window[:, :20, :40] == 0).all()
    assert (window[:, 20:] == fill).all()
    assert (window[:, :, 40:] == fill).all()
    (window,) = SlidingWindow.of(32, 48, 48, 24, 16, "corner_black").cut(pixels := torch.ones(3, 32, 48), fill)
    assert torch.equal(window, pixels)


def plain_loop(grids, windows, size, crop, stride, patch, pad):
    """The official order of steps, one window after the other."""
    height, width = windows.rows.length, windows.columns.length
    total, count = torch.zeros(grids.shape[1], height, width), torch.zeros(height, width)
    number = 0
    for y1, y2 in official_windows(height, height if crop == "whole" else crop, stride):
        for x1, x2 in official_windows(width, width if crop == "whole" else crop, stride):
            padded, before = [], []
            for side in (y2 - y1, x2 - x1):
                missing = -side % patch if pad != "none" or side < patch else 0
                padded.append(
                    side if pad.startswith("corner") else side + missing
                )  # MaskCLIP enlarges to the size of the input
                before.append(missing // 2 if pad == "center" else 0)
            enlarged = F.interpolate(grids[number : number + 1], padded, mode="bilinear", align_corners=False)[0]
            total[:, y1:y2, x1:x2] += enlarged[:, before[0] : before[0] + y2 - y1, before[1] : before[1] + x2 - x1]
            count[y1:y2, x1:x2] += 1
            number += 1
    assert number == len(grids)
    return F.interpolate((total / count)[None], size, mode="bilinear", align_corners=False)[0]


GEOMETRIES = [  # resized size, original size, window, stride, patch
    ((96, 128), (96, 128), 48, 24, 8),
    ((96, 128), (143, 191), 48, 24, 16),
    ((100, 131), (61, 80), 48, 24, 16),
    ((101, 90), (250, 223), 50, 33, 16),
    ((120, 120), (121, 119), 56, 28, 14),
    ((40, 170), (40, 170), 64, 32, 16),
    ((170, 30), (85, 15), 64, 32, 16),
    ((20, 30), (47, 71), 64, 32, 16),
    ((7, 90), (7, 90), 48, 24, 16),
    ((5, 3), (9, 6), 64, 32, 16),
    ((1, 70), (1, 70), 48, 48, 8),
    ((70, 1), (35, 1), 48, 48, 8),
    ((99, 77), (200, 155), "whole", 112, 16),
    ((97, 201), (333, 400), 60, 7, 16),
    ((300, 200), (20, 13), 64, 64, 32),
]


@pytest.mark.parametrize("pad", ["none", "center", "corner", "corner_black"])
@pytest.mark.parametrize(("resized", "size", "window", "stride", "patch"), GEOMETRIES)
def test_composition_equals_the_plain_loop(resized, size, window, stride, patch, pad):
    windows = SlidingWindow.of(*resized, window, stride, patch, pad)
    shape = len(windows.origins), 5, windows.rows.cells, windows.columns.cells
    grids = torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 2 - 1
    expected = plain_loop(grids, windows, size, window, stride, patch, pad)
    result = torch.full_like(expected, torch.nan)
    for rows, columns, tile in compose(grids, windows, size, tile_bytes=20_000):
        result[:, rows, columns] = tile.movedim(-1, 0)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tile_bytes", [1, 3000, 10_000, 50_000])
def test_tiles_cover_every_pixel_once_and_are_small(tile_bytes):
    windows = SlidingWindow.of(60, 70, 48, 24, 8, "none")
    grids = torch.rand(len(windows.origins), 2, 6, 6, generator=torch.Generator().manual_seed(3))
    ((*_, whole),) = compose(grids, windows, (75, 90), tile_bytes=2**20)
    covered, joined = torch.zeros(75, 90), torch.zeros_like(whole)
    for rows, columns, tile in compose(grids, windows, (75, 90), tile_bytes):
        assert tile.nbytes <= max(tile_bytes, 2 * 4 * 64)
        covered[rows, columns] += 1
        joined[rows, columns] = tile
    assert (covered == 1).all()
    torch.testing.assert_close(joined, whole, rtol=0, atol=1e-6)


def test_no_thread_waits_for_another_in_a_tile(monkeypatch):
    windows, threads, product = SlidingWindow.of(60, 70, 48, 24, 8, "none"), set(), torch.mm

    def watched(*arguments, **options):
        threads.add(torch.get_num_threads())
        return product(*arguments, **options)

    before = torch.get_num_threads()
    monkeypatch.setattr(torch, "mm", watched)
    try:
        torch.set_num_threads(2)
        for _ in compose(torch.rand(len(windows.origins), 2, 6, 6), windows, (75, 90), 3000):
            assert torch.get_num_threads() == 2  # what is done with the tile may use all threads
    finally:
        torch.set_num_threads(before)
    assert threads == {1}


@pytest.mark.parametrize("contiguous", [False, True])
def test_composed_maps_are_all_tiles_in_the_layout_asked_for(contiguous):
    windows = SlidingWindow.of(60, 70, 48, 24, 8, "none")
    grids = torch.rand(len(windows.origins), 900, 6, 6, generator=torch.Generator().manual_seed(3))  # several tiles
    maps, tiles = composed_maps(grids, windows, (75, 90), contiguous), list(compose(grids, windows, (75, 90)))
    assert len(tiles) > 1
    assert (maps if contiguous else maps.movedim(0, -1)).is_contiguous()
    for rows, columns, tile in compose(grids, windows, (75, 90)):
        assert torch.equal(maps[:, rows, columns].movedim(0, -1), tile)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("pad", ["none", "center", "corner", "corner_black"])
def test_rows_of_the_matrix_sum_to_one(length, pad):
    side = axis(length, 48, 24, 16, pad)
    matrix, order = axis_matrix(side, side.cells, 83)
    torch.testing.assert_close(matrix.sum(1), torch.ones(83))
    assert ((matrix != 0).sum(1) <= 8).all()
    assert sorted(order.tolist()) == list(range(matrix.shape[1]))
