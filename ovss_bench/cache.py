"""Cache entries: tensors in a safetensors file with a checksum, so that a damaged entry never changes a result."""

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
    """Writes tensors as an entry. Raises OvssError if the file cannot be written."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"checksum": _checksum(path.stem, tensors)}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))


def read_entry(path: Path) -> dict[str, Tensor] | None:
    """The tensors of an entry, memory-mapped; None if there is no entry or, with a warning, if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if (file.metadata() or {}).get("checksum") != _checksum(path.stem, tensors):
                raise ValueError("its checksum is wrong")
            return tensors
    except FileNotFoundError:
        return None
    except (*DAMAGES, SafetensorError) as error:
        warnings.warn(f"cache entry {path} is damaged ({error}); it is recomputed.", stacklevel=2)
        return None


def _checksum(key: str, tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of the key and of each tensor's name, dtype, shape and bytes: several GB/s; SHA-256 would slow the trunk cache."""
    total = 0
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(f"{key} {name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
