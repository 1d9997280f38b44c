"""Where the time of a run goes, by stage: read, resize, encode, last block, compose, count, ..."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from .files import write_atomic


class Stages:
    """Adds up the seconds of each stage over all threads; stages of reader threads overlap with the others. GPU work is
    asynchronous: its time counts in the stage that waits for it. If `traced`, every stage synchronises with the GPU, and
    `write_trace` writes the record of PyTorch's profiler."""

    def __init__(self, device: torch.device | None = None, traced: bool = False) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._lock = threading.Lock()
        self._synchronise = traced and device is not None and device.type == "cuda"
        self._profiler = torch.profiler.profile() if traced else None
        if self._profiler:
            self._profiler.start()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        with torch.profiler.record_function(stage) if self._profiler else nullcontext():
            began = time.perf_counter()
            try:
                yield
                if self._synchronise:
                    torch.cuda.synchronize()
            finally:
                with self._lock:
                    self.seconds[stage] += time.perf_counter() - began
                    self.calls[stage] += 1

    def table(self, seconds: float) -> str:
        """The stages of a run of that many seconds, the longest first."""
        rows = sorted(self.seconds.items(), key=lambda row: -row[1])
        return "\n".join(
            f"{name:<14}{spent:>9.2f} s{100 * spent / seconds:>7.1f} %{self.calls[name]:>9} times" for name, spent in rows
        )

    def write_trace(self, path: Path) -> None:
        """A trace of a `traced` run for chrome://tracing or ui.perfetto.dev: the stages with every operator in them."""
        profiler = self._profiler
        assert profiler is not None
        profiler.stop()
        write_atomic(path, lambda temporary: profiler.export_chrome_trace(str(temporary)))
