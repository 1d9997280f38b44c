"""Fusion of experts (FLOSS, arXiv 2504.10487, section 4). An expert is a classifier of all queries, made for one of them. It
fires where it prefers that query to all others. There the most confident of the experts that fire decides; elsewhere the usual
classifier does.

Shapes: B windows, N patches on a grid (h, w), Q queries, E channels; the size of a window is (H, W).
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .device import kept


def fused_logits(
    usual: Tensor, expert: Callable[[int], Tensor], queries: Iterable[int], scale: float, size: tuple[int, int]
) -> Tensor:
    """Logits (B, Q, h, w) of the usual classifier, and a function that returns those of the expert of a query -> the fused
    probabilities (B, Q, H, W). Probabilities are the softmax of `scale` times the logits."""

    def probabilities(window: Tensor) -> Tensor:
        return F.interpolate((scale * window).softmax(1), size, mode="bilinear")

    result = torch.cat([probabilities(window) for window in usual.split(1)])
    best = torch.zeros_like(result[:, 0])
    for query in queries:
        windows = zip(expert(query).split(1), result.split(1), best.split(1), strict=True)
        for window, decided, confidence in windows:  # one by one: the planes of all queries are large
            _let_fire(query, probabilities(window), decided, confidence, slice(None))
    return result


def fused_cosines(
    features: Tensor,
    grid: tuple[int, int],
    classifiers: Tensor,
    queries: Sequence[int],
    scale: float,
    size: tuple[int, int],
) -> Tensor:
    """`fused_logits` for the cosines of unit features (B, N, E) with `classifiers` (1 + Q, Q, E), the usual one and the expert
    of each query. A cell holds the pixels between the centres of four patches, its corners. An expert is evaluated only in the
    cells where it may fire."""
    corners, weights, rows, columns = cells_of(grid, size, like=features)
    count = len(corners)

    def probabilities(classifier: Tensor, places: Tensor) -> Tensor:
        """(n, Q, pixels of a cell) in some of the cells of all windows, numbered window by window."""
        windows, cells = places // count, places % count
        cosines = features[windows[:, None], corners[cells]] @ classifier.T
        return (scale * cosines).softmax(-1).transpose(1, 2) @ weights[cells].flatten(2)

    result = probabilities(classifiers[0], torch.arange(len(features) * count, device=features.device))
    best = torch.zeros_like(result[:, 0])
    for query, places in zip(queries, where_true(may_fire(features, grid, classifiers, queries)), strict=True):
        _let_fire(query, probabilities(classifiers[1 + query], places), result, best, places)
    cells = result.unflatten(2, weights.shape[2:]).unflatten(0, (-1, grid[0] + 1, grid[1] + 1))
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)[:, :, rows[:, None], columns]


def _let_fire(query: int, of_expert: Tensor, result: Tensor, best: Tensor, places: Tensor | slice) -> None:
    """Writes the probabilities (n, Q, ...) of an expert to its `places` in `result`, and its confidence to those in `best`,
    where it fires and is more confident than all experts before it."""
    confidence = of_expert[:, query]
    fires = (of_expert.argmax(1) == query) & (confidence > best[places])  # of equal ones the first stays
    best[places] = torch.where(fires, confidence, best[places])
    result[places] = torch.where(fires[:, None], of_expert, result[places])


def may_fire(features: Tensor, grid: tuple[int, int], classifiers: Tensor, queries: Sequence[int]) -> Tensor:
    """(queries, B * cells) bool: False where some other query beats the expert's at all corners of a cell, and so between them,
    as softmax and interpolation keep the order."""
    cells = len(features) * (grid[0] + 1) * (grid[1] + 1)
    possible = features.new_zeros(len(queries), cells, dtype=torch.bool)
    for row, query in zip(possible, queries, strict=True):
        cosines = features @ classifiers[1 + query].T
        lead = (cosines[..., query : query + 1] - cosines).transpose(1, 2).unflatten(2, grid)
        row.copy_((F.max_pool2d(lead, 2, 1, 1).amin(1) >= 0).flatten())
    return possible


def where_true(rows: Tensor) -> Sequence[Tensor]:
    """The indices of True in each row of (R, n) bool. Synchronises with a GPU once, for their counts."""
    counts = rows.sum(1).tolist()
    numbers = torch.arange(1, sum(counts) + 1, device=rows.device)
    return (torch.searchsorted(rows.flatten().cumsum(0), numbers) % rows.shape[1]).split(counts)


def cell_of_pixel(patches: int, size: int) -> Tensor:
    """The cell of each pixel (size,): 0 before the centre of the first patch, then 1, up to the number of patches."""
    return ((torch.arange(size, dtype=torch.float64) + 0.5) * patches / size + 0.5).floor().long()


@kept(16)
def cells_of(grid: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The patches (cells, 4) at the corners of the cells, with border patches repeated beyond the border; their bilinear
    weights (cells, 4, rows, columns) for the pixels of a cell, padded to the largest cell; and the position of each row and of
    each column of pixels in the padded cells side by side."""
    ends, weights, places = [], [], []
    for patches, length in zip(grid, size, strict=True):
        cell = cell_of_pixel(patches, length)
        most, within = int(cell.bincount().max()), torch.arange(length) - torch.searchsorted(cell, cell)
        after = ((torch.arange(length, dtype=torch.float64) + 0.5) * patches / length + 0.5 - cell).float()
        weight = torch.zeros(patches + 1, 2, most)
        weight[cell, :, within] = torch.stack([1 - after, after], 1)
        ends.append((torch.arange(patches + 1)[:, None] + torch.tensor([-1, 0])).clamp(0, patches - 1))
        weights.append(weight)
        places.append(cell * most + within)
    corners = ends[0][:, None, :, None] * grid[1] + ends[1][None, :, None]
    joined = torch.einsum("ria,cjb->rcijab", *weights)
    return corners.flatten(2).flatten(0, 1), joined.flatten(2, 3).flatten(0, 1), places[0], places[1]
