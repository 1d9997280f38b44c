"""Majority vote inside regions (CLIPtrase, CorrCLIP's map correction)."""

import torch
from torch import Tensor


def majority_vote(label_map: Tensor, regions: Tensor, skip: int | None = None) -> Tensor:
    """Gives every region its most frequent label; ties go to the smallest. `label_map` (H, W) int64, not negative; `regions`
    (H, W) any integer ids. The region `skip` is left unchanged."""
    ids, region = regions.unique(return_inverse=True)
    count = int(label_map.max()) + 1
    votes = torch.bincount((region * count + label_map).flatten(), minlength=len(ids) * count).view(len(ids), count)
    voted = votes.argmax(1)[region]
    return voted if skip is None else torch.where(regions == skip, label_map, voted)
