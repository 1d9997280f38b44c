"""Windows merged patch by patch, for methods that need a value for every pair of patches; halves of an image (CLIPer)."""

from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import ImageContext
from .windows import SlidingWindow

WINDOWS_PER_PASS = 8  # bounds the memory for attention maps of all heads


def join_windows(
    pixels: Tensor, window: int, stride: int, patch: int, run: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """`run`: windows (B, 3, h, w) -> maps (..., B, T, h/patch, w/patch), and attention between patches (B, cells, cells).
    `window` and `stride` are multiples of `patch`.

    Returns, for pixels (3, H, W) of G = (H/patch)(W/patch) patches, the maps (..., T, H/patch, W/patch), averaged over windows,
    and the attention (G, G), averaged over the windows that contain both patches, with rows of sum 1.
    """
    height, width = (side // patch for side in pixels.shape[1:])
    pixels = pixels[:, : height * patch, : width * patch]
    windows = SlidingWindow.of(height * patch, width * patch, window, stride, patch, "none")
    results = [run(batch) for batch in torch.stack(windows.cut(pixels)).split(WINDOWS_PER_PASS)]
    maps, between = torch.cat([maps for maps, _ in results], -4), torch.cat([between for _, between in results])
    cells = maps.shape[-2:]
    total, count = maps.new_zeros(*maps.shape[:-4], maps.shape[-3], height, width), maps.new_zeros(height, width)
    joined = between.new_zeros(height, width, height, width)
    pairs = torch.zeros_like(joined)
    for number, starts in enumerate(product(windows.rows.starts, windows.columns.starts)):
        y, x = (slice(start // patch, start // patch + side) for start, side in zip(starts, cells, strict=True))
        total[..., y, x] += maps.select(-4, number)
        count[y, x] += 1
        joined[y, x, y, x] += between[number].view(*cells, *cells)
        pairs[y, x, y, x] += 1
    # 1e-5 as in the official code; pairs that no window contains stay 0.
    joined = (joined / (pairs + 1e-5)).flatten(2).flatten(0, 1)
    return total / count, F.normalize(joined, p=1, dim=-1)


def halves(context: ImageContext, patch: int) -> tuple[ImageContext, ImageContext]:
    """The left and the right half of an image; the network's input is cut between two patches."""
    (height, width), middle = context.size, context.original.shape[1] // 2
    cut = context.pixels.shape[2] // (2 * patch) * patch
    left = ImageContext(context.original[:, :middle], context.resized[:, :cut], context.pixels[..., :cut], (height, width // 2))
    size = (height, width - width // 2)
    return left, ImageContext(context.original[:, middle:], context.resized[:, cut:], context.pixels[..., cut:], size)
