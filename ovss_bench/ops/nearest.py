"""Nearest-neighbour resizing by the rules of OpenCV and PyTorch, which differ in rounding."""

import torch
import torch.nn.functional as F
from torch import Tensor


def opencv_nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w) -> (H, W) by OpenCV's rule, in integers: row floor(i h / H), column floor(j w / W)."""
    if labels.shape == size:
        return labels
    rows, columns = (torch.arange(new, device=labels.device) * old // new for new, old in zip(size, labels.shape, strict=True))
    return labels[rows[:, None], columns]


def torch_nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Integer maps (..., h, w) -> (..., H, W) by PyTorch's rule: row floor(i s), with the factor s = h / H rounded."""
    planes = maps.double().reshape(1, -1, *maps.shape[-2:])
    return F.interpolate(planes, tuple(size), mode="nearest").long().reshape(*maps.shape[:-2], *size)
