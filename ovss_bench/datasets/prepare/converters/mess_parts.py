"""Shared parts of the converters of MESS's data sets: listing files, tasks, and readers of raw label maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ....errors import OvssError
from ....files import write_atomic
from ..conversion import FEW, Task, by_colour, copy, lines, note_pixels, read_pixels, require, table, write_label
from .aerial import read_picture
from .values import replace

IMAGES, LABELS = "images_detectron2", "annotations_detectron2"
# In black and white masks that were resized or saved as JPEG more pixels may be grey, if there is white as well.
FEW_GREY, GREY_TO_WHITE = 0.001, 4

Reader = Callable[[Path], np.ndarray]  # raw label map -> (H, W) uint8 classes

# Files.


def columns(path: Path) -> list[tuple[str, str]]:
    """The two columns of a list: number and value."""
    rows = [line.split() for line in lines(path)]
    wrong = next((row for row in rows if len(row) != 2), None)
    if wrong is not None:
        raise OvssError(f"{path} has the line '{' '.join(wrong)}', expected a number and a value. Unpack the official archive.")
    return [(number, value) for number, value in rows]


def listed(path: Path) -> list[str]:
    """The names of a list, with or without suffixes."""
    return [Path(line).stem for line in lines(path)]


def one_of(folder: Path, name: str, suffixes: Sequence[str]) -> Path:
    """The file of that name with one of the suffixes."""
    for suffix in suffixes:
        if (folder / (name + suffix)).is_file():
            return folder / (name + suffix)
    raise OvssError(f"there is no {name}{' or '.join(suffixes)} in {folder}. Unpack the official archive there.")


def unique(names: Iterable[str], folder: Path) -> None:
    """Raises OvssError if files of different folders have the same name."""
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise OvssError(
            f"{folder} holds {twice[0]} in several folders, where the official names are unique. Remove the copies."
        )


# Tasks of an image or a label map.


def pictured(source: Path, target: Path, images: str = "original") -> Task:
    """A copy; or the same pixels in another format, if the target has another suffix; or, for `mess`, the JPEG file saved again
    as by MESS's scripts, at Pillow's quality of 75 and without the EXIF orientation: pixels differ by up to 40."""
    require([source])
    make = copy if images == "original" and source.suffix == target.suffix else recode
    return Task(make, (source, target), (target,))


def recode(source: Path, target: Path) -> None:
    """The picture is saved, not an array of it, so that Pillow keeps the comment of a JPEG file as in MESS's scripts: without
    the comment the file's size would differ, and so would the fingerprint."""
    read_picture(source)  # refuses depths that Pillow would clip
    with Image.open(source) as image:
        picture = image.convert("RGB")
    write_atomic(target, lambda temporary: picture.save(temporary))


def labelled(read: Reader, source: Path, target: Path) -> Task:
    require([source])
    return Task(decode, (read, source, target), (target,))


def decode(read: Reader, source: Path, target: Path) -> None:
    write_label(target, read(source))


# Readers of raw label maps: (H, W) uint8 classes. They refuse values that official maps never hold.


def numbers(path: Path, codes: Mapping[int, int]) -> np.ndarray:
    """Grey values or indices into a palette, each with its class."""
    return replace(read_pixels(path), codes, path).astype(np.uint8)


def some_numbers(path: Path, codes: Mapping[int, int], others: int) -> np.ndarray:
    """Grey values or indices, some with a class of their own, the others with a common one."""
    array = read_pixels(path)
    if array.ndim != 2 or array.dtype != np.uint8:
        raise OvssError(f"{path} is not a map of class numbers of 8 bits. Is it the official file?")
    return table(codes, others)[array]


def first_channel(path: Path) -> np.ndarray:
    """Grey values; black and white of one bit are 0 and 255."""
    array = read_pixels(path)
    return array if array.ndim == 2 else array[..., 0]


def black_or_white(path: Path) -> np.ndarray:
    """The first channel divided by 255 and truncated: grey is black.

    Raises OvssError if white is missing or rare compared with grey: such a mask has another encoding (0 and 1, ...).
    """
    channel = first_channel(path)
    white, grey = np.count_nonzero(channel == 255), np.count_nonzero((channel != 0) & (channel != 255))
    if channel.dtype not in (np.uint8, bool) or (grey > FEW_GREY * channel.size and grey > GREY_TO_WHITE * white):
        values = np.unique(channel[(channel != 0) & (channel != 255)])[:8].tolist()
        raise OvssError(
            f"{path} holds the values {values} where a mask of 0 and 255 is expected. Is it the official file, or one that is "
            "converted already?"
        )
    note_pixels(grey, "are neither 0 nor 255; as in MESS's scripts, which divide by 255 and truncate, they count as 0")
    return (channel == 255).astype(np.uint8)


def brighter(path: Path, threshold: int, number: int) -> np.ndarray:
    """`number` where the first channel is above the threshold, else 0."""
    return np.where(first_channel(path) > threshold, np.uint8(number), np.uint8(0))


def bits(path: Path, codes: Mapping[tuple[int, int, int], int]) -> np.ndarray:
    """Classes by the channels (red, green, blue) that exceed 128."""
    image = (coloured(path) > 128).astype(np.uint8) * np.uint8(255)
    return known(image, {tuple(255 * bit for bit in key): code for key, code in codes.items()}, path)


def colours(path: Path, codes: Mapping[tuple[int, int, int], int]) -> np.ndarray:
    """Classes by colour."""
    return known(coloured(path), codes, path)


def known(image: np.ndarray, codes: Mapping[tuple[int, int, int], int], path: Path) -> np.ndarray:
    """(H, W, 3) -> (H, W) uint8, in blocks of rows, since `by_colour` takes 20 bytes per pixel. A few pixels of no class become
    255, ignored."""
    label = np.concatenate([by_colour(image[top : top + 256], codes, 255) for top in range(0, len(image), 256)])
    return few_ignored(label, image, "colour", path)


def few_ignored(label: np.ndarray, raw: np.ndarray, kind: str, path: Path) -> np.ndarray:
    """The label, if few enough of its pixels are 255, no class. `raw` are the stored values, for the error."""
    wrong = label == 255
    if wrong.sum() > FEW * label.size:
        found = np.unique(raw[wrong][:10_000], axis=0)[:8].tolist()
        raise OvssError(
            f"{path} holds the {kind}s {found} ({wrong.mean():.1%} of the pixels), which the official labels never have. Is it "
            "the official file?"
        )
    note_pixels(wrong.sum(), f"have a {kind} of no class; they are ignored (255)")
    return label


def luminance(path: Path, codes: Mapping[int, int]) -> np.ndarray:
    """Classes by grey value, after Pillow has turned the colours into grey. A few pixels of no class become
    255, ignored."""
    grey = np.array(Image.fromarray(coloured(path)).convert("L"))
    return few_ignored(table(codes, 255)[grey], grey, "value", path)


def coloured(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a map in colours."""
    with Image.open(path) as image:
        if image.mode in ("1", "L", "I", "I;16"):
            raise OvssError(f"{path} has one channel, expected RGB colours. Unpack the official archive again.")
        return np.array(image.convert("RGB"))
