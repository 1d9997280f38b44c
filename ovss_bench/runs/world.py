"""Distributed evaluation: how images are assigned to processes, and how the processes agree.

`torchrun` starts processes that communicate (`World`); `shard=I/N` is for processes and machines that do not (`Shard`). In both
cases, each image is evaluated exactly once, with no padding or repetition, and counts are exchanged through the run's folder:
the result is the union by image id."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import KEPT, OvssError

# Processes wait for the slowest one. Closed connections reveal a dead process, not a timeout.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Shard:
    """`shard=I/N`: part I of N of the images, from 1."""

    number: int
    count: int

    @classmethod
    def of(cls, text: str | None) -> Shard | None:
        if text is None:
            return None
        match = re.fullmatch(r"(\d+)/(\d+)", str(text))
        number, count = map(int, match.groups()) if match else (0, 0)
        if not 1 <= number <= count:
            raise OvssError(f"shard={text}: expected I/N, part I of N, such as shard=1/16 to shard=16/16.")
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class World:
    """The processes that torchrun started, as seen by one of them; by default a single process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1  # processes on this machine
    store: Any = field(default=None, repr=False)  # torch.distributed.Store, or None

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes by rank; all of them must call it. Raises OvssError if one has died."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:
            raise OvssError(f"another process of this run has died (torchrun names it); {KEPT}.") from error
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that succeeds in all processes, or raises the OvssError of the first failing process in all of them."""
        failure = None
        try:
            yield
        except OvssError as error:
            failure = error
        messages = [message for message in self.gather(failure and str(failure)) if message is not None]
        if messages:
            raise failure if failure and str(failure) == messages[0] else OvssError(messages[0])

    def speaks(self) -> bool:
        """Whether this process is the first to report an error; the others stay silent."""
        if self.store is None:
            return True
        try:
            return self.store.add("ovss_bench/errors", 1) == 1
        except RuntimeError:  # the process that hosts the store is gone
            return self.rank == 0

    def device(self, wanted: str | None) -> str:
        """The device of this process; those of a machine share its GPUs round-robin. Raises OvssError for an unusable one."""
        import torch

        kind = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
        if kind == "cuda" and self.size > 1 and torch.cuda.is_available():
            kind = f"cuda:{self.local_rank % torch.cuda.device_count()}"
        try:
            device = torch.device(kind)
            if device.type == "cuda" and device.index is not None:
                torch.cuda.set_device(device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise OvssError(f"device={kind} cannot be used: {reason}. Use cpu, or cuda for a GPU.") from error
        if device.type not in ("cpu", "cuda"):
            raise OvssError(f"device={kind}: expected cpu, cuda or cuda:NUMBER.")
        return kind

    @property
    def launcher(self) -> list[str]:
        """The beginning of the command that restarts these processes."""
        return ["torchrun", "--nproc-per-node", str(self.local_size)] if self.size > 1 else [Path(sys.executable).name]

    def threads(self, wanted: int | None) -> int:
        """PyTorch threads of this process: `wanted`, or its share of the available cores."""
        return wanted or max(1, len(os.sched_getaffinity(0)) // self.local_size)


@cache
def join() -> World:
    """The world of this process, from torchrun's environment variables. Waits for the other processes."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "MASTER_ADDR" not in os.environ:
        return World()
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, size = next(rendezvous("env://"))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise OvssError(f"the processes of this run cannot connect to each other: {error}") from error
    local = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return World(rank, size, *local, store)


@contextmanager
def leaving() -> Iterator[None]:
    """Exits one of several processes right after the block, without finalising the interpreter: gloo's threads may still
    request its lock, which aborts the process, and torchrun would then kill the others before they have finished."""
    status: Any = None
    try:
        yield
    except SystemExit as end:
        status = end.code
    dist = sys.modules.get("torch.distributed")
    if dist is None or not (dist.is_available() and dist.is_initialized()):
        sys.exit(status)
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


def balance(costs: Sequence[int], parts: int) -> list[list[int]]:
    """Splits item numbers into `parts` lists of similar cost: the most expensive first, each to the cheapest list so far."""
    loads = [0] * parts
    chosen: list[list[int]] = [[] for _ in range(parts)]
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        part = loads.index(min(loads))
        chosen[part].append(number)
        loads[part] += costs[number]
    return [sorted(numbers) for numbers in chosen]
