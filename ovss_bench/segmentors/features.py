"""Features and maps of whole images, for methods that work on windows."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..image import STATISTICS, normalize
from ..types import ImageContext, WindowBatch
from .base import Segmentor


def image_features(segmentor: Segmentor, context: ImageContext, whole: Callable[[float], int]) -> Tensor:
    """Features (1, C, h, w) of the segmentor's `vfm` for the image at its original size, bilinearly resized to whole patches of
    the encoder (`whole` rounds their number per side, which is at least 1). Computed once for all segmentors; from the run's
    cache, if there is one."""
    patch = getattr(segmentor.vfm, "patch_size", 1)
    size = [max(whole(side / patch), 1) * patch for side in context.original.shape[:2]]
    key = ("whole image", *size)
    if key not in context.shared:
        pixels = segmentor.tensor(normalize(context.original, "clip_exact"))[None]
        context.shared[key] = WindowBatch(F.interpolate(pixels, size, mode="bilinear"), contexts=[context])
    digest = getattr(segmentor.vfm, "digest", None)
    maker = digest and f"{digest} whole image {size}"
    return segmentor.tensor(context.cached(maker, lambda: context.shared[key].once(segmentor.vfm).numpy(force=True)))


def pictures(segmentor: Segmentor, batch: WindowBatch) -> np.ndarray:
    """The windows as images (B, H, W, 3) uint8 RGB, for a batch that is not of images."""
    mean, std = (torch.tensor(each).view(3, 1, 1).to(batch.pixels) for each in STATISTICS[segmentor.recipe.normalize])
    return (batch.pixels * std + mean).round().clamp(0, 255).byte().movedim(1, -1).numpy(force=True)


def cut(
    segmentor: Segmentor, batch: WindowBatch, map_of: Callable[[ImageContext], Tensor], padding: int | None = None
) -> Iterator[Tensor]:
    """The windows (..., h, w) of the maps (..., H, W) of resized images, one by one to save memory. Padded places hold
    `padding`, by default the nearest value inside the window."""
    recipe, latest, whole = segmentor.recipe, None, None
    for image, origin in zip(batch.images.tolist(), batch.origins.tolist(), strict=True):
        if image != latest:
            latest, whole = image, map_of(batch.contexts[image])
        window, outside = whole, []
        for axis, first, side in zip((-2, -1), origin, batch.pixels.shape[2:], strict=True):
            length = window.shape[axis]
            shown = length if recipe.window == "whole" else min(recipe.window, length)
            start = first + ((side - shown) // 2 if recipe.pad == "center" else 0)
            end = min(start + shown, length)
            index = torch.arange(first, first + side, device=window.device)
            outside.append((index < start) | (index >= end))
            if start <= first and first + side <= end:  # a view: copies of large maps are slow along the last axis
                window = window.narrow(axis, first, side)
            else:
                window = window.index_select(axis, index.clamp(start, end - 1))
        yield window if padding is None else window.masked_fill(outside[0][:, None] | outside[1], padding)
