"""Linear systems of graphs, solved by conjugate gradients (PEARL, LPOSS)."""

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(
    operator: Callable[[Tensor], Tensor],
    right: Tensor,
    start: Tensor | None = None,
    *,
    iterations: int,
    over: tuple[int, ...],
    tolerance: float = 0.0,
    epsilon: float = 0.0,
) -> Tensor:
    """The iterate of A z = `right` after at most `iterations`, for a symmetric positive definite `operator` z -> A z.

    `over`: the dimensions of the inner products. The entries of the others are systems of their own, each with its own step
    sizes; one stays as it is once the norm of its residual is at most `tolerance` times that of its right side. `start`: by
    default 0. `epsilon` is added to the denominators of both step sizes.

    Methods stop long before convergence, so that the iterates define their results: these are those of the plain recurrence
    (Hestenes and Stiefel), without preconditioner.
    """
    residual = right.clone() if start is None else right - operator(start)
    solution = torch.zeros_like(right) if start is None else start.clone()
    direction = residual.clone()
    square = _inner(residual, residual, over)
    enough = tolerance**2 * _inner(right, right, over)
    for _ in range(iterations):
        running = square > enough  # on a GPU, looking at it would wait
        product = operator(direction)
        step = torch.where(running, square / (_inner(direction, product, over) + epsilon), 0)
        solution += step * direction
        residual -= step * product
        before, square = square, _inner(residual, residual, over)
        direction.mul_(torch.where(running, square / (before + epsilon), 0)).add_(residual)
    return solution


def _inner(one: Tensor, other: Tensor, over: tuple[int, ...]) -> Tensor:
    """Added up in float64: the order of the sum, which depends on the number of threads, then has no effect."""
    return (one * other).sum(over, keepdim=True, dtype=torch.float64).to(one.dtype)
