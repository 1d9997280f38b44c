"""Reads weights from files: safetensors, PyTorch state dicts and OpenAI's TorchScript archives, without unsafe unpickling."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import safetensors
import torch
from torch import Tensor, nn

from ..errors import OvssError
from ..files import digest
from .torchscript import is_torchscript, read_torchscript

Network = TypeVar("Network", bound=nn.Module)
# Keys under which training code stores the state dict (DINO: the teacher; FOUND: its decoder).
WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher", "student", "decoder")


@contextmanager
def weight_errors(what: str) -> Iterator[None]:
    """Turns any exception except OvssError and OutOfMemoryError into an OvssError that begins with `what`."""
    try:
        yield
    except (OvssError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = f"no {error.args[0]}" if isinstance(error, KeyError) and error.args else str(error).strip()
        raise OvssError(f"{what}: {reason[:600] or type(error).__name__}") from error


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file and its metadata: parsed JSON from safetensors, or the activation of OpenAI's archives."""
    path = Path(path)
    try:
        content, metadata = _read(path)
        if isinstance(content, dict):
            content = next((content[name] for name in WRAPPERS if name in content), content)
        if not isinstance(content, dict) or not content:
            raise ValueError("it holds no state dict")
        for name, tensor in content.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise ValueError(f"it holds no state dict: {str(name)[:60]!r} is not a tensor")
            if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or _is_expanded(tensor):
                raise ValueError(f"{name!r} is not a plain tensor")
        return content, metadata
    except Exception as error:  # of any parser, for example for a web page saved as weights
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        hint = "Expected safetensors, a state dict saved by torch.save, or one of OpenAI's TorchScript archives."
        raise OvssError(f"weights {path} cannot be read safely: {reason}. {hint}") from error


def _read(path: Path) -> tuple[Any, dict[str, Any]]:
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "pt") as file:
            metadata = {name: _parsed(value) for name, value in (file.metadata() or {}).items()}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    if is_torchscript(path):
        # Only OpenAI released such archives, all trained with QuickGELU.
        return read_torchscript(path), {"activation": "quick_gelu"}
    with torch.serialization.safe_globals([argparse.Namespace]):  # in training checkpoints of DINO and MAE
        return torch.load(path, map_location="cpu", weights_only=True), {}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_expanded(tensor: Tensor) -> bool:
    """Whether a tensor claims more elements than its storage holds: a file of a few bytes could claim a terabyte."""
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def shared(load: Callable[..., Network]) -> Callable[..., Network]:
    """Decorates a function that loads a network from a file, its first argument. Equal calls return the same network while it
    is in use and the file is unchanged."""
    networks: WeakValueDictionary[tuple[Any, ...], Network] = WeakValueDictionary()

    @wraps(load)
    def shared_load(path: str | Path, *arguments: Any) -> Network:
        key = (str(path), Path(path).stat().st_mtime_ns, *arguments)
        network = networks.get(key)
        if network is None:
            network = networks[key] = load(path, *arguments)
        return network

    return shared_load


def as_float32(name: str, tensor: Tensor) -> Tensor:
    """Raises OvssError for tensors that are not floating point: quantised weights are useless without their scales."""
    if not tensor.is_floating_point():
        raise OvssError(f"tensor {name} is {tensor.dtype}, not floating point; were these weights quantised?")
    return tensor.float()


def on_meta(model: nn.Module, *inputs: Any, **options: Any) -> Tensor:
    """A forward pass on the meta device, which checks at no cost that all shapes fit together."""
    parts = {name: tensor.to("meta") for name, tensor in chain(model.named_parameters(), model.named_buffers())}
    with torch.inference_mode():
        return torch.func.functional_call(model, parts, inputs, options)


def renamed(state_dict: Mapping[str, Tensor], stem: str, rules: Sequence[tuple[str, str]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors whose names begin with `stem`, without it, renamed by all rules (pattern, replacement) in order."""
    for name, tensor in state_dict.items():
        if name.startswith(stem):
            name = name.removeprefix(stem)
            for pattern, replacement in rules:
                name = re.sub(pattern, replacement, name)
            yield name, tensor


def state_digest(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors, independent of the file format."""
    parts: list[str | bytes] = []
    for name, tensor in sorted(state.items()):
        tensor = tensor.detach().cpu().contiguous()
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}", tensor.reshape(-1).view(torch.uint8).numpy().data]
    return digest(*parts)
