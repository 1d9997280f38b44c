"""Asynchronous copies to a GPU, and constants cached there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor

CPU = torch.device("cpu")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. Copies from pinned memory do not synchronise with the GPU; copies from other memory do."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, operations on the CPU run in the calling thread only. This is for many small ones, whose threads would wait for
    each other longer than they compute, above all on a busy machine."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def kept(count: int) -> Callable[[Callable], Callable]:
    """Caches the last `count` results of a function of hashable values that returns a tensor on the CPU, or a tuple or list
    with tensors. With the argument `like=tensor` the result is on the device of that tensor."""

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
