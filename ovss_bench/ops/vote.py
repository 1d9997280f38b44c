"""Majority vote inside regions (CLIPtrase, CorrCLIP's map correction), and counts without GPU synchronisation."""

import torch
import torch.nn.functional as F
from torch import Tensor


def majority_vote(label_map: Tensor, regions: Tensor, skip: int | Tensor | None = None) -> Tensor:
    """Gives every region its most frequent label; ties go to the smallest. `label_map` (H, W) int64, not negative; `regions`
    (H, W) any integer ids. The region `skip` is left unchanged."""
    ids, region = regions.unique(return_inverse=True)
    count = int(label_map.max()) + 1
    votes = tally((region * count + label_map).flatten(), len(ids) * count).view(len(ids), count)
    voted = votes.argmax(1)[region]
    return voted if skip is None else torch.where(regions == skip, label_map, voted)


def tally(values: Tensor, count: int) -> Tensor:
    """Occurrences (..., count) of 0 to count-1 in values (..., N) int64. `torch.bincount` would synchronise with a GPU."""
    return values.new_zeros(*values.shape[:-1], count).scatter_add_(-1, values, torch.ones_like(values))


def row_numbers(ids: Tensor) -> Tensor:
    """Integer ids (B, N) -> their dense ranks (B, N) in each row, from 0."""
    ordered, order = ids.sort(1)
    numbers = F.pad((ordered[:, 1:] != ordered[:, :-1]).cumsum(1), (1, 0))
    return torch.empty_like(order).scatter_(1, order, numbers)
