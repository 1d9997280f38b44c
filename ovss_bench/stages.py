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
    """Adds up the seconds of each stage, over all threads; those in reader threads overlap with the others.

    Work is only handed to a GPU, and its time shows where something waits for it; if `traced`, every stage waits for its own,
    and `write_trace` writes what PyTorch's profiler saw.
    """

    def __init__(self, device: torch.device | None = None, traced: bool = False) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._lock = threading.Lock()
        self._synchronise = traced and device is not None and device.type == "cuda"
        self._profiler = _profiler() if traced else None

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
        """The stages by their time, of a run of so many seconds."""
        rows = sorted(self.seconds.items(), key=lambda row: -row[1])
        return "\n".join(
            f"{name:<14}{own:>9.2f} s{100 * own / seconds:>7.1f} %{self.calls[name]:>9} times" for name, own in rows
        )

    def write_trace(self, path: Path) -> None:
        """A trace for chrome://tracing or ui.perfetto.dev: the stages, and in them every operator."""
        self._profiler.stop()
        write_atomic(path, lambda temporary: self._profiler.export_chrome_trace(str(temporary)))


def _profiler() -> torch.profiler.profile:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    profiler = torch.profiler.profile(activities=activities)
    profiler.start()
    return profiler
