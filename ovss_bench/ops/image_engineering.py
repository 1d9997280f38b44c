"""ITACLIP's image engineering: the cosines of a window and of four altered copies of it (arXiv 2411.12044, section 3.2)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import WindowBatch
from .device import kept

GREY = (0.2989, 0.587, 0.114)  # torchvision's weights
KERNEL, SIGMA = 11, 5.0  # of the blur, in pixels
FLIPS = (-2, -1)  # upside down, left to right


def image_engineering(cosines: Callable[[WindowBatch], Tensor], batch: WindowBatch, weight: float) -> Tensor:
    """`cosines`: windows -> (B, Q, h, w) on any grid. Returns a weighted mean of such maps for `batch`.

    The mean over the windows, their grey and their blurred copies has `weight`; the mean over two flipped copies, flipped back,
    has 1 - `weight`. The official code averages unit features and flips maps after bilinear enlargement. The result is the
    same, as both steps are linear and the enlargement is symmetric. Altered windows have neither positions nor contexts.
    """

    def of(pixels: Tensor) -> Tensor:
        return cosines(WindowBatch(pixels, padding=batch.padding))

    pixels = batch.pixels
    same = (cosines(batch) + of(grey(pixels)) + of(blur(pixels))) / 3
    if weight == 1:
        return same
    flipped = sum(of(pixels.flip(axis)).flip(axis) for axis in FLIPS) / len(FLIPS)
    return weight * same + (1 - weight) * flipped


def grey(pixels: Tensor) -> Tensor:
    """(B, 3, h, w) of any range -> (B, 3, h, w) with three equal channels."""
    red, green, blue = (factor * pixels[:, i : i + 1] for i, factor in enumerate(GREY))
    return (red + green + blue).expand_as(pixels)


def blur(pixels: Tensor) -> Tensor:
    """Gaussian blur (B, C, h, w) -> (B, C, h, w), reflected at the border; sides of at least 6 pixels."""
    reach, channels = KERNEL // 2, pixels.shape[1]
    kernel = gaussian(KERNEL, SIGMA, like=pixels).expand(channels, 1, -1)
    padded = F.pad(pixels, (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel[..., None], groups=channels), kernel[..., None, :], groups=channels)


@kept(4)
def gaussian(size: int, sigma: float) -> Tensor:
    """Gaussian weights (size,) of sum 1."""
    x = torch.arange(size) - (size - 1) / 2
    return (-(x**2) / (2 * sigma**2)).softmax(0)
