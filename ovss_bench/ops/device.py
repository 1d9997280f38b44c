"""Tensors on their way from the CPU to a GPU, without a wait, and constants that stay there."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor

CPU = torch.device("cpu")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. The CPU waits for all work on a GPU before it copies ordinary memory there, but not before it
    copies pinned memory."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def kept(count: int) -> Callable[[Callable], Callable]:
    """Decorates a function of hashable values that makes a tensor on the CPU, or a tuple or list with tensors. Calls with
    `like=` a tensor give it on the same device; the latest `count` results stay there."""

    def decorate(make: Callable) -> Callable:
        made = lru_cache(count)(lambda device, *values: _moved(make(*values), device))
        return wraps(make)(lambda *values, like=None: made(CPU if like is None else like.device, *values))

    return decorate


@kept(256)
def whole_numbers(values: tuple[int, ...]) -> Tensor:
    """(N,) int64."""
    return torch.tensor(values, dtype=torch.int64)


def _moved(made: Any, device: torch.device) -> Any:
    if isinstance(made, Tensor):
        return to_device(made, device)
    return type(made)(_moved(part, device) for part in made) if isinstance(made, tuple | list) else made
