"""Shared functions of the converters: reading and writing label maps, tables of values and colours."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...config.registry import Registry
from ...errors import OvssError
from ...files import data_files, read_lines, write_atomic, write_text

FOREIGN = 0.01  # if more of a map's pixels belong to no class, it has another encoding
UNPACK = "Unpack the official archive again."
Image.MAX_IMAGE_PIXELS = None  # aerial images exceed Pillow's limit

CONVERTERS = Registry("converter")


@dataclass(frozen=True)
class Task:
    """A unit of work for a worker process: `make(*arguments)` writes `targets` atomically."""

    make: Callable[..., None]
    arguments: tuple[Any, ...]
    targets: tuple[Path, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.sources))

    @property
    def sources(self) -> list[Path]:
        """The raw files: paths among the arguments other than `targets`."""
        return [argument for argument in self.arguments if isinstance(argument, Path) and argument not in self.targets]


def read_pixels(path: Path) -> np.ndarray:
    """The stored values: (H, W) indices or grey values, or (H, W, 3) colours."""
    with Image.open(path) as image:
        return np.array(image if image.mode in ("P", "L", "I", "I;16", "RGB") else image.convert("RGB"))


def list_lines(path: Path) -> list[str]:
    """The non-empty lines of a list. Raises OvssError if it is missing or not text."""
    require([path])
    return [line for _, line in read_lines(path, "list") if line]


def words(path: Path) -> list[str]:
    """The words of a list: ids or file names."""
    return [word for line in list_lines(path) for word in line.split()]


_notes: list[tuple[str, int]] = []  # about the label map that this process is converting


def note_pixels(number: int, what: str) -> None:
    """Notes for the final summary that `number` pixels of the current label map are unexpected; `what` says how they count."""
    if number:
        _notes.append((what, int(number)))


def noted() -> list[tuple[str, int]]:
    """Returns and clears the notes."""
    notes = _notes.copy()
    _notes.clear()
    return notes


def labelled(read: Callable[[Path], np.ndarray], source: Path, target: Path) -> Task:
    """The task that writes the label map `read(source)`."""
    return Task(decode, (read, source, target), (target,))


def decode(read: Callable[[Path], np.ndarray], source: Path, target: Path) -> None:
    write_label(target, read(source))


def write_label(path: Path, label: np.ndarray) -> None:
    """Writes (H, W) uint8 as grey PNG, or uint16 as deflated TIFF."""
    write_image(path, label, **({"compression": "tiff_adobe_deflate"} if path.suffix == ".tif" else {}))


def write_image(path: Path, image: np.ndarray, **options: Any) -> None:
    """Writes an array (H, W, 3) or (H, W) in the format of the suffix."""
    write_atomic(path, lambda temporary: Image.fromarray(image).save(temporary, **options))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    write_text(path, "".join(f"{line}\n" for line in lines))


def copied(source: Path, target: Path) -> Task:
    return Task(copy, (source, target), (target,))


def copy(source: Path, target: Path) -> None:
    write_atomic(target, partial(shutil.copyfile, source))


def lookup_table(values: Mapping[int, int], default: int, dtype: type = np.uint8, size: int = 256) -> np.ndarray:
    """A lookup table with `size` entries: `values`, and `default` elsewhere."""
    result = np.full(size, default, dtype)
    result[list(values)] = list(values.values())
    return result


def numbered(colours: str) -> dict[tuple[int, int, int], int]:
    """RGB -> position in `colours`, which are hexadecimal and separated by spaces."""
    return {(*bytes.fromhex(colour),): number for number, colour in enumerate(colours.split())}


def by_colour(image: np.ndarray, colours: Mapping[tuple[int, int, int], int], default: int = 255) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W) uint8: the value of each colour, `default` for other colours."""
    keys = image.astype(np.int32) @ np.array([65536, 256, 1])
    label = np.full(keys.shape, default, np.uint8)
    for (red, green, blue), value in colours.items():
        label[keys == (red << 16) + (green << 8) + blue] = value
    return label


def files(folder: Path, pattern: str) -> list[Path]:
    """The files that match a pattern, sorted, without hidden files. Raises OvssError if there are none."""
    if found := data_files(folder, pattern):
        return found
    raise OvssError(f"there is no {pattern} in {folder}. Unpack the official archive there.")


def require(paths: Sequence[Path]) -> None:
    """Raises OvssError for missing files."""
    if missing := [path for path in paths if not path.is_file()]:
        raise OvssError(f"{len(missing)} files are missing, the first: {missing[0]}. {UNPACK}")
