"""From the official archives to what the loaders read: unpacking and conversion, resumable, and never half ready unnoticed.

While a folder is being written it holds a file `.unfinished...`, which the loaders refuse; every file is written atomically, so
going on means making those that are missing.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...config.registry import DATASETS
from ...errors import OvssError, reading, unknown
from ...files import as_text, below, config_names, data_files, environment, user_path, write_text
from ...process import in_processes, locked, terminate_cleanly
from ...progress import Progress
from .. import expected
from ..base import UNFINISHED, SegDataset
from ..config import alternatives, dataset_config
from . import converters  # noqa: F401  they register with CONVERTERS
from .archives import Archive, download, extract, is_official, sweep
from .conversion import CONVERTERS, Task, noted

# In a folder of images that can be of several kinds: which.
KIND = ".images"
DAMAGED = "If they are damaged, unpack the official archive again."


def prepare(
    name: str,
    root: str | Path | None = None,
    *,
    source: str | Path | None = None,
    yes: bool = False,
    rerun: bool = False,
    images: str | None = None,
    workers: int | None = None,
    quiet: bool = False,
) -> None:
    """Prepares a data set of configs/dataset, or of a YAML file of one's own, below the data root.

    Archives are taken from `source` (default: the root); those that are not there are downloaded if their licence permits it
    and `yes` accepts it. `rerun` makes again what is there; without it, a data set that is complete needs neither archives nor
    raw files, and one of another number of images is taken as it is if they are not there. `images` is of data sets whose
    configuration gives a choice (`prepare: {images: [mess, original]}`); the default is what is there, or the first. Raises
    OvssError that says what is missing and what to do.
    """
    given, (name, config, own) = str(name), dataset_config(name)
    progress, root = Progress(quiet), root or own or environment("OVSS_DATA")
    _check_choice(name, config, images)
    if config.get("loader") == "demo":
        progress.say(f"{name} needs no preparation: its scenes are drawn when they are first read")
        return
    if root is None:
        raise OvssError("name the folder of all data sets: data_root=DIR, or the environment variable OVSS_DATA.")
    plan, root = config.get("prepare", {}), user_path(root)
    folder = dataset_folder(config, root)
    kind = _kind_of_images(config, folder, images, rerun)
    loader = DATASETS.get(config.get("loader", "mmseg"))
    whole = None  # the data set, if all files of the images that it lists are here
    with suppress(OvssError):
        dataset = loader(name, config, root)
        if dataset.samples and not rerun:
            whole = dataset
    if whole and len(whole.samples) in expected.counts(config):
        return _say_ready(whole, progress)
    source = user_path(source or root)
    words = ["python", "tools/datasets.py", "prepare", given, f"data_root={root}", *([f"images={images}"] if images else [])]
    command = shlex.join(words if source == root else [*words, f"source={source}"])
    archives = [Archive(**archive) for archive in plan.get("archives", ())]
    absent = [archive for archive in _missing(archives, folder) if not (source / archive.file).is_file()]
    if absent and not (yes and all(archive.url for archive in absent)):
        if whole:
            return _say_ready(whole, progress)
        raise OvssError(_instructions(name, config, absent, folder, source, command))
    with terminate_cleanly(), locked(folder, "data_root"):
        _unpack(archives, folder, source, command, rerun, progress)
        if "converter" in plan:
            _convert(name, config, folder, command, workers or os.cpu_count() or 1, rerun, kind, progress, whole)
    with _explained(config):
        dataset = loader(name, config, root)
        _ = dataset.samples  # raises for what is missing
    _say_ready(dataset, progress)


def _say_ready(dataset: SegDataset, progress: Progress) -> None:
    kind = _recorded(dataset.config, dataset.root)
    made = f" (images={kind})" if kind else ""
    progress.say(f"{dataset.name} is ready: {len(dataset.samples)} images in {dataset.root}{made}")
    for doubt in dataset.doubts:
        progress.say(f"note: {doubt}")


def dataset_folder(config: dict[str, Any], root: Path) -> Path:
    """The data set's folder below the data root: the first that has something of it, or the first that is allowed."""
    names = [config["images"], config["labels"], *config.get("prepare", {}).get("raw", ())]
    inside = [path for each in names for path in alternatives(each)]
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


def _check_choice(name: str, config: dict[str, Any], images: str | None) -> None:
    choices = config.get("prepare", {}).get("images", [])
    if images is not None and not choices:
        having = [each for each in config_names("dataset") if dataset_config(each)[1].get("prepare", {}).get("images")]
        raise OvssError(f"images={images}: {name} has one kind of images only; a choice is with {', '.join(having)}.")
    if images not in (None, *choices):
        raise unknown(f"kind of images of {name}", images, choices)


