"""From the official archives to what the loaders read: unpacking and conversion, resumable, and never half ready unnoticed.

While a folder is being written it holds a file `.unfinished...`, which the loaders refuse; every file is written atomically, so
going on means making those that are missing.
"""

from __future__ import annotations

import os
import shlex
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OvssError
from ..files import as_text, below, environment, user_path
from ..process import in_processes, locked, terminate_cleanly
from ..progress import Progress
from ..registry import DATASETS, Registry
from .archives import Archive, download, extract, is_official, sweep
from .base import UNFINISHED
from .config import dataset_config

CONVERTERS = Registry("converter")


@dataclass(frozen=True)
class Task:
    """`make(*arguments)` writes `targets` (atomically: `conversion.write_label`, `write_image`); it runs in another process."""

    make: Callable[..., None]
    arguments: tuple[Any, ...]
    targets: tuple[Path, ...]


def prepare(
    name: str,
    root: str | Path | None = None,
    *,
    source: str | Path | None = None,
    yes: bool = False,
    rerun: bool = False,
    workers: int | None = None,
    quiet: bool = False,
) -> None:
    """Prepares a data set of configs/dataset, or of a YAML file of one's own, below the data root.

    Archives are taken from `source` (default: the root); those that are not there are downloaded if their licence permits it
    and `yes` accepts it. `rerun` makes again what is there; without it, a data set that is complete needs neither archives nor
    raw files. Raises OvssError that says what is missing and what to do.
    """
    given, (name, config, own) = str(name), dataset_config(name)
    progress, root = Progress(quiet), root or own or environment("OVSS_DATA")
    if config.get("loader") == "demo":
        progress.say(f"{name} needs no preparation: its scenes are drawn when they are first read")
        return
    if root is None:
        raise OvssError("name the folder of all data sets: data_root=DIR, or the environment variable OVSS_DATA.")
    plan, root = config.get("prepare", {}), user_path(root)
    loader = DATASETS.get(config.get("loader", "mmseg"))
    with suppress(OvssError):
        dataset = loader(name, config, root)
        if not rerun and len(dataset.samples) == dataset.expected_images:
            progress.say(f"{name} is ready: {dataset.expected_images} images in {dataset.root}")
            return
    folder, source = dataset_folder(config, root), user_path(source or root)
    words = ["python", "tools/datasets.py", "prepare", given, f"data_root={root}"]
    command = shlex.join(words if source == root else [*words, f"source={source}"])
    archives = [Archive(**archive) for archive in plan.get("archives", ())]
    absent = [archive for archive in _missing(archives, folder) if not (source / archive.file).is_file()]
    if absent and not (yes and all(archive.url for archive in absent)):
        raise OvssError(_instructions(name, config, absent, folder, source, command))
    with terminate_cleanly(), locked(folder, "data_root"):
        _unpack(archives, folder, source, command, rerun, progress)
        if "converter" in plan:
            _convert(name, config, folder, command, workers or os.cpu_count() or 1, rerun, progress)
    with _explained(config):
        found = len(loader(name, config, root).samples)
    expected = config.get("expected_images")
    progress.say(f"{name} is ready: {found} images in {folder}")
    if expected not in (None, found):
        progress.say(f"note: {expected} images are expected; results on these {found} are marked as partial")


def dataset_folder(config: dict[str, Any], root: Path) -> Path:
    """The data set's folder below the data root: the first that has something of it, or the first that is allowed."""
    inside = [config["images"], config["labels"], *config.get("prepare", {}).get("raw", ())]
    there = (folder for folder in config["folders"] if any((root / folder / path).exists() for path in inside))
    return root / next(there, config["folders"][0])


def _missing(archives: list[Archive], folder: Path) -> list[Archive]:
    """Those that are not unpacked, or not completely."""

    def is_unpacked(archive: Archive) -> bool:
        targets = [folder / outside for outside in archive.paths.values()]
        return all(target.exists() and not (target / f"{UNFINISHED}-archive").exists() for target in targets)

    return [archive for archive in archives if not is_unpacked(archive)]


