"""Which operations a method spends its time in: samples of what the main thread is doing, by stage and function."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ..auxiliary.sources import STAGES
from ..files import PACKAGE
from ..stages import Stages

PERIOD = 0.005  # seconds between samples: short beside a round, long beside the work of taking one
ENCODERS = frozenset({"encode", *STAGES.values(), "concept image", "concept text", "concept prompts", "concept masks"})
LEAST = 0.02  # share of an operation that is worth a word


class Watched(Stages):
    """Stages that count samples of the thread that made them, while `watching`. The function of a sample is the innermost one
    of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: Counter[tuple[str, str]] = Counter()
        self._names = ["between stages"]

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        watched = threading.current_thread() is self._owner
        if watched:
            self._names.append(stage)
        try:
            with super().__call__(stage):
                yield
        finally:
            if watched:
                self._names.pop()

    def clear(self) -> None:
        """Forgets what was measured so far."""
        self.seconds.clear()
        self.calls.clear()
        self.samples.clear()

    @contextmanager
    def watching(self) -> Iterator[None]:
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(ended,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(PERIOD):
            stage, frame = self._names[-1], sys._current_frames().get(self._owner.ident or 0)
            if function := function_of(frame):
                self.samples[stage, function] += 1


def function_of(frame: FrameType | None) -> str | None:
    """`file.py function` of the innermost frame in this package, apart from the benchmark; None without one."""
    while frame:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents and path.parent != PACKAGE / "bench" and path.name != "stages.py":
            return f"{path.relative_to(PACKAGE)} {frame.f_code.co_qualname.partition('.<locals>')[0]}"
        frame = frame.f_back
    return None


def own_operations(samples: Mapping[tuple[str, str], int], own_network: bool) -> dict[str, float]:
    """The share of the whole time that each function outside of the encoders took, the largest first. For a method with an
    `own_network`, the networks' classes are encoders, whatever the stage."""
    total, counts = sum(samples.values()), Counter[str]()
    for (stage, function), count in samples.items():
        file, _, name = function.partition(" ")
        network = own_network and file.startswith("encoders/") and "." in name
        if stage not in ENCODERS and not network:
            counts[function] += count
    return {function: round(count / total, 4) for function, count in counts.most_common() if count >= LEAST * total}
