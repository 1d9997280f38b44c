"""Detection of outlying patches, their replacement by means of neighbours, and means of similar patches (SC-CLIP, SFP)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def local_outlier_factors(patches: Tensor, neighbours: int) -> Tensor:
    """Patches (B, N, D) -> (B, N): the mean ratio of each patch's k-distance to those of its k nearest patches.

    It is the local outlier factor of the official code, whose reachability of a neighbour uses the k-distance of the patch
    itself instead of the neighbour's. Distances are squared; k is smaller on a small grid.
    """
    x = patches.float()
    # Exact differences: through products, near ties would change their order.
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
    k = min(neighbours, x.shape[1] - 1)
    nearest = distances.topk(k + 1, largest=False)
    reach = nearest.values[..., -1].clamp(min=1e-12)  # equal patches have the factor 1
    nearest_others = nearest.indices[..., min(k, 1) :]
    return (reach[..., None] / reach.gather(1, nearest_others.flatten(1)).view_as(nearest_others)).mean(-1)


def mend(patches: Tensor, outlying: Tensor, grid: tuple[int, int], isolated: float | None = None) -> Tensor:
    """Replaces the `outlying` (B, N) among patches (B, N, D) by the mean of those of their eight neighbours that are not
    outlying. A patch without any gets the value `isolated`; None: it is unchanged."""
    sound = ~outlying.unflatten(1, grid)[:, None]
    maps = patches.transpose(1, 2).unflatten(2, grid).float()
    total, count = (F.avg_pool2d(x, 3, 1, 1, divisor_override=1) for x in (maps * sound, sound.float()))
    mended = torch.where(sound, maps, total / count.clamp(min=1))
    mended = torch.where(sound | (count > 0), mended, maps if isolated is None else isolated)
    return mended.flatten(2).transpose(1, 2).to(patches.dtype)


def aggregate(patches: Tensor, similarity: Tensor, least: float) -> Tensor:
    """For each patch the mean of patches (B, N, D) weighted by their similarities (B, N, N) of at least `least`."""
    weights = similarity.masked_fill(similarity < least, 0)
    return (weights / (weights.sum(-1, keepdim=True) + 1e-6)).to(patches.dtype) @ patches
