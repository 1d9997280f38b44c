"""Samples which operations a method spends its time in, by stage and function."""

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

PERIOD = 0.005  # seconds between samples: short compared with a round, long compared with taking a sample
ENCODERS = frozenset({"encode", *STAGES.values(), "concept image", "concept text", "concept prompts", "concept masks"})
LEAST = 0.02  # smallest share of the time that is listed


class Watched(Stages):
    """Stages that, while `watching`, count samples of the thread that created them. A sample counts for the innermost function
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
        """Discards all measurements so far."""
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
    """`file.py function` of the innermost frame in this package, except the benchmark; None if there is none."""
    while frame:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents and path.parent != PACKAGE / "bench" and path.name != "stages.py":
            return f"{path.relative_to(PACKAGE)} {frame.f_code.co_qualname.partition('.<locals>')[0]}"
        frame = frame.f_back
    return None


def own_operations(samples: Mapping[tuple[str, str], int], own_network: bool) -> dict[str, float]:
    """The share of the total time that each function outside the encoders took, the largest first. For a method with an
    `own_network`, classes of networks count as encoders in every stage."""
    total, counts = sum(samples.values()), Counter[str]()
    for (stage, function), count in samples.items():
        file, _, name = function.partition(" ")
        network = own_network and file.startswith("encoders/") and "." in name
        if stage not in ENCODERS and not network:
            counts[function] += count
    return {function: round(count / total, 4) for function, count in counts.most_common() if count >= LEAST * total}
