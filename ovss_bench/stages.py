"""Time of a run by stage: read, resize, encode, vision encoder, last block, compose, count, ..."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import write_atomic

if TYPE_CHECKING:  # torch is imported where it is used: commands without it import this module through types.py
    import torch


TRACED = 500  # stages in a trace, which takes a megabyte per image: a longer one would fill the memory


class _Thread(threading.local):
    """`open`: the open stages of a thread, outermost first, as [Stages, seconds in nested stages]."""

    def __init__(self) -> None:
        self.open: list[list[Any]] = []


_THREAD = _Thread()


class Stages:
    """Seconds of each stage, summed over all threads; stages of reader threads overlap with the others. The time of a nested
    stage counts only in the nested stage. `sources`: the stages of auxiliary models by `id`, see `of_source`.

    GPU work is asynchronous: its time counts in the stage that waits for it. If `traced`, every stage synchronises with the
    GPU, and `write_trace` writes what PyTorch's profiler recorded of the first TRACED stages."""

    def __init__(self, device: torch.device | None = None, traced: bool = False) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.sources: dict[int, str] = {}
        self._lock = threading.Lock()
        self._profiler: Any = None
        self._owner, self._left = threading.current_thread(), TRACED  # who stops the profiler, after how many stages
        self._recorded: Callable[[str], AbstractContextManager] = nullcontext
        self._wait: Callable[[], None] = lambda: None
        if traced:
            import torch

            self._profiler, self._recorded = torch.profiler.profile(), torch.profiler.record_function
            self._profiler.start()
            if device is not None and device.type == "cuda":
                self._wait = torch.cuda.synchronize

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        outer, frame = _THREAD.open, [self, 0.0]
        with self._recorded(stage):
            if outer:
                self._wait()  # for the work of the enclosing stage
            outer.append(frame)
            began = time.perf_counter()
            try:
                yield
                self._wait()
            finally:
                spent = time.perf_counter() - began
                outer.pop()
                if outer:
                    outer[-1][1] += spent
                with self._lock:
                    self.seconds[stage] += spent - frame[1]
                    self.calls[stage] += 1
                    self._left -= 1
        if self._left <= 0 and not outer and threading.current_thread() is self._owner:
            self._stop()

    def _stop(self) -> None:
        """Stops the profiler if it is still recording."""
        if self._recorded is not nullcontext:
            self._recorded = nullcontext
            self._profiler.stop()

    def table(self, seconds: float) -> str:
        """The stages of a run that took `seconds`, longest first."""
        rows = sorted(self.seconds.items(), key=lambda row: -row[1])
        return "\n".join(
            f"{name:<14}{spent:>9.2f} s{100 * spent / seconds:>7.1f} %{self.calls[name]:>9} times" for name, spent in rows
        )

    def write_trace(self, path: Path) -> None:
        """Writes a trace for chrome://tracing or ui.perfetto.dev: the stages and every operator in them."""
        self._stop()
        write_atomic(path, lambda temporary: self._profiler.export_chrome_trace(str(temporary)))


def within(stage: str) -> AbstractContextManager:
    """A stage inside the current one of this thread; without one, nothing is measured."""
    return _THREAD.open[-1][0](stage) if _THREAD.open else nullcontext()


def of_source(source: Any) -> AbstractContextManager:
    """The stage of a call of an auxiliary model, inside the current stage; models not in `Stages.sources` have none."""
    stage = _THREAD.open[-1][0].sources.get(id(source)) if _THREAD.open else None
    return within(stage) if stage else nullcontext()
