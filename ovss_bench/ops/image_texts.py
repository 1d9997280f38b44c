"""Text features adjusted to each window (CASS, RF-CLIP): in each cluster of similar queries, the one most similar to the image
moves towards its most similar patches."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def query_clusters(text: Tensor, distance: float, linkage: Literal["complete", "ward"]) -> list[int]:
    """Unit text features (Q, E) -> the cluster of each query, counted from 0: hierarchical clustering of the cosine distances
    in double precision, cut at `distance`."""
    if len(text) < 2:
        return [0] * len(text)
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    rows = text.numpy(force=True).astype("float64")
    distances = 1 - rows @ rows.T
    tree = hierarchy.linkage(squareform(distances, checks=False), linkage)
    return (hierarchy.fcluster(tree, distance, "distance") - 1).tolist()


def adjusted_texts(text: Tensor, clusters: Tensor, patches: Tensor, image: Tensor, weight: float, nearest: int = 2) -> Tensor:
    """The adjusted text features of each window (B, Q, E), unit rows.

    In every cluster, the query with the highest cosine `image` (B, Q) becomes (1 - weight) t + weight m, with unit rows t of
    `text` (Q, E) and m the mean, of length 1, of the `nearest` unit rows of `patches` (B, N, E) with the highest cosines with
    t. `clusters` (Q,) int64: the cluster of each query, from 0, at most Q - 1. The other queries are unchanged.
    """
    numbers = torch.arange(len(text), device=text.device)
    best = torch.full_like(image, -torch.inf).scatter_reduce_(1, clusters.expand_as(image), image, "amax")
    tied = torch.where(image == best.gather(1, clusters.expand_as(image)), numbers, len(text))
    first = torch.full_like(tied, len(text)).scatter_reduce_(1, clusters.expand_as(tied), tied, "amin")
    winners = first.gather(1, clusters.expand_as(tied)) == numbers
    fitting = (patches @ text.T).topk(min(nearest, patches.shape[1]), 1).indices
    chosen = patches.gather(1, fitting.flatten(1)[..., None].expand(-1, -1, patches.shape[2])).unflatten(1, fitting.shape[1:])
    moved = F.normalize((1 - weight) * text + weight * F.normalize(chosen.mean(1), dim=-1), dim=-1)
    return torch.where(winners[..., None], moved, text)
