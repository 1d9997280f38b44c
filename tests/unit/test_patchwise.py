"""Windows joined patch by patch: means over the windows that see a patch, or a pair of patches."""

import itertools

import torch
import torch.nn.functional as F

from ovss_bench.ops.patchwise import join_windows


def image(height, width):
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(4))


def run_windows(pixels):
    """A stand-in for a method: mean colours of the patches, and products of pairs of patches."""
    cells = F.avg_pool2d(pixels, 8)
    flat = cells.flatten(2)
    return torch.stack([cells, cells**2]), flat.transpose(1, 2).square() @ flat.square()


def test_joined_windows_are_means_over_visits(monkeypatch):
    monkeypatch.setattr("ovss_bench.ops.patchwise.WINDOWS_PER_PASS", 2)
    pixels = image(43, 56)
    maps, between = join_windows(pixels, 24, 16, 8, run_windows)
    total, count = torch.zeros(2, 3, 5, 7), torch.zeros(5, 7)
    pairs, shown = torch.zeros(5, 7, 5, 7), torch.zeros(5, 7, 5, 7)
    for y, x in itertools.product((0, 2), (0, 2, 4)):
        own, among = run_windows(pixels[None, :, 8 * y : 8 * y + 24, 8 * x : 8 * x + 24])
        total[:, :, y : y + 3, x : x + 3] += own[:, 0]
        count[y : y + 3, x : x + 3] += 1
        cells = [(y + i, x + j) for i in range(3) for j in range(3)]
        for (a, one), (b, other) in itertools.product(enumerate(cells), repeat=2):
            pairs[(*one, *other)] += among[0, a, b]
            shown[(*one, *other)] += 1
    pairs = (pairs / (shown + 1e-5)).view(35, 35)
    torch.testing.assert_close(maps, total / count)
    torch.testing.assert_close(between, pairs / pairs.sum(1, keepdim=True))


def test_a_window_of_the_whole_image_is_joined_to_itself():
    pixels = image(48, 64)
    maps, between = join_windows(pixels, 64, 32, 8, run_windows)
    own, among = run_windows(pixels[None])
    torch.testing.assert_close(maps, own[:, 0])
    torch.testing.assert_close(between, among[0] / among[0].sum(1, keepdim=True))