def _unpack(archives: list[Archive], folder: Path, source: Path, command: str, rerun: bool, progress: Progress) -> None:
    missing = _missing(archives, folder)
    for archive in archives:
        path = source / archive.file
        if archive not in missing:
            if rerun and not path.is_file():
                progress.say(f"note: {path} is not there; what was unpacked from it stays as it is")
            if not (rerun and path.is_file()):
                continue
        if not path.is_file():
            path = download(archive, source, progress)
        elif not is_official(path, archive):
            progress.say(f"note: {path} has another MD5 than the official archive, {archive.md5}")
        with unfinished([folder / outside for outside in archive.paths.values()], "archive", command):
            extract(path, archive, folder, progress, anew=rerun)


def _instructions(name: str, config: dict[str, Any], absent: list[Archive], folder: Path, source: Path, command: str) -> str:
    lines = [f"{name} needs archives that are not in {source}:"]
    for archive in absent:
        lines.append(f"  {archive.file}" + (f"    {archive.url}" if archive.url else ""))
        lines += [
            f"      or, unpacked: {inside or 'all of it'} as {folder / outside}" for inside, outside in archive.paths.items()
        ]
    lines += _terms(config)
    if not all(archive.url for archive in absent):
        lines.append("They must be fetched by hand; put them there, then: " + command)
    else:
        lines.append(f"To accept the licence and download them: {command} yes=true")
    return "\n".join(lines)


def _terms(config: dict[str, Any]) -> list[str]:
    """Licence, home and what must be done by hand, as far as the configuration says."""
    facts = {"Licence": config.get("licence"), "Where": config.get("link")}
    note = config.get("prepare", {}).get("note")
    return [f"{title}: {value}" for title, value in facts.items() if value] + ([note] if note else [])


@contextmanager
def _explained(config: dict[str, Any]) -> Iterator[None]:
    """Adds to an error about files that are not there where they come from."""
    try:
        yield
    except OvssError as error:
        raise OvssError("\n".join([str(error), *_terms(config)])) from error


def _convert(
    name: str, config: dict[str, Any], folder: Path, command: str, workers: int, rerun: bool, progress: Progress
) -> None:
    converter = config["prepare"]["converter"]
    with _explained(config):
        tasks = list(CONVERTERS.get(converter)(folder))
    for target in {target for task in tasks for target in task.targets}:
        below(folder, as_text(os.path.relpath(target, folder)), links=True)
    left = [task for task in tasks if rerun or not all(target.exists() for target in task.targets)]
    if len(left) < len(tasks):
        progress.say(f"{name}: {len(tasks) - len(left)} of {len(tasks)} files are converted already")
    targets = {folder / config["images"], folder / config["labels"]} & {
        parent for task in tasks for target in task.targets for parent in target.parents
    }
    if not left:
        for target in targets:
            (target / f"{UNFINISHED}-{converter}").unlink(missing_ok=True)
        return
    with unfinished(targets, converter, command):
        run_tasks(left, f"conversion of {name}", workers, progress)


def run_tasks(tasks: Iterable[Task], title: str, workers: int, progress: Progress) -> None:
    """Runs the tasks in processes; what one of them finds wrong is raised when the others are done."""
    tasks = list(tasks)
    failed = []
    sweep(target for task in tasks for target in task.targets)
    with progress.start(title, len(tasks), "files") as bar:
        for _, outcome in in_processes(run_task, tasks, workers):
            if isinstance(outcome, OvssError):
                failed.append(str(outcome))
            bar.advance()
    if failed:
        shown = "".join(f"\n  {reason}" for reason in sorted(failed)[:10])
        raise OvssError(f"{len(failed)} of {len(tasks)} files could not be converted; the others are kept:{shown}")


def run_task(task: Task) -> None:
    """Runs a task; errors of reading and decoding become an OvssError that names the file."""
    try:
        task.make(*task.arguments)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        files = ", ".join(str(argument) for argument in task.arguments if isinstance(argument, Path) and argument.exists())
        raise OvssError(f"{files}: {error}") from error


@contextmanager
def unfinished(folders: Iterable[Path], stage: str, command: str) -> Iterator[None]:
    """Marks folders as being written, until all is done without an error."""
    folders = {folder for folder in folders if folder.suffix not in (".txt", ".json")}  # lists are files, written at once
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{UNFINISHED}-{stage}").write_text(command, "utf-8", "backslashreplace")
    except OSError as error:
        raise OvssError(f"cannot write {folder}: {error.strerror}. Choose another folder with data_root=DIR.") from error
    yield
    for folder in folders:
        (folder / f"{UNFINISHED}-{stage}").unlink()


from . import converters  # noqa: E402, F401  last, because they register with CONVERTERS
