"""What a vision encoder says of an image that it sees as a whole."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ..image import normalize
from ..types import ImageContext, WindowBatch
from .base import Segmentor


def image_features(segmentor: Segmentor, context: ImageContext, whole: Callable[[float], int]) -> Tensor:
    """Features (1, C, h, w) of the segmentor's `vfm` for the image at its original size, each side resized (bilinear) to a
    whole number of the encoder's patches: `whole` rounds it, and there is one at least. Kept in the run's cache if it has one.
    """
    pixels = segmentor.tensor(normalize(context.original, "clip_exact"))[None]
    patch = getattr(segmentor.vfm, "patch_size", 1)
    size = [max(whole(side / patch), 1) * patch for side in pixels.shape[2:]]
    pixels = F.interpolate(pixels, size, mode="bilinear")
    own = getattr(segmentor.vfm, "digest", None)
    maker = own and f"{own} whole image {size}"
    maps = context.cached(maker, lambda: segmentor.vfm(WindowBatch(pixels, contexts=[context])).numpy(force=True))
    return segmentor.tensor(maps)
