"""Readers of raw label maps: a file -> (H, W) class indices. Values that official maps never hold are errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat

from ....errors import OvssError, reading
from ..conversion import FOREIGN, UNPACK, by_colour, lookup_table, note_pixels, read_pixels

# A larger share of grey pixels is accepted only with enough white ones, as in masks that were resized or saved as JPEG.
FEW_GREY, GREY_TO_WHITE = 0.001, 4


def image_size(path: Path) -> tuple[int, int]:
    """(height, width), from the header. Raises OvssError if it cannot be read."""
    with reading(path, UNPACK), Image.open(path) as image:
        return image.size[::-1]


def numbers(path: Path, codes: Mapping[int, int]) -> np.ndarray:
    """Grey values or palette indices, all of which must be in `codes`."""
    return replace(read_pixels(path), codes, path)


def matlab_numbers(path: Path, field: str, codes: Mapping[int, int], dtype: type = np.uint8) -> np.ndarray:
    """The numbers in one field of a .mat file."""
    with reading(f"field {field} of the MATLAB file {path}", UNPACK):
        label = loadmat(path, variable_names=[field])[field].astype(np.int32)
    return replace(label, codes, path, dtype)


def replace(label: np.ndarray, codes: Mapping[int, int], path: Path, dtype: type = np.uint8) -> np.ndarray:
    """(H, W) integers v -> (H, W): `codes[v]`, none of them negative. Raises OvssError for colours and for a v without code."""
    if label.ndim != 2:
        raise OvssError(f"{path} has {label.shape[-1]} channels, expected one of class numbers. Is it the official file?")
    beyond = max(codes) + 1
    result = lookup_table(codes, -1, np.int32, beyond + 1)[label.astype(np.int32).clip(-1, beyond)]  # -1 is the last entry, too
    if result.min() < 0:
        foreign = np.unique(label[result < 0])[:8].tolist()
        raise OvssError(f"{path} holds the values {foreign}, which the official labels never have. Is it the official file?")
    return result.astype(dtype)


def some_numbers(path: Path, codes: Mapping[int, int], others: int) -> np.ndarray:
    """Grey values or palette indices; those without a class in `codes` share the class `others`."""
    array = read_pixels(path)
    if array.ndim != 2 or array.dtype != np.uint8:
        raise OvssError(f"{path} is not a map of class numbers of 8 bits. Is it the official file?")
    return lookup_table(codes, others)[array]


def first_channel(path: Path) -> np.ndarray:
    """Grey values; black and white of one bit are 0 and 255."""
    array = read_pixels(path)
    return array if array.ndim == 2 else array[..., 0]


def black_or_white(path: Path) -> np.ndarray:
    """The first channel divided by 255 and truncated, so grey counts as black. Raises OvssError for much grey."""
    channel = first_channel(path)
    is_grey = (channel != 0) & (channel != 255)
    white, grey = np.count_nonzero(channel == 255), np.count_nonzero(is_grey)
    if channel.dtype not in (np.uint8, bool) or (grey > FEW_GREY * channel.size and grey > GREY_TO_WHITE * white):
        values = np.unique(channel[is_grey])[:8].tolist()
        raise OvssError(f"{path} holds the values {values}, expected 0 and 255. Is it the official file, or a converted one?")
    note_pixels(grey, "are neither 0 nor 255; as in MESS's scripts, which divide by 255 and truncate, they count as 0")
    return (channel == 255).astype(np.uint8)


def brighter(path: Path, threshold: int, number: int) -> np.ndarray:
    """`number` where the first channel is above the threshold, else 0."""
    return np.where(first_channel(path) > threshold, np.uint8(number), np.uint8(0))


def decoded(path: Path, values: Callable[[np.ndarray], np.ndarray], other: int = 255, most: float = FOREIGN) -> np.ndarray:
    """The classes `values(rgb)` of a map in colours; see `_checked`. Decoded in blocks of rows to save memory."""
    image = coloured(path)
    label = np.concatenate([values(image[top : top + 128]) for top in range(0, len(image), 128)])
    return _checked(label, image, "colour", path, other, most)


def by_rounded_colour(image: np.ndarray, colours: Mapping[tuple[int, int, int], int]) -> np.ndarray:
    """`by_colour`, with channels above 128 rounded to 255 and others to 0."""
    return by_colour(np.where(image > 128, np.uint8(255), np.uint8(0)), colours)


def luminance(path: Path, codes: Mapping[int, int]) -> np.ndarray:
    """Classes by the grey value to which Pillow converts a colour."""
    grey = np.array(Image.fromarray(coloured(path)).convert("L"))
    return _checked(lookup_table(codes, 255)[grey], grey, "value", path)


def coloured(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a map in colours."""
    with Image.open(path) as image:
        if image.mode in ("1", "L", "I", "I;16"):
            raise OvssError(f"label map {path} has one channel, expected RGB colours. Unpack the official archive again.")
        return np.array(image.convert("RGB"))


def _checked(label: np.ndarray, raw: np.ndarray, kind: str, path: Path, other: int = 255, most: float = FOREIGN) -> np.ndarray:
    """Pixels of no class (255) become `other`, with a note. Raises OvssError, with `raw` values, for a share above `most`."""
    foreign = label == 255
    if foreign.mean() > most:
        found = np.unique(raw[foreign][:10_000], axis=0)[:8].tolist()
        what = f"{path} holds the {kind}s {found} ({foreign.mean():.1%} of the pixels), which belong to no class"
        raise OvssError(f"{what}. Is it the official file?")
    fate = "are ignored (255)" if other == 255 else f"count as {other}"
    note_pixels(foreign.sum(), f"have a {kind} of no class; they {fate}")
    label[foreign] = other
    return label
