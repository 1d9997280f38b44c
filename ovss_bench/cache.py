"""Entries of the caches: tensors in a safetensors file with a checksum of all that they are, so that damage never changes a
result."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .files import DAMAGES, write_atomic


def write_entry(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises OvssError where it cannot be written."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"checksum": _checksum(path.stem, tensors)}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))


def read_entry(path: Path) -> dict[str, Tensor] | None:
    """The tensors of an entry, memory-mapped; None where there is none and, with a warning, where it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if (file.metadata() or {}).get("checksum") != _checksum(path.stem, tensors):
                raise ValueError("its checksum is wrong")
            return tensors
    except FileNotFoundError:
        return None
    except (*DAMAGES, SafetensorError) as error:
        warnings.warn(f"cache entry {path} is damaged ({error}); it is made again.", stacklevel=2)
        return None


def _checksum(key: str, tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of the entry's name and of names, types, shapes and bytes: several GB/s, where a SHA-256 would cost a noticeable
    part of what the trunk cache saves."""
    total = 0
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(f"{key} {name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), total)
    return f"{total:08x}"
