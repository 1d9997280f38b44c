"""Keeps the records of many images on disk instead of in memory, and writes arrays that never are in memory as a whole."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np

from ..files import cannot_write

LENGTH_BYTES = 8


class Spill:
    """An unnamed file in a folder. The first write opens it; the operating system deletes it when the process ends."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._end = folder, 0
        self._file: IO[bytes] | None = None

    def put(self, content: bytes) -> int:
        """Appends bytes and returns their offset. Raises OvssError if the folder cannot be written to."""
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = TemporaryFile(dir=self._folder)  # noqa: SIM115  closed by `close`
            place = self._file.seek(self._end)
            self._file.write(len(content).to_bytes(LENGTH_BYTES, "little"))
            self._file.write(content)
        except OSError as error:
            raise cannot_write(self._folder, error) from error
        self._end += LENGTH_BYTES + len(content)
        return place

    def get(self, place: int) -> bytes:
        try:
            assert self._file is not None
            self._file.seek(place)
            return self._file.read(int.from_bytes(self._file.read(LENGTH_BYTES), "little"))
        except OSError as error:  # reading flushes pending writes, which may fail
            raise cannot_write(self._folder, error) from error

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # the disk is full, but the content is no longer needed
                self._file.close()


class SpilledRecords(Mapping[str, np.ndarray]):
    """Arrays of records by image id. Only their offsets in a spill are in memory."""

    def __init__(self, spill: Spill, dtype: np.dtype) -> None:
        self._spill, self._dtype = spill, dtype
        self._places: dict[str, int] = {}

    def add(self, image: str, records: np.ndarray) -> None:
        if records.dtype != self._dtype:  # from a file with the same fields in other widths
            records = records[list(self._dtype.names or ())].astype(self._dtype)
        self._places[image] = self._spill.put(records.tobytes())

    def __getitem__(self, image: str) -> np.ndarray:
        return np.frombuffer(self._spill.get(self._places[image]), self._dtype)

    def __contains__(self, image: object) -> bool:
        return image in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Joined:
    """The concatenated records of images: like one array with the sum of `lengths` elements, but read image by image."""

    def __init__(self, records: Mapping[str, np.ndarray], images: Sequence[str], dtype: np.dtype) -> None:
        self.dtype, self._records, self._images = dtype, records, images
        self.lengths = np.array([len(records[image]) for image in images], np.int64)
        self.shape = (int(self.lengths.sum()),)
        self.nbytes = self.shape[0] * dtype.itemsize

    def pieces(self) -> Iterator[bytes]:
        return (self._records[image].tobytes() for image in self._images)


def pieces(array: np.ndarray | Joined) -> Iterable[bytes]:
    """The bytes of an array in order."""
    return array.pieces() if isinstance(array, Joined) else [array.tobytes()]


def savez(path: Path, content: Mapping[str, np.ndarray | Joined]) -> None:
    """The file that `np.savez_compressed` writes, without holding a `Joined` array in memory."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in content.items():
            head = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, head)
                for piece in pieces(array):
                    file.write(piece)
