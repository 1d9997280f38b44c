"""Attention rules that several methods share. Queries, keys and values are (B, K, T, d)."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
    `mean` replaces that of each S.

    The diagonal is never masked: the official softmax over an empty row (see `empty_rows`) would be NaN.
    """
    mean = similarity.mean((-2, -1), keepdim=True) if mean is None else mean
    weights = gamma * (similarity - beta * mean)
    if masking:
        itself = torch.eye(similarity.shape[-1], dtype=torch.bool, device=similarity.device)
        weights = weights.masked_fill((weights < 0) & ~itself, -torch.inf)
    return weights.softmax(-1)


def empty_rows(similarity: Tensor, beta: float = 1.2) -> Tensor:
    """(..., N, N) -> (..., N) bool: rows in which everything is masked. For cosines these are all rows of a window or none: all
    if mean(S) > 1 / beta, in a window that looks nearly uniform to the encoder."""
    return similarity.amax(-1) < beta * similarity.mean((-2, -1))[..., None]


def to_sum_one(maps: Tensor, dim: int) -> Tensor:
    """Divides by the sums over one dimension; all-zero rows stay zero."""
    return maps / maps.sum(dim, keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def symmetric(attention: Tensor) -> Tensor:
    """Balanced maps (..., L, L) -> symmetric maps, with column means subtracted, negative values cut, and rows of sum 1."""
    attention = (attention + attention.transpose(-2, -1)) / 2
    return to_sum_one((attention - attention.mean(-2, keepdim=True)).clamp(min=0), -1)


def balanced(maps: Tensor, rounds: int = 3) -> Tensor:
    """Divides (..., L, L) by its column sums, then by its row sums, `rounds` times; then the mean with its transpose."""
    for _ in range(rounds):
        maps = to_sum_one(to_sum_one(maps, -2), -1)
    return (maps + maps.transpose(-2, -1)) / 2
