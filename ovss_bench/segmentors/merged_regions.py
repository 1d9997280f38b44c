"""Regions of a mask generator, what they merge to, and who attends to whom in them (CorrCLIP, OV-Stitcher)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoders.clip import DenseCLIP
from ..ops.device import to_device
from ..ops.nearest import torch_nearest
from ..ops.vote import row_numbers, tally
from ..types import ImageContext, Trunk
from .base import Segmentor

PADDING = 10000  # the region id of padding; ids of merged regions are counted from here, too


def region_map(segmentor: Segmentor, context: ImageContext, size: tuple[int, int]) -> Tensor:
    """The regions of the segmentor's generator in an image, resized to `size`."""
    if size not in context.by_products:
        context.by_products[size] = torch_nearest(segmentor.tensor(context.once(segmentor.regions)).long(), size)
    return context.by_products[size]


def merge_regions(features: Tensor, regions: Tensor, eps: float) -> Tensor:
    """Regions (H, W) with similar mean features (H*W, C) get one id, counted from PADDING; the unsegmented region, that with
    the smallest id, keeps it. `eps`: the distance up to which DBSCAN merges; 0: nothing is merged."""
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


def region_attention(similarity: Tensor, regions: Tensor, mean: Tensor, tau: float, first: int = 0) -> Tensor:
    """Attention (R, N) of R patches, counted from `first`, by their similarities (R, N) with all patches, in regions (N,).
    Patches attend inside of their region; from and to unsegmented ones if the similarity is above the `mean` of all."""
    rows, loose = slice(first, first + len(similarity)), regions == regions.min()
    allowed = (regions[rows, None] == regions) & ~loose
    allowed |= (loose[rows, None] | loose) & (similarity > mean)
    allowed.diagonal(first).fill_(True)  # in a window of one colour no similarity is above the mean
    return (tau * similarity).masked_fill(~allowed, -torch.inf).softmax(-1)


def class_tokens(clip: DenseCLIP, trunk: Trunk, regions: Tensor) -> tuple[Tensor, Tensor]:
    """A class token for each region (B, R, D) after the last block, which attends to CLS and the patches of its region in the
    window; and the number of the region of each patch (B, N), for regions (B, H, W) of any resolution.

    No token attends to these, so keys and values are those of the trunk.
    """
    index = row_numbers(torch_nearest(regions, trunk.grid).flatten(1))
    count = int(index.max()) + 1
    members = F.one_hot(index, count).transpose(1, 2).bool()
    members = F.pad(members, (1, 0), value=True)[:, None]
    tokens = trunk.states[0][:, :1].expand(-1, count, -1)
    for i in range(clip.depth):
        block = clip.block(i, trunk.grid)
        _, k, v = clip.qkv(trunk, i)
        q, _, _ = block.qkv(block.ln_1(tokens))
        tokens = tokens + block.project(F.scaled_dot_product_attention(q, k, v, attn_mask=members))
        tokens = tokens + block.mlp(block.ln_2(tokens))
    return tokens, index


def at_places(tokens: Tensor, index: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Tokens of regions (B, R, D) -> those of the regions at the places of a grid of `size`, (B, H*W, D)."""
    places = torch_nearest(index.unflatten(1, grid), size).flatten(1)
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))
