"""The dense CRF: its lattice against a plain one and against exact Gaussians, its inference against plain mean-field."""

import math

import numpy as np
import pytest
import torch

from ovss_bench.ops.crf import Lattice, dense_crf, positions, simplices


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_splats(point, d):
    """The corners and weights of one point, by the loops of Adams et al."""
    elevated, below = [0.0] * (d + 1), 0.0
    for j in range(d, 0, -1):
        value = point[j - 1] * math.sqrt(2 / 3) * (d + 1) / math.sqrt((j + 1) * j)
        elevated[j] = below - j * value
        below += value
    elevated[0] = below
    nearest = [round(x / (d + 1)) * (d + 1) for x in elevated]
    rank = [0] * (d + 1)
    for i in range(d + 1):
        for j in range(i + 1, d + 1):
            rank[i if elevated[i] - nearest[i] < elevated[j] - nearest[j] else j] += 1
    excess = sum(nearest) // (d + 1)
    for i in range(d + 1):
        rank[i] += excess
        turn = (rank[i] < 0) - (rank[i] > d)
        rank[i] += turn * (d + 1)
        nearest[i] += turn * (d + 1)
    weights = [0.0] * (d + 2)
    for i in range(d + 1):
        value = (elevated[i] - nearest[i]) / (d + 1)
        weights[d - rank[i]] += value
        weights[d + 1 - rank[i]] -= value
    weights[0] += 1 + weights[d + 1]
    corners = [tuple(nearest[i] + (k if rank[i] <= d - k else k - d - 1) for i in range(d)) for k in range(d + 1)]
    return list(zip(corners, weights[: d + 1], strict=True))


def plain_filter(points, values):
    """Splat, blur and slice with a dictionary."""
    d, known = len(points[0]), {}
    splats = [plain_splats(point, d) for point in points]
    for splat, value in zip(splats, values, strict=True):
        for corner, weight in splat:
            known[corner] = known.get(corner, 0) + weight * value
    for j in range(d + 1):
        step = [1 - (d + 1) * (i == j) for i in range(d)]
        known = {
            corner: value
            + sum(known.get(tuple(c + sign * s for c, s in zip(corner, step, strict=True)), 0 * value) for sign in (1, -1)) / 2
            for corner, value in known.items()
        }
    return np.stack([sum(weight * known[corner] for corner, weight in splat) for splat in splats])


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_lattice_is_a_plain_one(d):
    features, values = 2 * randn(60, d, seed=d), randn(60, 3, seed=9)
    expected = plain_filter(features.double().tolist(), values.double().numpy())
    np.testing.assert_allclose(Lattice(features).filtered(values).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_weights_are_barycentric():
    keys, weights = simplices(3 * randn(500, 4))
    assert keys.shape == (500, 5, 4)
    assert (weights >= -1e-6).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(500))


@pytest.mark.parametrize(("side", "spread", "most"), [(30, 2.0, 0.1), (24, 1.0, 0.25)])
def test_the_filter_is_close_to_a_gaussian(side, spread, most):
    """Relative to the sums of the kernel, as the CRF uses it; on whole pixels the lattice is coarse."""
    places = positions(side, side) / spread
    exact = (-torch.cdist(places, places).square() / 2).exp()
    found = Lattice(places).filtered(torch.eye(side**2))
    kernels = [kernel / kernel.sum(1, keepdim=True).sqrt() / kernel.sum(0).sqrt() for kernel in (exact, found)]
    values = randn(side**2, 4, seed=3).abs()
    one, other = (kernel @ values for kernel in kernels)
    assert ((one - other).abs() / one).max() < most
    assert ((one - other).abs() / one).mean() < 0.05


def test_inference_is_plain_mean_field():
    probabilities = randn(3, 9, 11, seed=1).softmax(0)
    image = (40 * randn(9, 11, 3, seed=2) + 128).clamp(0, 255)
    places = positions(9, 11)
    appearance = torch.cat([places / 67, image.reshape(-1, 3) / 3], 1)
    kernels = []
    for features, weight in ((places, 3), (appearance, 4)):
        kernel = torch.from_numpy(plain_filter(features.double().tolist(), np.eye(99)))
        kernels.append(weight * kernel / kernel.sum(1, keepdim=True).sqrt() / kernel.sum(1).sqrt())
    unary = -probabilities.double().flatten(1).T.log()
    belief = (-unary).softmax(1)
    for _ in range(4):
        belief = (sum(kernel @ belief for kernel in kernels) - unary).softmax(1)
    found = dense_crf(probabilities, image, steps=4)
    torch.testing.assert_close(found, belief.T.reshape(3, 9, 11).float(), rtol=1e-4, atol=1e-5)


def test_labels_follow_the_edges_of_the_image():
    """A noisy guess about two colours becomes their border."""
    image = torch.zeros(24, 30, 3)
    image[:, 13:] = torch.tensor([200.0, 60, 30])
    truth = torch.arange(30) >= 13
    guess = (0.5 + 0.2 * (truth.float() * 2 - 1) + 0.25 * randn(24, 30, seed=4)).clamp(0.02, 0.98)
    before = torch.stack([1 - guess, guess])
    after = dense_crf(before, image)
    torch.testing.assert_close(after.sum(0), torch.ones(24, 30))
    wrong = [((planes.argmax(0) == 1) != truth).float().mean() for planes in (before, after)]
    assert wrong[0] > 0.1
    assert wrong[1] == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 4)])
def test_degenerate_images(size):
    probabilities = torch.zeros(2, *size)
    probabilities[1] = 1
    found = dense_crf(probabilities, torch.full((*size, 3), 77.0))
    assert found.isfinite().all()
    assert (found.argmax(0) == 1).all()
