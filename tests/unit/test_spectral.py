"""Spectra, pairs of heads and normalised cuts against plain dense computations."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch

from ovss_bench.ops import spectral
from ovss_bench.ops.spectral import best_pairs, cut_vector, first_sign, graph_spectrum, repeated_cuts
from parity.seeded import feature_map


def features(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tokens", [5, 40])
def test_the_spectrum_is_that_of_the_dense_graph(tokens):
    x = features(2, 3, tokens, 16)
    values, vectors = graph_spectrum(x)
    graph = (x @ x.transpose(-2, -1)).double() / 4
    expected = torch.linalg.eigvalsh(graph).flip(-1)[..., :16]
    assert values.shape == (2, 3, 16)
    torch.testing.assert_close(values[..., : min(tokens, 16)], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close((vectors * values[..., None, :]) @ vectors.transpose(-2, -1), graph, atol=1e-5, rtol=0)
    left = slice(0, min(tokens, 16))
    unit = vectors[..., left].transpose(-2, -1) @ vectors[..., left]
    torch.testing.assert_close(unit, torch.eye(min(tokens, 16)).double().expand_as(unit))


def test_a_truncated_spectrum_is_the_best_approximation():
    x = features(30, 12)
    values, vectors = graph_spectrum(x)
    u, s, v = torch.linalg.svd((x @ x.T).double() / 12**0.5)
    expected = (u[:, :4] * s[:4]) @ v[:4]
    torch.testing.assert_close((vectors[:, :4] * values[:4]) @ vectors[:, :4].T, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_the_first_of_the_cheapest(seed):
    """Small whole numbers, so that ties are frequent."""
    cost = np.random.RandomState(seed).randint(0, 4, (5, 5)).astype(float)
    every = [(sum(cost[i, c] for i, c in enumerate(columns)), columns) for columns in itertools.permutations(range(5))]
    assert tuple(best_pairs(cost)) == min(every)[1]


def test_rounding_does_not_choose_the_pairs():
    one, other = np.array([0.1, 0.4, 0.7]), np.array([0.3, 0.2, 0.9])
    cost = one[:, None] + other  # every assignment costs the same
    for noise in (0, 1e-8, -1e-8):
        assert best_pairs(cost + noise * np.eye(3)) == [0, 1, 2]


def graph(grid, tau=0.3, seed=41):
    unit = torch.nn.functional.normalize(feature_map(seed, 16, *grid)[0].flatten(1).T.double(), dim=-1)
    return torch.where(unit @ unit.T > tau, 1.0, 1e-5).double()


@pytest.mark.parametrize("dense", [1024, 10])
def test_the_cut_is_the_second_generalised_eigenvector(dense, monkeypatch):
    monkeypatch.setattr(spectral, "DENSE", dense)
    affinity = torch.stack([graph((9, 13)), graph((9, 13), seed=7)])
    found = cut_vector(affinity)
    for a, e in zip(affinity.numpy(), found, strict=True):
        d = np.diag(a.sum(1))
        expected = torch.from_numpy(scipy.linalg.eigh(d - a, d)[1][:, 1])
        expected *= first_sign(expected)
        torch.testing.assert_close(e, expected, atol=1e-7, rtol=0)
        assert float(e @ torch.from_numpy(d) @ e) == pytest.approx(1)


def test_the_sign_is_that_of_the_first_large_entry():
    vectors = torch.tensor([[0.1, -0.5, 0.5 + 1e-8], [0.1, 0.2, -0.4], [0.0, 0.0, 0.0]]).double()
    assert first_sign(vectors).tolist() == [-1, -1, 0]


def blocks():
    """Tokens of a grid of 6 x 9 with three kinds of vectors, in 2, 3 and 4 columns from the left."""
    return torch.eye(3).repeat_interleave(torch.tensor([2, 3, 4]), 0).repeat(6, 1), (6, 9)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_cut_follows_the_parts_of_a_clear_scene(sign):
    (mask,) = repeated_cuts(*blocks(), count=1, sign=lambda number: sign)
    assert torch.equal(mask.any(0), mask.all(0))
    parts = [set(part.tolist()) for part in mask[0].split([2, 3, 4])]
    assert all(len(part) == 1 for part in parts)
    assert {True} in parts
    assert {False} in parts


@pytest.mark.parametrize("dense", [1024, 10])
def test_cuts_are_connected_disjoint_and_deterministic(dense, monkeypatch):
    from skimage.measure import label

    monkeypatch.setattr(spectral, "DENSE", dense)
    features = feature_map(43, 16, 12, 14)[0].flatten(1).T
    masks = repeated_cuts(features, (12, 14), count=4)
    assert torch.equal(repeated_cuts(features.clone(), (12, 14), count=4), masks)
    assert masks.sum(0).max() == 1
    assert all(label(mask.numpy(), connectivity=1).max() == 1 for mask in masks)


def test_a_part_with_three_corners_is_reversed():
    """A small object in a plain surrounding, whichever of the two the sign makes positive."""
    features = torch.tensor([[1.0, 0.0]]).repeat(36, 1)
    features[[14, 15, 20, 21]] = torch.tensor([0.0, 1.0])
    for sign in (1.0, -1.0):
        (first,) = repeated_cuts(features, (6, 6), count=1, sign=lambda number, sign=sign: sign)
        assert first.flatten().nonzero()[:, 0].tolist() == [14, 15, 20, 21]


def test_few_tokens_are_not_cut():
    assert repeated_cuts(torch.eye(4), (2, 2)).shape == (0, 2, 2)
