"""Regions of a mask generator: merging, attention within them, and their class tokens (CorrCLIP, OV-Stitcher)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoders.clip import DenseCLIP
from ..ops.across_windows import PART_BYTES
from ..ops.device import to_device
from ..ops.nearest import torch_nearest
from ..ops.vote import row_numbers, tally
from ..types import ImageContext, Trunk
from .base import Segmentor

PADDING = 10000  # the region id of padding; ids of merged regions start here, too


def region_map(segmentor: Segmentor, context: ImageContext, size: tuple[int, int]) -> Tensor:
    """The region map of an image by the segmentor's generator, resized to `size` (H, W), int64."""
    if size not in context.by_products:
        context.by_products[size] = torch_nearest(segmentor.tensor(context.once(segmentor.regions)).long(), size)
    return context.by_products[size]


def merge_regions(features: Tensor, regions: Tensor, eps: float) -> Tensor:
    """Gives regions (H, W) with similar means of the `features` (H*W, C) a common id, counted from PADDING. The unsegmented
    region, the one with the smallest id, keeps its id. `eps`: the maximum distance for DBSCAN; 0 merges nothing."""
    ids, index = regions.unique(return_inverse=True)
    if len(ids) <= 2 or eps <= 0:
        return regions
    from sklearn.cluster import DBSCAN  # a second to import

    means = F.normalize(region_means(F.normalize(features.float(), dim=-1), index.flatten(), len(ids))[1:], dim=-1)
    similarity = means @ means.T
    distance = (similarity.max() - similarity).clamp(min=0).numpy(force=True)
    labels = torch.as_tensor(DBSCAN(eps=eps, min_samples=1, metric="precomputed").fit_predict(distance))
    return torch.cat([ids[:1], PADDING + to_device(labels, ids.device).to(ids)])[index]


def region_means(features: Tensor, index: Tensor, count: int) -> Tensor:
    """Features (N, C), regions (N,) numbered from 0 -> mean features (count, C)."""
    sums = features.new_zeros(count, features.shape[1]).index_add_(0, index, features)
    return sums / tally(index, count)[:, None]


def region_attention(
    features: Tensor, regions: Tensor, tau: float, part_bytes: int = PART_BYTES
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields the attention of patches with unit features (N, C) in regions (N,), for R patches at a time: their indices (R,),
    the indices of the patches they may see (M,), and the attention (R, M). `tau`: factor of the similarities.

    Patches attend within their region. From and to unsegmented patches, they attend where the similarity exceeds the mean of
    all similarities, |mean(features)|^2. Sorted by region, the attention is a block for each region, plus rows and columns of
    the unsegmented patches. A CPU computes only these; a GPU computes all, as it would wait for the sizes of the regions.
    """
    mean = features.mean(0).square().sum()
    order, on_cpu = regions.argsort(stable=True), features.device.type == "cpu"
    loose, *others = order.split(regions.unique(return_counts=True)[1].tolist() if on_cpu else [len(order)])
    for members, seen in [(loose, order), *((each, torch.cat([each, loose])) for each in others)]:
        unit, ids = features[seen], regions[seen]
        step = max(1, part_bytes // (4 * len(seen)))
        for first in range(0, len(members), step):
            rows = slice(first, min(first + step, len(members)))
            yield members[rows], seen, _scoped(unit[rows] @ unit.T, ids, mean, tau, first)


def joint_attention(features: Tensor, regions: Tensor, tau: float) -> Tensor:
    """The whole matrix (N, N) of `region_attention`: 0 for pairs that do not see each other."""
    attention = features.new_zeros(len(features), len(features))
    for rows, seen, part in region_attention(features, regions, tau):
        attention[rows[:, None], seen] = part
    return attention


def _scoped(similarity: Tensor, regions: Tensor, mean: Tensor, tau: float, first: int) -> Tensor:
    """The attention (R, M) of the R patches from index `first`, by their similarities (R, M) with patches in regions (M,)."""
    rows, loose = slice(first, first + len(similarity)), regions == regions.min()
    allowed = (regions[rows, None] == regions) & ~loose
    allowed |= (loose[rows, None] | loose) & (similarity > mean)
    allowed.diagonal(first).fill_(True)  # in a window of one colour no similarity is above the mean
    return (tau * similarity).masked_fill(~allowed, -torch.inf).softmax(-1)


def class_tokens(clip: DenseCLIP, trunk: Trunk, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Regions (B, H, W) of any resolution -> a class token for each region after the last block (B, R, D), and the number of
    each patch's region (B, N).

    In every block, a region's token attends to CLS and the patches of its region in the window. Nothing attends to it, so keys
    and values are those of the trunk.
    """
    index = row_numbers(torch_nearest(regions, trunk.grid).flatten(1))
    count = int(index.max()) + 1
    members = F.one_hot(index, count).transpose(1, 2).bool()
    members = F.pad(members, (1, 0), value=True)[:, None]
    tokens = trunk.states[0][:, :1].expand(-1, count, -1)
    for i in range(clip.depth):
        block = clip.block(i, trunk.grid)
        _, k, v = clip.qkv(trunk, i)
        q = block.queries(block.ln_1(tokens))
        tokens = tokens + block.project(F.scaled_dot_product_attention(q, k, v, attn_mask=members))
        tokens = tokens + block.mlp(block.ln_2(tokens))
    return tokens, index


def spatial_count(depth: int) -> int:
    """The number of blocks of the spatial branch for a CLIP of `depth` blocks, in the official code."""
    return {12: 5, 24: 12, 32: 28}.get(depth, depth - 4)


def at_places(tokens: Tensor, index: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Tokens of regions (B, R, D), and the region of each cell of `grid` (B, h*w) -> the token of the region at each cell of a
    grid (H, W) = `size`, (B, H*W, D)."""
    places = torch_nearest(index.unflatten(1, grid), size).flatten(1)
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))
