"""The few attention rules that several methods share. Queries, keys and values are (B, K, T, d)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | Tensor | None = None) -> Tensor:
    """softmax(scale q k^T + bias) v, class token included; `scale` defaults to d^-1/2, a tensor (B,) is one per window.

    With the identity as v it returns the attention map itself.
    """
    if isinstance(scale, Tensor):
        q, scale = q * scale.view(-1, 1, 1, 1), 1.0
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
