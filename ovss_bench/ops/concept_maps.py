"""From what a concept segmenter says about one prompt to the map of that prompt.

Shapes: N instances, (h, w) mask grid, (H, W) image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PART = 2**24  # values of enlarged masks that are held at a time


def enlarged_maps(logits: Tensor, size: tuple[int, int], first_sigmoid: bool = False) -> Tensor:
    """Logits (N, h, w) -> probabilities (N, H, W): enlarged bilinearly, then the sigmoid; or in the other order."""
    values = logits.sigmoid() if first_sigmoid else logits
    values = F.interpolate(values[None], size, mode="bilinear", align_corners=False)[0]
    return values if first_sigmoid else values.sigmoid()


def joined(
    masks: Tensor,
    weights: Tensor | None,
    size: tuple[int, int],
    *,
    first_sigmoid: bool = False,
    binary: bool = False,
    add: bool = False,
) -> Tensor:
    """Mask logits (N, h, w) of the kept instances -> one map (H, W), 0 without instances: the maximum, or the sum, of their
    probabilities times their `weights` (N,). `binary`: 1 where the probability is above 0.5, else 0."""
    result = masks.new_zeros(size)
    step = max(PART // (size[0] * size[1]), 1)
    for start in range(0, len(masks), step):
        part = enlarged_maps(masks[start : start + step], size, first_sigmoid)
        if binary:
            part = (part > 0.5).to(part)
        if weights is not None:
            part *= weights[start : start + step, None, None]
        if add:
            result += part.sum(0)
        else:
            torch.maximum(result, part.amax(0), out=result)
    return result
