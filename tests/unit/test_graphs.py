"""Graphs over patches and pixels against dense matrices, edge by edge, and propagation against dense solutions."""

import math

import pytest
import torch
import torch.nn.functional as F

from ovss_bench.ops import graphs
from ovss_bench.ops.graphs import lab, patch_affinity, pixel_matrix, pixel_product, propagate_patches, propagate_pixels
from ovss_bench.ops.solve import conjugate_gradients
from parity.seeded import rgb_image


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def normalised(weights):
    """D^-1/2 W D^-1/2, entry by entry."""
    degrees = [float(row.sum()) or 1.0 for row in weights]
    result = torch.zeros_like(weights)
    for i, row in enumerate(weights):
        for j, weight in enumerate(row):
            result[i, j] = weight / math.sqrt(degrees[i] * degrees[j])
    return result


def patches(count=14):
    places = 5 * randn(count, 2, seed=1).round()
    return F.normalize(randn(count, 4), dim=-1), places


@pytest.mark.parametrize(("k", "power", "nodes_per_pass"), [(5, 1.0, 4), (5, 2.0, 1024), (400, 1.0, 5)])
def test_patches_are_joined_to_their_nearest(k, power, nodes_per_pass, monkeypatch):
    monkeypatch.setattr(graphs, "NODES_PER_PASS", nodes_per_pass)
    features, places = patches()
    weights = torch.zeros(14, 14)
    for i in range(14):
        cosines = [float(features[i] @ features[j]) for j in range(14)]
        for j in sorted(range(14), key=lambda j: -cosines[j])[:k]:
            distance = math.dist(places[i].tolist(), places[j].tolist())
            weights[i, j] = max(cosines[j], 0) ** 3 * math.exp(-0.01 * distance**power)
    weights = weights + weights.T
    weights.fill_diagonal_(0)
    torch.testing.assert_close(patch_affinity(features, places, k, 3.0, 0.01, power), normalised(weights))


def test_a_patch_without_edges_keeps_its_scores():
    """Its nearest is itself, and all others have negative cosines."""
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [-1.0, -0.1]])
    affinity = patch_affinity(F.normalize(features, dim=-1), torch.zeros(3, 2), 3, 3.0, 0.01, 1.0)
    assert torch.equal(affinity[0], torch.zeros(3))
    scores = randn(3, 5)
    found = propagate_patches(scores, affinity, 0.95, 10, 1e-6)
    torch.testing.assert_close(found[0], scores[0])
    assert not torch.allclose(found[1:], scores[1:])


def test_many_steps_over_patches_solve_the_system():
    affinity, scores = patch_affinity(*patches(), 5, 3.0, 0.01, 1.0), randn(14, 6, seed=2)
    expected = torch.linalg.solve(torch.eye(14) - 0.95 * affinity, scores)
    torch.testing.assert_close(propagate_patches(scores, affinity, 0.95, 100, 1e-9), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(propagate_patches(scores, affinity, 0.95, 3, 1e-9), expected, rtol=1e-4, atol=1e-4)


def dense_pixels(image, reach, tau):
    """S (H*W, H*W) float64, pair by pair."""
    colours = lab(image).double()
    _, height, width = colours.shape
    weights = torch.zeros(height * width, height * width, dtype=torch.float64)
    for y, x, dy, dx in torch.cartesian_prod(*map(torch.arange, (height, width, 2 * reach + 1, 2 * reach + 1))).tolist():
        other_y, other_x = y + dy - reach, x + dx - reach
        if (dy, dx) != (reach, reach) and 0 <= other_y < height and 0 <= other_x < width:
            difference = colours[:, y, x] - colours[:, other_y, other_x]
            weights[y * width + x, other_y * width + other_x] = math.exp(-float(difference.norm()) / tau)
    root = weights.sum(1).where(weights.sum(1) > 0, 1).rsqrt()
    return root[:, None] * weights * root


SIZES = [((9, 7), 1, 0.5), ((7, 11), 2, 0.3), ((1, 5), 3, 0.3), ((5, 3), 6, 0.3), ((1, 1), 6, 0.1)]


@pytest.mark.parametrize(("size", "reach", "tau"), SIZES)
def test_a_product_over_pixels_equals_that_of_a_dense_matrix(size, reach, tau, monkeypatch):
    """Rows of the image taken together may be fewer or more than the reach."""
    image, rows = rgb_image(3, *size), randn(size[0] * size[1], 3)
    matrix, products = pixel_matrix(lab(image), reach, tau, 0.9), []
    for together in (1, 4, 100):
        monkeypatch.setitem(graphs.ROWS_PER_PASS, "cpu", together)
        products.append(pixel_product(matrix, rows, size, reach, torch.empty_like(rows)))
        torch.testing.assert_close(products[-1], rows - 0.9 * dense_pixels(image, reach, tau).float() @ rows)
        assert torch.equal(products[-1], products[0])


@pytest.mark.parametrize("alpha", [0.5, 0.95])
def test_a_few_steps_equal_those_with_dense_matrices_in_float64(alpha):
    """As in the official code, whose iterates are the result."""

    def dense(matrix, rows):
        return conjugate_gradients(lambda z: z - alpha * (matrix @ z), rows.double(), iterations=4, tolerance=1e-6, over=(0,))

    image, maps = rgb_image(3, 8, 9), randn(5, 8, 9)
    expected = dense(dense_pixels(image, 2, 0.3), maps.flatten(1).T).T.view(5, 8, 9)
    found = propagate_pixels(maps, image, tau=0.3, r=5, alpha=alpha, iterations=4)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    affinity, scores = patch_affinity(*patches(), 5, 3.0, 0.01, 1.0), randn(14, 6, seed=2)
    found = propagate_patches(scores, affinity, alpha, 4, 1e-6)
    torch.testing.assert_close(found, dense(affinity.double(), scores).float())


def test_maps_are_propagated_over_pixels_each_by_itself(monkeypatch):
    monkeypatch.setattr(graphs, "MAPS_PER_PASS", 2)
    image, maps = rgb_image(3, 8, 9), randn(5, 8, 9)
    found = propagate_pixels(maps, image, tau=0.3, r=5, iterations=200)
    matrix = torch.eye(72, dtype=torch.float64) - 0.95 * dense_pixels(image, 2, 0.3)
    expected = torch.linalg.solve(matrix, maps.double().flatten(1).T).T.view(5, 8, 9).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for one, of_all in zip(maps, found, strict=True):
        torch.testing.assert_close(propagate_pixels(one[None], image, tau=0.3, r=5, iterations=200)[0], of_all)


def test_lab_of_known_colours():
    image = torch.tensor([[[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255]]], dtype=torch.uint8).numpy()
    expected = torch.tensor([[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]])
    torch.testing.assert_close(lab(image)[:, 0].T * torch.tensor([100, 128, 128]), expected, rtol=0, atol=0.02)
