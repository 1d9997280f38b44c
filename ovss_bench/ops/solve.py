"""Linear systems of graphs, solved by conjugate gradients (PEARL, LPOSS)."""

from collections.abc import Callable

import torch
from torch import Tensor

from .compose import in_cache


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
    """The approximate solution of A z = `right` after at most `iterations`, for a symmetric positive definite `operator`
    z -> A z.

    `over`: the dimensions of the inner products, the first among them; the other dimensions index independent systems, each
    with its own step sizes. A system stops once the norm of its residual is at most `tolerance` times that of its right-hand
    side. `start` defaults to 0. `epsilon` is added to the denominators of both step sizes. `operator` may return the same
    memory each time.

    Methods stop long before convergence, so their results depend on the recurrence: the plain one of Hestenes and Stiefel,
    without a preconditioner.
    """
    residual = right.clone() if start is None else right - operator(start)
    solution = torch.zeros_like(right) if start is None else start.clone()
    direction = residual.clone()
    square = _inner(residual, residual, over)
    enough = tolerance**2 * _inner(right, right, over)
    for number in range(iterations):
        running = square > enough  # a mask, as a condition would synchronise with a GPU
        product = operator(direction)
        step = torch.where(running, square / (_inner(direction, product, over) + epsilon), 0)
        solution.addcmul_(direction, step)
        if number == iterations - 1:
            break
        residual.addcmul_(product, step, value=-1)
        before, square = square, _inner(residual, residual, over)
        direction.mul_(torch.where(running, square / (before + epsilon), 0)).add_(residual)
    return solution


def _inner(one: Tensor, other: Tensor, over: tuple[int, ...]) -> Tensor:
    """Inner products, summed in float64, so that the order, which depends on the number of threads, has no effect. Computed in
    parts of the first dimension, as allocating all products and their copy in float64 takes longer than the sum."""
    length = in_cache(4 * one[0].numel(), like=one)
    pairs = zip(one.split(length), other.split(length), strict=True)
    return torch.stack([(x * y).sum(over, keepdim=True, dtype=torch.float64) for x, y in pairs]).sum(0).to(one.dtype)
