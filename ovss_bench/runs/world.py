"""Many processes on one run: which images are whose, and how the processes agree.

`torchrun` starts processes that know each other (`World`); `shard=I/N` is for processes and machines that do not (`Shard`). In
both cases each image is evaluated once, in one process, and counts travel by the run's folder only: no image is padded or
repeated, and the union by image id is the result, whoever evaluated what.
"""

from __future__ import annotations

import heapq
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import KEPT, OvssError

if TYPE_CHECKING:
    import torch.distributed as dist

# Processes wait for the slowest one; that one of them has died shows in its closed connections, not in the time it takes.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Shard:
    """`shard=I/N`: the I-th of N parts of the images."""

    number: int
    count: int

    @classmethod
    def of(cls, text: str | None) -> Shard | None:
        if text is None:
            return None
        match = re.fullmatch(r"(\d+)/(\d+)", str(text))
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise OvssError(f"shard={text}: expected I/N, the I-th of N parts, such as shard=1/16 to shard=16/16.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class World:
    """The processes that torchrun has started, seen from one of them; alone, if it has not."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1  # processes on this machine
    store: dist.Store | None = field(default=None, repr=False)

    def gather(self, value: Any) -> list[Any]:
        """What each process gives, in the order of their ranks; all must call it. Raises OvssError if one has died."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:
            raise OvssError(f"another process of this run has died (torchrun says which); {KEPT}.") from error
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that succeeds in all processes, or ends in all of them with the OvssError of the first that had one."""
        own = None
        try:
            yield
        except OvssError as error:
            own = error
        wrong = next((message for message in self.gather(own and str(own)) if message is not None), None)
        if wrong is not None:
            raise own if own and str(own) == wrong else OvssError(wrong)

    def speaks(self) -> bool:
        """Whether this process is the first to tell of an error; the others can leave it at that."""
        if self.store is None:
            return True
        try:
            return self.store.add("ovss_bench/errors", 1) == 1
        except RuntimeError:  # the process that keeps the store is gone
            return self.rank == 0

    def device(self, wanted: str | None) -> str:
        """The device of this process, of which several share a machine's GPUs in turn. Raises OvssError for one that PyTorch
        cannot use here."""
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
            raise OvssError(
                f"device={kind} cannot be used: {str(error).splitlines()[0]} Use cpu, or cuda for a GPU."
            ) from error
        if device.type not in ("cpu", "cuda"):
            raise OvssError(f"device={kind}: expected cpu, cuda or cuda:NUMBER.")
        return kind

    @property
    def launcher(self) -> list[str]:
        """The beginning of the command that starts these processes again."""
        return ["torchrun", "--nproc-per-node", str(self.local_size)] if self.size > 1 else [Path(sys.executable).name]

    def threads(self, wanted: int | None) -> int:
        """Threads of PyTorch in this process: as wanted, or its share of the cores that it may use."""
        return wanted or max(1, len(os.sched_getaffinity(0)) // self.local_size)


@cache
def join() -> World:
    """The world of this process, by the environment variables that torchrun sets. Waits for the other processes."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "MASTER_ADDR" not in os.environ:
        return World()
    import torch
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, size = next(dist.rendezvous("env://"))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise OvssError(f"the processes of this run do not find each other: {error}") from error
    local = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return World(rank, size, *local, store)


@contextmanager
def leaving() -> Iterator[None]:
    """Ends the process after the block, if it is one of several: at once, as gloo's threads may ask for the lock of an
    interpreter that has begun to end, which aborts the process, and torchrun then ends the others, whose work is not done."""
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


def split(costs: Sequence[int], parts: int) -> list[list[int]]:
    """Numbers of the items in `parts` lists of about equal cost: the dearest first, each to the part that has least so far."""
    loads = [(0, part) for part in range(parts)]
    chosen: list[list[int]] = [[] for _ in range(parts)]
    for number in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        load, part = loads[0]
        chosen[part].append(number)
        heapq.heapreplace(loads, (load + costs[number], part))
    return [sorted(numbers) for numbers in chosen]
