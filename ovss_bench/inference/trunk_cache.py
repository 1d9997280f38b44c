"""The trunk's tokens on disk, for runs that differ only in later steps."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..cache import read_entry, write_entry
from ..encoders.clip import DenseCLIP
from ..errors import OvssError
from ..files import code, digest, user_path
from ..image import image_key

HEADER = 1024  # upper bound of a file's bytes besides the tokens
BEGAN = time.time()
CODE = ("encoders/clip.py", "ops/position.py", "image.py", "ops/windows.py")


class TrunkCache:
    """A folder with a file per image and block: the inputs (windows, T, D) of the block, memory-mapped for reading.

    A file's name is a digest of everything that its content depends on: weights, precision, the trunk's recipe values, the
    image, and the code; `cache.py` verifies the content. The folder holds at most `limit` bytes. To make room, the least
    recently used files of other runs are evicted, but never those of this run: otherwise the next run over the same images
    would not have a single cache hit. Once they fill the folder, nothing is added.
    """

    def __init__(self, folder: str | Path, limit: float) -> None:
        self.folder, self.limit = user_path(folder), limit
        files = []
        for path in self.folder.glob("*/[!.]*.safetensors"):
            with suppress(FileNotFoundError):  # another process may evict it
                files.append((path.stat(), path))
        self.size = sum(stat.st_size for stat, _ in files)
        self._unused = sorted(((stat.st_mtime, stat.st_size, path) for stat, path in files), reverse=True)
        self._full = False

    def get(self, maker: str, image: np.ndarray, blocks: Collection[int]) -> dict[int, Tensor] | None:
        """Block -> its inputs for an image (H, W, 3) by `maker` (see `maker_digest`); None unless all blocks are cached."""
        key = image_key(image)
        found = {}
        for block in blocks:
            path = self._path(maker, key, block)
            if (entry := read_entry(path)) is None:
                return None
            found[block] = entry["tokens"]
            with suppress(OSError):  # the cache may be read-only
                os.utime(path)
        return found

    def put(self, maker: str, image: np.ndarray, states: Mapping[int, Tensor]) -> None:
        """Stores the inputs of blocks as long as there is room."""
        key = image_key(image)
        for block, tokens in states.items():
            if self._full or not self._make_room(tokens.nbytes + HEADER):
                return
            path = self._path(maker, key, block)
            try:
                write_entry(path, {"tokens": tokens})
                self.size += path.stat().st_size
            except (OvssError, SafetensorError) as error:
                warnings.warn(f"the trunk cache keeps nothing more: {error}", stacklevel=2)
                self._full = True

    def _make_room(self, wanted: int) -> bool:
        while self.size + wanted > self.limit and self._unused:
            _, size, path = self._unused.pop()
            with suppress(PermissionError):
                if not path.exists() or path.stat().st_mtime < BEGAN:
                    path.unlink(missing_ok=True)
                    self.size -= size
        return self.size + wanted <= self.limit

    def _path(self, maker: str, key: str, block: int) -> Path:
        name = digest(maker, key, str(block))
        return self.folder / name[:2] / f"{name}.safetensors"


def maker_digest(clip: DenseCLIP, trunk_key: tuple) -> str:
    """A digest of everything besides the image that tokens depend on."""
    encoder = (clip.weights_digest, clip.precision, clip.activation, clip.layer_norm_eps, clip.device.type)
    return digest(repr(encoder), repr(trunk_key), torch.__version__, code(*CODE))
