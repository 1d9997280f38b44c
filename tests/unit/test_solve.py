"""Conjugate gradients: against a dense solver, and against the recurrence for one system at a time."""

import pytest
import torch

from ovss_bench.ops.solve import conjugate_gradients


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def matrix():
    """Symmetric and positive definite (12, 12)."""
    root = randn(12, 12)
    return root @ root.T / 12 + 0.5 * torch.eye(12, dtype=torch.float64)


def recurrence(matrix, right, start, iterations, tolerance=0.0, epsilon=0.0):
    """One system (n,), written out."""
    x, r = start, right - matrix @ start
    p = r
    for _ in range(iterations):
        if r.norm() <= tolerance * right.norm():
            break
        step = r @ r / (p @ matrix @ p + epsilon)
        x, rest = x + step * p, r - step * (matrix @ p)
        p, r = rest + rest @ rest / (r @ r + epsilon) * p, rest
    return x


@pytest.mark.parametrize("over", [(0,), (0, 1)])
@pytest.mark.parametrize("start", [None, randn(12, 3, seed=2)])
def test_enough_iterations_solve_the_system(matrix, over, start):
    right = randn(12, 3, seed=1)
    found = conjugate_gradients(lambda z: matrix @ z, right, start, iterations=40, over=over)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right))


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_columns_have_step_sizes_of_their_own(matrix, iterations):
    right = randn(12, 3, seed=1)
    found = conjugate_gradients(lambda z: matrix @ z, right, iterations=iterations, over=(0,))
    expected = [recurrence(matrix, column, torch.zeros_like(column), iterations) for column in right.T]
    torch.testing.assert_close(found, torch.stack(expected, 1))


@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_one_step_size_for_all_columns(matrix, iterations):
    """The same as one system with the matrix in each diagonal block."""
    right, start = randn(12, 3, seed=1), randn(12, 3, seed=2)
    large = torch.block_diag(*3 * [matrix])
    found = conjugate_gradients(lambda z: matrix @ z, right, start, iterations=iterations, over=(0, 1), epsilon=1e-2)
    expected = recurrence(large, right.T.flatten(), start.T.flatten(), iterations, epsilon=1e-2)
    torch.testing.assert_close(found, expected.view(3, 12).T)


def test_each_column_stops_at_its_tolerance(matrix):
    """One column needs one iteration, as it is an eigenvector, one none, as it is 0, the others all."""
    right = torch.cat([randn(12, 2, seed=1), torch.linalg.eigh(matrix)[1][:, :1], torch.zeros(12, 1).double()], 1)
    for tolerance in (0.3, 0.05, 1e-3):
        found = conjugate_gradients(lambda z: matrix @ z, right, iterations=7, over=(0,), tolerance=tolerance)
        expected = [recurrence(matrix, column, torch.zeros_like(column), 7, tolerance) for column in right.T]
        torch.testing.assert_close(found, torch.stack(expected, 1))
    assert torch.equal(found[:, 3], torch.zeros(12).double())