def _kind_of_images(config: dict[str, Any], folder: Path, images: str | None, rerun: bool) -> str | None:
    """Which of the kinds of images between which the configuration leaves the choice is to be made; None without a choice.

    Raises OvssError if others are there already: the two kinds must not be mixed.
    """
    choices = config.get("prepare", {}).get("images")
    if not choices:
        return None
    there = _recorded(config, folder)
    made = folder / config["images"]
    if images and images != there and not rerun and made.is_dir() and data_files(made):
        what = f"of images={there}" if there else "of a kind that nobody has recorded"
        raise OvssError(
            f"{made} holds images {what}, and images={images} is asked for. Add rerun=true to make all of them again."
        )
    return images or there or choices[0]


def _recorded(config: dict[str, Any], folder: Path) -> str:
    """Which kind of images a preparation has made; nothing where it is not recorded, as with those that MESS's scripts made."""
    path = folder / config["images"] / KIND
    try:
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    except (OSError, ValueError) as error:
        raise OvssError(f"{path} cannot be read: {error}. Delete it.") from error


def _record(kind: str, config: dict[str, Any], folder: Path, rerun: bool, progress: Progress) -> None:
    """Notes which kind of images is made, where there are none yet."""
    made = folder / config["images"]
    if rerun or not data_files(made):
        write_text(made / KIND, f"{kind}\n")
    elif not _recorded(config, folder):
        progress.say(f"note: of what kind the images in {made} are is not recorded; rerun=true makes all of them images={kind}")


def _convert(
    name: str,
    config: dict[str, Any],
    folder: Path,
    command: str,
    workers: int,
    rerun: bool,
    kind: str | None,
    progress: Progress,
    whole: SegDataset | None,
) -> None:
    converter = config["prepare"]["converter"]
    try:
        with _explained(config), reading(f"raw files of {name} in {folder}", DAMAGED):
            tasks = list(CONVERTERS.get(converter)(folder, **({"images": kind} if kind else {})))
    except OvssError as error:
        if whole is None:
            raise
        progress.say(f"note: what is here is taken as it is: {str(error).splitlines()[0]}")
        return
    for target in {target for task in tasks for target in task.targets}:
        below(folder, as_text(os.path.relpath(target, folder)), links=True)
    _refuse_collisions(tasks)
    left = [task for task in tasks if rerun or not all(target.exists() for target in task.targets)]
    if len(left) < len(tasks):
        progress.say(f"{name}: {len(tasks) - len(left)} of {len(tasks)} files are converted already")
    kinds = [path for key in ("images", "labels") for path in alternatives(config[key])]
    targets = {folder / path for path in kinds} & {
        parent for task in tasks for target in task.targets for parent in target.parents
    }
    if not left:
        for target in targets:
            (target / f"{UNFINISHED}-{converter}").unlink(missing_ok=True)
        return
    with unfinished(targets, converter, command):
        if kind:
            _record(kind, config, folder, rerun, progress)
        run_tasks(left, f"conversion of {name}", workers, progress)


def _refuse_collisions(tasks: Iterable[Task]) -> None:
    """Raises OvssError for two tasks that would write one file: raw files of one name in several folders."""
    makers: dict[Path, Task] = {}
    for task in tasks:
        for target in task.targets:
            if makers.setdefault(target, task) is not task:
                both = " and ".join(_raw_files(each) for each in (makers[target], task))
                raise OvssError(f"{both} would both become {target}. Remove the one that does not belong to the data set.")


def _raw_files(task: Task) -> str:
    paths = [argument for argument in task.arguments if isinstance(argument, Path) and argument not in task.targets]
    return ", ".join(str(path) for path in paths if path.exists())


def run_tasks(tasks: Iterable[Task], title: str, workers: int, progress: Progress) -> None:
    """Runs the tasks in processes; what one of them finds wrong is raised when the others are done."""
    tasks = list(tasks)
    failed, odd = [], {}
    sweep(target for task in tasks for target in task.targets)
    with progress.start(title, len(tasks), "files") as bar:
        for task, outcome in in_processes(run_task, tasks, workers):
            if isinstance(outcome, OvssError):
                failed.append(str(outcome))
            else:
                for what, pixels in outcome:
                    odd.setdefault(what, []).append((pixels, _raw_files(task)))
            bar.advance()
    for what, found in odd.items():
        pixels, where = max(found)
        total = sum(number for number, _ in found)
        progress.say(f"note: {total} pixels of {len(found)} label maps {what} (most of them, {pixels}, in {where})")
    if failed:
        shown = "".join(f"\n  {reason}" for reason in sorted(failed)[:10])
        raise OvssError(f"{len(failed)} of {len(tasks)} files could not be converted; the others are kept:{shown}")


def run_task(task: Task) -> list[tuple[str, int]]:
    """Runs a task, and gives what it noted; errors of reading and decoding become an OvssError that names the file."""
    noted()  # what a failed task has left
    with reading(_raw_files(task), DAMAGED):
        task.make(*task.arguments)
    return noted()


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
