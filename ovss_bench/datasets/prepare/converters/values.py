"""Readers for raw label maps: file -> (H, W) class indices. Values that never occur in official maps are errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat

from ....errors import OvssError, reading
from ..conversion import FOREIGN, UNPACK, by_colour, lookup_table, note_pixels, read_pixels

# A larger share of grey pixels is accepted only if there are enough white pixels, as in resized or JPEG-compressed masks.
FEW_GREY, GREY_TO_WHITE = 0.001, 4


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) from the file header. Raises OvssError if it cannot be read."""
    with reading(path, UNPACK), Image.open(path) as image:
        return image.size[::-1]


def numbers(path: Path, codes: Mapping[int, int]) -> np.ndarray:
    """Grey values or palette indices, all of which must be in `codes`."""
    return replace(read_pixels(path), codes, path)


def matlab_numbers(path: Path, field: str, codes: Mapping[int, int], dtype: type = np.uint8) -> np.ndarray:
    """The values in one field of a .mat file, all of which must be in `codes`."""
    with reading(f"field {field} of the MATLAB file {path}", UNPACK):
        label = loadmat(path, variable_names=[field])[field].astype(np.int32)
    return replace(label, codes, path, dtype)


def replace(label: np.ndarray, codes: Mapping[int, int], path: Path, dtype: type = np.uint8) -> np.ndarray:
    """(H, W) integers v -> (H, W) `codes[v]`, which must not be negative. Raises OvssError for colours and for a v not in
    `codes`."""
    if label.ndim != 2:
        text = f"{path} has {label.shape[-1]} channels, expected one channel of class numbers. Is it the official file?"
        raise OvssError(text)
    beyond = max(codes) + 1
    result = lookup_table(codes, -1, np.int32, beyond + 1)[label.astype(np.int32).clip(-1, beyond)]  # -1: the last entry
    if result.min() < 0:
        foreign = np.unique(label[result < 0])[:8].tolist()
        raise OvssError(f"{path} holds the values {foreign}, which official labels never have. Is it the official file?")
    return result.astype(dtype)


def some_numbers(path: Path, codes: Mapping[int, int], others: int) -> np.ndarray:
    """Grey values or palette indices; values that are not in `codes` share the class `others`."""
    array = read_pixels(path)
    if array.ndim != 2 or array.dtype != np.uint8:
        raise OvssError(f"{path} is not an 8-bit map of class numbers. Is it the official file?")
    return lookup_table(codes, others)[array]


def first_channel(path: Path) -> np.ndarray:
    """The grey values or the first channel. One-bit black and white become 0 and 255."""
    array = read_pixels(path)
    return array if array.ndim == 2 else array[..., 0]


def black_or_white(path: Path) -> np.ndarray:
    """The first channel divided by 255 and truncated, so grey counts as black. Raises OvssError for too many grey pixels."""
    channel = first_channel(path)
    if channel.dtype != np.uint8:
        raise OvssError(f"{path} is not an 8-bit mask of 0 and 255. Is it the official file, or a converted one?")
    is_grey = (channel != 0) & (channel != 255)
    white, grey = np.count_nonzero(channel == 255), np.count_nonzero(is_grey)
    if grey > FEW_GREY * channel.size and grey > GREY_TO_WHITE * white:
        values = np.unique(channel[is_grey])[:8].tolist()
        raise OvssError(f"{path} holds the values {values}, expected 0 and 255. Is it the official file, or a converted one?")
    note_pixels(grey, "are neither 0 nor 255; as in MESS's scripts, which divide by 255 and truncate, they count as 0")
    return (channel == 255).astype(np.uint8)


def brighter(path: Path, threshold: int, number: int) -> np.ndarray:
    """`number` where the first channel is above the threshold, else 0."""
    return np.where(first_channel(path) > threshold, np.uint8(number), np.uint8(0))


def decoded(path: Path, values: Callable[[np.ndarray], np.ndarray], other: int = 255, most: float = FOREIGN) -> np.ndarray:
    """The classes `values(rgb)` of a coloured map; see `_checked`. Decoded in blocks of rows to save memory."""
    image = coloured(path)
    label = np.concatenate([values(image[top : top + 128]) for top in range(0, len(image), 128)])
    return _checked(label, image, "colour", path, other, most)


def by_rounded_colour(image: np.ndarray, colours: Mapping[tuple[int, int, int], int]) -> np.ndarray:
    """`by_colour`, after channel values above 128 are rounded to 255 and others to 0."""
    return by_colour(np.where(image > 128, np.uint8(255), np.uint8(0)), colours)


def luminance(path: Path, codes: Mapping[int, int]) -> np.ndarray:
    """The classes of the grey values to which Pillow converts the colours."""
    grey = np.array(Image.fromarray(coloured(path)).convert("L"))
    return _checked(lookup_table(codes, 255)[grey], grey, "value", path)


def coloured(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a coloured map. Raises OvssError if it has one channel."""
    with Image.open(path) as image:
        if image.mode in ("1", "L", "I", "I;16"):
            raise OvssError(f"label map {path} has one channel, expected RGB colours. Unpack the official archive again.")
        return np.array(image.convert("RGB"))


def _checked(label: np.ndarray, raw: np.ndarray, kind: str, path: Path, other: int = 255, most: float = FOREIGN) -> np.ndarray:
    """Pixels of no class (255) become `other`, with a note. Raises OvssError, with the `raw` values, if their share exceeds
    `most`."""
    foreign = label == 255
    if foreign.mean() > most:
        examples = np.unique(raw[foreign][:10_000], axis=0)[:8].tolist()
        what = f"{path} holds the {kind}s {examples} ({foreign.mean():.1%} of the pixels), which belong to no class"
        raise OvssError(f"{what}. Is it the official file?")
    fate = "are ignored (255)" if other == 255 else f"count as {other}"
    note_pixels(foreign.sum(), f"have a {kind} of no class; they {fate}")
    label[foreign] = other
    return label
