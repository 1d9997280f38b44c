"""Sliding windows: pure geometry, by mmseg's rule (`slide_inference`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OvssError, unknown

if TYPE_CHECKING:
    from ..config.recipe import Recipe

Window: TypeAlias = int | Literal["whole"]  # side in pixels
PADS = ("none", "center", "corner", "corner_black")


@dataclass(frozen=True)
class Axis:
    """The windows along one side of the resized image: `starts` in pixels, `size` of each, and how a window is padded.

    The network gets `padded` pixels: `before` zeros, the window, zeros. They give `cells` patches; the patch embedding drops a
    remainder. The patch grid is enlarged to `enlarged` pixels, then cropped to the window.
    """

    length: int
    starts: tuple[int, ...]
    size: int
    before: int
    padded: int
    cells: int
    enlarged: int


def axis(length: int, window: int | None, stride: int, patch: int, pad: str, multiple: int | None = None) -> Axis:
    """Windows of `window` pixels every `stride` pixels, the last one shifted back to end at the border; None: the whole side.

    `pad`: `none`; `center`, zeros on both sides up to a multiple of the patch, or of `multiple` pixels, the odd one at the end
    (ClearCLIP); `corner`, zeros at the end, and the grid is stretched over the window without them (MaskCLIP); `corner_black`,
    the same with black pixels (CLIP-DINOiser). A side shorter than a patch is always padded to one.
    """
    size = length if window is None else min(window, length)
    count = 1 if window is None else max(length - window + stride - 1, 0) // stride + 1
    starts = tuple(max(min(i * stride + size, length) - size, 0) if count > 1 else 0 for i in range(count))
    missing = max(0 if pad == "none" else -size % (multiple or patch), patch - size)
    before = missing // 2 if pad == "center" else 0
    padded = size + missing
    return Axis(length, starts, size, before, padded, padded // patch, size if pad.startswith("corner") else padded)


@dataclass(frozen=True)
class SlidingWindow:
    """All windows of one resized image, row by row."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(
        cls, height: int, width: int, window: Window, stride: int, patch: int, pad: str, multiple: int | None = None
    ) -> SlidingWindow:
        """The windows of a resized image of height x width pixels; `window` in pixels, or "whole". See `axis`. Raises OvssError
        for invalid values and for a stride that leaves pixels out."""
        sides = {"height": height, "width": width, "window": window, "stride": stride, "patch": patch, "multiple": multiple}
        free = {"window": "whole", "multiple": None}
        for name, value in sides.items():
            if (name not in free or value != free[name]) and not (isinstance(value, int) and value > 0):
                raise OvssError(f"{name}={value!r}: expected a positive whole number of pixels.")
        crop = None if isinstance(window, str) else window
        if crop is not None and stride > crop:
            raise OvssError(f"stride={stride}: expected at most the window, {crop}, or pixels between windows stay empty.")
        if pad not in PADS:
            raise unknown("padding", pad, PADS)
        return cls(*(axis(side, crop, stride, patch, pad, multiple) for side in (height, width)))

    @classmethod
    def by(cls, recipe: Recipe, height: int, width: int, patch: int) -> SlidingWindow:
        """The windows of a recipe."""
        return cls.of(height, width, recipe.window, recipe.stride, patch, recipe.pad, recipe.pad_multiple)

    @property
    def origins(self) -> list[tuple[int, int]]:
        """(y, x) of each padded window in the resized image, possibly negative."""
        return [(y - self.rows.before, x - self.columns.before) for y in self.rows.starts for x in self.columns.starts]

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        return self.rows.padded, self.columns.padded

    @property
    def joined(self) -> SlidingWindow:
        """A single window over the whole image, with the same padding at its borders."""

        def whole(axis: Axis) -> Axis:
            more = axis.length - axis.size
            return Axis(axis.length, (0,), axis.length, axis.before, axis.padded + more, axis.cells, axis.enlarged + more)

        return SlidingWindow(whole(self.rows), whole(self.columns))

    def cut(self, pixels: Tensor, fill: Tensor | None = None) -> list[Tensor]:
        """The windows of pixels (3, H, W), each (3, *shape). Padding is 0, or `fill` (3, 1, 1)."""
        rows, columns = self.rows, self.columns
        after = columns.padded - columns.size - columns.before, rows.padded - rows.size - rows.before
        windows = [pixels[:, y : y + rows.size, x : x + columns.size] for y in rows.starts for x in columns.starts]
        if self.shape == (rows.size, columns.size):
            return windows
        sides = (columns.before, after[0], rows.before, after[1])
        if fill is None:
            return [F.pad(window, sides) for window in windows]
        inside = F.pad(torch.ones_like(pixels[:1, : rows.size, : columns.size]), sides) > 0
        return [torch.where(inside, F.pad(window, sides), fill) for window in windows]
