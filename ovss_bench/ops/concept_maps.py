"""The score map of a prompt from the instance masks of a concept segmenter, and the best two classes of each pixel from all
maps.

Shapes: N instances, (h, w) mask grid, (H, W) image."""

from __future__ import annotations

import torch
from torch import Tensor

from .enlarge import resized_maps

PART = 2**24  # values of enlarged masks in memory at a time


def enlarged_maps(logits: Tensor, size: tuple[int, int], first_sigmoid: bool = False) -> Tensor:
    """Logits (N, h, w) -> probabilities (N, H, W): enlarged bilinearly, then the sigmoid; or in the other order."""
    values = logits.sigmoid() if first_sigmoid else logits
    values = resized_maps(values, size)
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
            part = part.round()  # half to even: 0.5 becomes 0. NaN stays
        if weights is not None:
            part *= weights[start : start + step, None, None]
        if add:
            result += part.sum(0)
        else:
            torch.maximum(result, part.amax(0), out=result)
    return result


class BestTwo:
    """The best class of each pixel (H, W), its value, and the second-best value, from maps added one by one. A class has the
    maximum of its maps. Values are at least 0; ties go to the lowest class. The result is that of `topk(2)` over all class
    maps, but no map is kept."""

    def __init__(self, size: tuple[int, int], like: Tensor) -> None:
        self.best, self.second = like.new_zeros(size), like.new_zeros(size)
        self.labels = torch.zeros(size, dtype=torch.int64, device=like.device)

    def add(self, c: int, plane: Tensor) -> None:
        """Adds a map (H, W) of class `c`. NaN stays in `best`."""
        behind = torch.minimum(plane, self.best).masked_fill_(self.labels == c, 0)
        torch.maximum(self.second, behind, out=self.second)
        self.labels.masked_fill_((plane > self.best) | ((plane == self.best) & (self.labels > c)), c)
        torch.maximum(self.best, plane, out=self.best)

    def cover(self, mask: Tensor) -> None:
        """Sets all maps so far to 0 where `mask` (H, W)."""
        for plane in (self.best, self.second, self.labels):
            plane.masked_fill_(mask, 0)
