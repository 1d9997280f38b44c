"""Smoothing of score maps along the edges of an image by a Laplacian system on a small grid (PEARL)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .enlarge import resized_maps
from .solve import conjugate_gradients


def laplacian_smoothing(
    maps: Tensor,
    guide: Tensor,
    gains: Tensor,
    grid: int = 80,
    sharpness: float = 5.0,
    floor: float = 0.05,
    iterations: int = 25,
) -> Tensor:
    """Cosines (Q, H, W) and the image (3, H, W), normalised for the network -> cosines (Q, H, W), as in pearl/prop.py.

    Both are averaged to about `grid` cells per side, where (C + L) Z = C X is solved for the averaged cosines X: C is the
    confidence of a cell, at least `floor`, and L the Laplacian of the graph of neighbouring cells, whose weights decrease with
    the difference in grey, at the rate `sharpness`. `gains` (Q,): see `text_gains`.

    `iterations` of conjugate gradients start from X, without a convergence test, with one step size for all queries. Rows and
    columns beyond the last whole cell are dropped, and the result is stretched over them, as in the official code.
    """
    size = maps.shape[1:]
    cells = [max(1, round(side / grid)) for side in size]
    start, guide = (F.avg_pool2d(x, cells) for x in (maps, guide))
    probabilities = start.softmax(0)  # without logit scale, so nearly uniform, as in the official code
    confidence = certainty(probabilities, gains, floor)
    down, across = (neighbour_weights(guide, probabilities, gains, sharpness, axis) for axis in (1, 2))

    def operator(z: Tensor) -> Tensor:
        return confidence * z + laplacian(z, down, across)

    solution = conjugate_gradients(operator, confidence * start, start, iterations=iterations, over=(0, 1, 2), epsilon=1e-12)
    return resized_maps(solution, size)


def text_gains(text: Tensor, temperature: float = 0.5, boost: float = 10.0) -> Tensor:
    """Unit text features (Q, E) -> the diagonal (Q,) of the softmax of their similarities plus `boost` times the identity. The
    paper multiplies by the matrix, the official code only by its diagonal: all gains are close to 1."""
    similarity = (text @ text.T / temperature).softmax(-1).diagonal()
    return (similarity + boost) / (1 + boost + 1e-6)


def certainty(probabilities: Tensor, gains: Tensor, floor: float) -> Tensor:
    """Probabilities (Q, h, w) -> the confidence C of each cell (h, w)."""
    best = probabilities.amax(0).clamp(min=floor)
    return best.square() * (1 + agreement(probabilities, probabilities, gains))


def neighbour_weights(guide: Tensor, probabilities: Tensor, gains: Tensor, sharpness: float, axis: int) -> Tensor:
    """The edge weights between cells of the guide (3, h, w) and the next ones along `axis`: 1 (h-1, w) or 2 (h, w-1)."""
    red, green, blue = guide
    difference = (0.299 * red + 0.587 * green + 0.114 * blue).diff(dim=axis - 1).abs()
    similar = torch.exp(-sharpness * difference / (difference.mean() + 1e-6))
    count = probabilities.shape[axis] - 1
    agreed = agreement(probabilities.narrow(axis, 0, count), probabilities.narrow(axis, 1, count), gains)
    return (similar * (1 + agreed)).clamp(0, 1)


def agreement(one: Tensor, other: Tensor, gains: Tensor) -> Tensor:
    """Probabilities (Q, h, w) of pairs of cells -> the agreement of each pair (h, w), 0 to 1."""
    return (gains[:, None, None] * one * other).sum(0).clamp(0, 1)


def laplacian(z: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """For each cell of (Q, h, w) the weighted sum of its differences from its neighbours, with weights (h-1, w), (h, w-1)."""
    vertical, horizontal = down * z.diff(dim=1), across * z.diff(dim=2)
    result = torch.zeros_like(z)
    result[:, 1:] += vertical
    result[:, :-1] -= vertical
    result[:, :, 1:] += horizontal
    result[:, :, :-1] -= horizontal
    return result
