"""A progress bar with images (or files) per second and remaining time; plain lines if stderr is not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.segment import Segment

from .errors import CONTROL

SECONDS_PER_LINE = 10


def console(quiet: bool = False, stderr: bool = False) -> Console:
    """The console of the tools. It interprets neither markup nor control characters: class and file names may contain them."""
    wide = None if stderr or sys.stdout.isatty() else 200  # tables in a file or a pipe are not wrapped
    return _Console(stderr=stderr, quiet=quiet, soft_wrap=True, highlight=False, markup=False, emoji=False, width=wide)


class _Console(Console):
    """Drops control characters, which would break the layout of tables."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(CONTROL.sub("", segment.text), segment.style)


class Progress:
    """`say` prints a line, `start` begins counting."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = console(quiet, stderr=True)

    def say(self, line: str) -> None:
        self.console.print(line)

    def start(self, title: str, count: int, unit: str = "images") -> _Task:
        return _Task(self, title, count, unit)


class _Task(AbstractContextManager):
    def __init__(self, progress: Progress, title: str, count: int, unit: str) -> None:
        self.progress, self.title, self.count, self.unit = progress, title, count, unit
        self.done, self.began, self.printed = 0, time.monotonic(), time.monotonic()
        self.bar = None
        if sys.stderr.isatty() and not progress.quiet:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
            )
            self.bar = Bar(*columns, console=progress.console)
            self.bar.start()
            self.task = self.bar.add_task(title, total=count, speed="")
        else:
            progress.say(f"{title}: {count} {unit}")

    def advance(self, count: int = 1) -> None:
        self.done += count
        if self.bar:
            self.bar.update(self.task, completed=self.done, speed=self._speed())
        elif time.monotonic() - self.printed > SECONDS_PER_LINE:
            self.printed = time.monotonic()
            left = (self.count - self.done) * (self.printed - self.began) / max(self.done, 1)
            self.progress.say(f"{self.title}: {self.done}/{self.count} {self.unit}, {self._speed()}, {left:.0f} s left")

    def _speed(self) -> str:
        speed = self.done / max(time.monotonic() - self.began, 1e-9)
        return f"{1 / speed:.1f} s/{self.unit.removesuffix('s')}" if 0 < speed < 1 else f"{speed:.1f} {self.unit}/s"

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self.bar:
            self.bar.stop()
        seconds = time.monotonic() - self.began
        self.progress.say(f"{self.title}: {self.done} {self.unit} in {seconds:.0f} s, {self._speed()}")
