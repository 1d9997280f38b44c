"""Attention rules that several methods share. Queries, keys and values are (B, K, T, d)."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .compose import in_cache


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | Tensor | None = None) -> Tensor:
    """softmax(scale q k^T + bias) v, class token included; `scale`: d^-1/2 by default, or a tensor (B,), one per window."""
    if isinstance(scale, Tensor):
        q, scale = q * scale.view(-1, 1, 1, 1), 1.0
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def cosine_matrix(features: Tensor) -> Tensor:
    """(..., N, C) -> cosine similarities of all pairs (..., N, N), float32."""
    unit = F.normalize(features.float(), dim=-1)
    return unit @ unit.transpose(-2, -1)


def proxy_attention(
    similarity: Tensor, beta: float = 1.2, gamma: float = 3.0, masking: bool = True, mean: Tensor | None = None
) -> Tensor:
    """softmax of gamma (S - beta mean(S)) with the negative entries masked: (..., N, N) -> the same (ProxyCLIP, eq. 6 and 7).
    `mean` replaces mean(S).

    The diagonal is never masked: the official softmax over an empty row (see `empty_rows`) would be NaN.
    """
    mean = similarity.mean((-2, -1), keepdim=True) if mean is None else mean
    weights = gamma * (similarity - beta * mean)
    if masking:
        itself = torch.eye(similarity.shape[-1], dtype=torch.bool, device=similarity.device)
        weights = weights.masked_fill((weights < 0) & ~itself, -torch.inf)
    return weights.softmax(-1)


def strong_attention(attention: Tensor, maps: Tensor, least: float) -> Tensor:
    """A' M for maps M (N, C) (CLIPer). A' is the attention (N, N) divided by its column maxima, with entries below `least` set
    to 0 and rows scaled to sum 1.

    A column of ones beside M gives the row sums: A' M = B M / B 1, with B the matrix before the rows are scaled. Computed for
    some rows at a time, so that B stays in a core's cache.
    """
    scale = (attention.amax(0) + 1e-5).reciprocal()
    columns = torch.cat([maps.T, maps.new_ones(1, len(maps))])
    rows = in_cache(len(scale), like=attention)
    # `masked_fill` takes several times as long as `threshold`; the transposed product a fifth less than the plain one.
    products = torch.cat([columns @ torch.threshold_(part * scale, least, 0).T for part in attention.split(rows)], 1)
    return (products[:-1] / (products[-1:] + 1e-5)).T


def empty_rows(similarity: Tensor, beta: float = 1.2) -> Tensor:
    """(..., N, N) -> (..., N) bool: rows that `proxy_attention` masks but for the diagonal. For cosines, it masks all rows of a
    window or none: all if mean(S) > 1 / beta, in windows that look nearly uniform to the encoder."""
    return similarity.amax(-1) < beta * similarity.mean((-2, -1))[..., None]


def to_sum_one_(maps: Tensor, dim: int) -> Tensor:
    """Divides by the sums over one dimension, in place; all-zero rows stay zero."""
    return maps.mul_(maps.sum(dim, keepdim=True).clamp_(min=torch.finfo(maps.dtype).tiny).reciprocal_())


def symmetric(attention: Tensor) -> Tensor:
    """Symmetrises balanced maps (..., L, L), subtracts column means, sets negative values to 0, and scales rows to sum 1."""
    twice = attention + attention.transpose(-2, -1)
    return to_sum_one_(twice.sub_(twice.mean(-2, keepdim=True)).relu_(), -1)


def some_heads(values: Tensor) -> list[slice]:
    """Parts of the K heads of values (B, K, L, d) whose maps (B, ., L, L) fit into the cache."""
    windows, heads, tokens = values.shape[:3]
    count = in_cache(windows * tokens**2, like=values)
    return [slice(first, first + count) for first in range(0, heads, count)]


def layer_products(maps: Iterable[Tensor], values: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Maps (B, ., L, L) of all K heads, some heads at a time -> their products with the values (B, K, L, d) of every layer, and
    the mean of the last layer's maps over the heads (B, L, L), float32 (CLIPer).

    Maps are balanced in place, as in the official code: every layer starts from the balanced maps of the one before it. They
    are multiplied with the values after `symmetric`.
    """
    products, total = [[] for _ in values], []
    for attention in maps:
        for value, parts in zip(values, products, strict=True):
            fused = symmetric(to_sum_one_(to_sum_one_(attention, -2), -1))
            done = sum(part.shape[1] for part in parts)
            parts.append(fused.to(value.dtype) @ value[:, done : done + fused.shape[1]])
        total.append(fused.sum(1))
    return [torch.cat(parts, 1) for parts in products], torch.stack(total).sum(0) / values[0].shape[1]


def balanced(maps: Tensor, rounds: int = 3) -> Tensor:
    """Sinkhorn normalisation of (..., L, L): by columns, then by rows, `rounds` times; then the mean with its transpose."""
    maps = maps.clone()
    for _ in range(rounds):
        to_sum_one_(to_sum_one_(maps, -2), -1)
    return (maps + maps.transpose(-2, -1)) / 2
