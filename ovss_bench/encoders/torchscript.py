"""The state dict of a TorchScript archive (OpenAI's CLIP), read from its pickle and the bytes of its tensors. Unlike
`torch.jit.load`, it runs no code from the archive: the unpickler knows only tensors and modules.

An archive is a zip file with a single folder: `data.pkl` is the module tree, `data/N` are the tensors' bytes, and `code/` lists
the parameters and buffers of each module class (torch/csrc/jit/docs/serialization.md).
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The types of storages. Most names are those of torch's types.
NAMED = ("Float", "Double", "Half", "BFloat16", "Short", "Int", "Long", "Bool")
STORAGES = {kind: getattr(torch, kind.lower()) for kind in NAMED} | {"Byte": torch.uint8, "Char": torch.int8}
# The declaration of a module class: its name, then the names of parameters and buffers.
DECLARED = re.compile(r'^class (\w+)\(Module\):\n  __parameters__ = \[([\w", ]*)\]\n  __buffers__ = \[([\w", ]*)\]', re.M)


def is_torchscript(path: Path) -> bool:
    """Whether a file is such an archive rather than one of torch.save. Like torch.load, this looks for constants.pkl."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The same as `torch.jit.load(path).state_dict()`, on the CPU. Damaged files raise nearly any exception."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (folder,) = {name.partition("/")[0] for name in names}
        if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != b"little":
            raise ValueError("it was written on a machine with another byte order")
        code = f"{folder}/code/"
        declared = {}
        for name in names:
            if name.startswith(code) and name.endswith(".py"):
                module = name.removeprefix(code).removesuffix(".py").replace("/", ".")
                for found, *attributes in DECLARED.findall(archive.read(name).decode()):
                    declared[f"{module}.{found}"] = re.findall(r"\w+", " ".join(attributes))
        data = BytesIO(archive.read(f"{folder}/data.pkl"))
        root = _Unpickler(data, lambda key: archive.read(f"{folder}/data/{key}")).load()
    if not isinstance(root, _Module):
        raise ValueError("its data.pkl holds no module")
    state: dict[str, Tensor] = {}
    _collect(root, "", declared, state)
    return state


class _Module:
    """A module of the archive; `kind` is the name of its class there."""

    kind = ""


def _collect(module: _Module, prefix: str, declared: dict[str, list[str]], state: dict[str, Tensor]) -> None:
    for name, value in vars(module).items():
        if isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", declared, state)
        elif isinstance(value, Tensor) and name in declared.get(type(module).kind, [name]):
            state[prefix + name] = value


class _Unpickler(pickle.Unpickler):
    """Resolves names in the pickle to modules, storage types, or the few functions of tensors and lists; imports nothing."""

    def __init__(self, file: BytesIO, read: Callable[[str], bytes]) -> None:
        super().__init__(file)
        self._read, self._storages, self._kinds = read, {}, {}
        # New functions for each pickle, since a pickle may modify them.
        self._known = {
            ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: _tensor(*arguments),
            ("collections", "OrderedDict"): lambda *items: OrderedDict(*items),
            **{("torch.jit._pickle", f"build_{kind}list"): lambda values: list(values) for kind in ("int", "double", "bool")},
            ("torch.jit._pickle", "build_tensorlist"): lambda values: list(values),
            ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
        }

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            kind = f"{module}.{name}"
            return self._kinds.setdefault(kind, type(name, (_Module,), {"kind": kind}))
        if module == "torch" and name.removesuffix("Storage") in STORAGES:
            return name.removesuffix("Storage")
        if (module, name) in self._known:
            return self._known[module, name]
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no CLIP needs")

    def persistent_load(self, reference: Any) -> Tensor:
        """All elements of a storage, by ("storage", type, number, device, count)."""
        _, kind, key, _, count = reference
        if key not in self._storages:
            content, dtype = bytearray(self._read(key)), STORAGES[kind]
            flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            if len(flat) < count:
                raise pickle.UnpicklingError(f"storage {key} has {len(flat)} of {count} numbers")
            self._storages[key] = flat
        return self._storages[key]


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """Raises RuntimeError for a size beyond the storage."""
    return storage.as_strided(size, stride, offset)
