"""Runs the tasks of a converter in worker processes."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import OvssError, reading
from ...files import as_text, below
from ...process import in_processes
from ...progress import Progress
from ..config import alternatives
from ..layout import UNFINISHED, unfinished
from . import converters  # noqa: F401  (registers them)
from .archives import sweep
from .conversion import CONVERTERS, Task, noted, require
from .preparation import Preparation

DAMAGED = "If they are damaged, unpack the official archive again."


def convert(preparation: Preparation, keep: bool) -> None:
    """Writes the missing files, or all files with `rerun`. Raises OvssError for damaged raw files and, without `keep`, for
    missing raw files."""
    name, config, folder, rerun = preparation.name, preparation.config, preparation.folder, preparation.rerun
    converter, say = config["prepare"]["converter"], preparation.progress.say
    options = {"images": preparation.images} if preparation.images else {}
    try:
        with preparation.explained(), reading(f"raw files of {name} in {folder}", DAMAGED):
            tasks = list(CONVERTERS.get(converter)(folder, **options))
            written = _targets(tasks)
            left = [task for task in tasks if rerun or not all(target.exists() for target in task.targets)]
            require([source for task in left for source in task.sources])
    except OvssError as error:
        if not keep:
            raise
        say(f"note: the existing files are kept as they are: {str(error).splitlines()[0]}")
        return
    for target in written:
        below(folder, as_text(os.path.relpath(target, folder)), links=True)
    if len(left) < len(tasks):
        say(f"{name}: {len(tasks) - len(left)} of {len(tasks)} files are already converted")
    folders = {folder / path for key in ("images", "labels") for path in alternatives(config[key])}
    folders &= {parent for target in written for parent in target.parents}
    if not left:
        for target in folders:
            (target / f"{UNFINISHED}-{converter}").unlink(missing_ok=True)
        return
    with unfinished(folders, converter, preparation.command):
        preparation.record_images()
        _run_tasks(left, f"conversion of {name}", preparation.workers, preparation.progress)


def _targets(tasks: list[Task]) -> set[Path]:
    """The files to write. Raises OvssError if two tasks have one target: raw files with the same name in several folders."""
    makers: dict[Path, Task] = {}
    for task in tasks:
        for target in task.targets:
            if makers.setdefault(target, task) is not task:
                raise OvssError(f"{makers[target]} and {task} would both become {target}. Remove the wrong one.")
    return set(makers)


def _run_tasks(tasks: list[Task], title: str, workers: int, progress: Progress) -> None:
    """Runs the tasks in worker processes; their errors are raised together after all tasks have run."""
    failed: list[str] = []
    noted_pixels: dict[str, list[tuple[int, str]]] = {}  # note -> pixels and raw files
    sweep(target for task in tasks for target in task.targets)
    with progress.start(title, len(tasks), "files") as bar:
        for task, outcome in in_processes(run_task, tasks, workers):
            if isinstance(outcome, OvssError):
                failed.append(str(outcome))
            else:
                for note, pixels in outcome:
                    noted_pixels.setdefault(note, []).append((pixels, str(task)))
            bar.advance()
    for note, maps in noted_pixels.items():
        pixels, where = max(maps)
        total = sum(number for number, _ in maps)
        progress.say(f"note: {total} pixels of {len(maps)} label maps {note} (most of them, {pixels}, in {where})")
    if failed:
        shown = "".join(f"\n  {reason}" for reason in sorted(failed)[:10])
        raise OvssError(f"{len(failed)} of {len(tasks)} files could not be converted; the others are kept:{shown}")


def run_task(task: Task) -> list[tuple[str, int]]:
    """Runs a task and returns its notes. Errors of reading and decoding become an OvssError that names the file."""
    noted()  # discards the notes of a failed task
    with reading(task, DAMAGED):
        task.make(*task.arguments)
    return noted()
