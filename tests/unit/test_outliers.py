"""Outlying patches: local outlier factors, repair, and means over similar patches."""

import pytest
import torch

from ovss_bench.ops.outliers import aggregate, local_outlier_factors, mend


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("count", "neighbours"), [(60, 30), (16, 15), (2, 1)])
def test_local_outlier_factors_equal_the_official_loop(count, neighbours):
    """Reach distances max(D_ij, K_i) over the neighbours, densities from their mean, ratios of densities."""
    patches = randn(2, count, 24)
    actual = local_outlier_factors(patches, 30)
    for x, factors in zip(patches, actual, strict=True):
        distances = (x[:, None] - x).square().sum(-1)
        order = distances.argsort(1)[:, 1 : neighbours + 1]
        nearest = distances.gather(1, order)
        density = neighbours / torch.maximum(nearest, nearest[:, -1:]).mean(1)
        expected = torch.stack([(density[order[i]] / density[i]).mean() for i in range(count)])
        torch.testing.assert_close(factors, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("grid", [(5, 7), (7, 5), (1, 6), (1, 1)])
def test_repair_equals_the_plain_loop(grid):
    patches, outlying = randn(2, grid[0] * grid[1], 3), randn(2, grid[0] * grid[1], seed=1) > 0
    expected = patches.clone()
    for b in range(2):
        for i in range(patches.shape[1]):
            y, x = divmod(i, grid[1])
            around = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
            around = [v * grid[1] + u for v, u in around if 0 <= v < grid[0] and 0 <= u < grid[1]]
            sound = [j for j in around if not outlying[b, j]]
            if outlying[b, i] and sound:
                expected[b, i] = patches[b, sound].mean(0)
    torch.testing.assert_close(mend(patches, outlying, grid), expected)


def test_an_outlier_without_sound_neighbours_stays_or_gets_a_value():
    patches = randn(1, 12, 3)
    outlying = torch.ones(1, 12, dtype=torch.bool)
    assert torch.equal(mend(patches, outlying, (3, 4)), patches)
    assert torch.equal(mend(patches, outlying, (3, 4), isolated=0.5), torch.full((1, 12, 3), 0.5))


def test_only_isolated_patches_get_the_value_for_them():
    outlying = torch.tensor([[True, True, False, False, False, True]])
    found = mend(torch.tensor([[[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]]]), outlying, (1, 6), isolated=0.0)
    assert found.flatten().tolist() == [0, 3, 3, 4, 5, 5]


def test_aggregation_leaves_out_what_is_less_similar():
    similarity = torch.tensor([[[1.0, 0.5, 0.39], [0.5, 1.0, -1.0], [0.39, -1.0, 1.0]]])
    patches = torch.tensor([[[3.0], [9.0], [5.0]]])
    torch.testing.assert_close(aggregate(patches, similarity, 0.4), torch.tensor([[[5.0], [7.0], [5.0]]]), rtol=1e-5, atol=0)
