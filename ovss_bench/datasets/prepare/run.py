"""Unpacks official archives and converts them to the files that the loaders read.

Preparation can be resumed, and a half-prepared data set is never accepted: a folder that is being written contains a file
`.unfinished...`, which makes the loaders refuse it. Files are written atomically, so resuming means writing the missing ones.
"""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path

from ...config.registry import DATASETS
from ...errors import OvssError
from ...files import user_path
from ...process import locked, terminate_cleanly
from ...progress import Progress
from .. import expected
from ..base import SegDataset
from ..config import dataset_config
from ..layout import UNFINISHED, data_root, prepared_folder, root_hint, unfinished
from .archives import Archive, download, extract, is_official
from .preparation import Preparation, check_choice, choose_images, recorded_images
from .run_tasks import convert


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
    """Prepares a data set of configs/dataset below the data root (`layout.data_root`), or of a user's YAML file in the file's
    folder.

    Archives are taken from `source` (default: the data root); missing ones are downloaded if their licence permits it and `yes`
    accepts it. `rerun` writes existing files again; without it, complete data sets need neither archives nor raw files.
    `images` is for data sets whose configuration offers a choice (`prepare: {images: [mess, original]}`); the default is the
    existing kind, or else the first. Raises OvssError with what is missing and what to do.
    """
    argument, (name, config, beside) = str(name), dataset_config(name)
    progress, base = Progress(quiet), data_root(root or beside)
    check_choice(name, config, images)
    if config.get("loader") == "demo":
        progress.say(f"{name} needs no preparation: its scenes are drawn when the data set is first loaded")
        return
    folder, loader = prepared_folder(config, base), DATASETS.get(config.get("loader", "mmseg"))
    kind = choose_images(config, folder, images, rerun)
    existing = None  # the data set, if it lists images and lacks none of their files
    with suppress(OvssError):
        dataset = loader(name, config, base)
        if dataset.samples and not rerun:
            existing = dataset
    if existing and len(existing.samples) in expected.counts(config):
        return _say_ready(existing, progress)
    downloads = user_path(source or base)
    words = ["python", "tools/datasets.py", "prepare", argument, f"data_root={base}", *([f"images={images}"] if images else [])]
    command = shlex.join(words if downloads == base else [*words, f"source={downloads}"])
    preparation = Preparation(name, config, folder, command, rerun, kind, workers or os.cpu_count() or 1, progress)
    archives = [Archive(**archive) for archive in config.get("prepare", {}).get("archives", ())]
    absent = [archive for archive in archives if not (_unpacked(archive, folder) or (downloads / archive.file).is_file())]
    if absent and not (yes and all(archive.url for archive in absent)):
        if existing:
            return _say_ready(existing, progress)
        hint = root_hint(root or beside or source)
        raise OvssError(_instructions(preparation, absent, f"{downloads}{hint}"))
    with terminate_cleanly(), locked(folder, "data_root"):
        _unpack(preparation, archives, downloads)
        if "converter" in config.get("prepare", {}):
            convert(preparation, keep=existing is not None)
    with preparation.explained():
        dataset = loader(name, config, base)
        _ = dataset.samples  # raises for missing files
    _say_ready(dataset, progress)


def _say_ready(dataset: SegDataset, progress: Progress) -> None:
    kind = recorded_images(dataset.config, dataset.root)
    suffix = f" (images={kind})" if kind else ""
    progress.say(f"{dataset.name} is ready: {len(dataset.samples)} images in {dataset.root}{suffix}")
    for doubt in dataset.doubts:
        progress.say(f"note: {doubt}")


def _unpacked(archive: Archive, folder: Path) -> bool:
    """Whether all required parts of an archive are in the data set's folder."""
    targets = [folder / outside for outside in archive.paths.values()]
    return all(target.exists() and not (target / f"{UNFINISHED}-archive").exists() for target in targets)


def _unpack(preparation: Preparation, archives: list[Archive], downloads: Path) -> None:
    say, folder, rerun = preparation.progress.say, preparation.folder, preparation.rerun
    unpacked = [_unpacked(archive, folder) for archive in archives]
    for archive, is_unpacked in zip(archives, unpacked, strict=True):
        path = downloads / archive.file
        if is_unpacked and not (rerun and path.is_file()):
            if rerun:
                say(f"note: {path} does not exist; the files unpacked from it are kept")
            continue
        if not path.is_file():
            path = download(archive, downloads, preparation.progress)
        elif not is_official(path, archive):
            say(f"note: {path} does not have the MD5 of the official archive, {archive.md5}")
        with unfinished([folder / outside for outside in archive.paths.values()], "archive", preparation.command):
            extract(path, archive, folder, preparation.progress, overwrite=rerun)


def _instructions(preparation: Preparation, absent: list[Archive], where: str) -> str:
    lines = [f"{preparation.name} needs archives that are not in {where}:"]
    for archive in absent:
        lines.append(f"  {archive.file}" + (f"    {archive.url}" if archive.url else ""))
        for inside, outside in archive.paths.items():
            lines.append(f"      or, unpacked: {inside or 'all files'} as {preparation.folder / outside}")
    lines += preparation.terms()
    if all(archive.url for archive in absent):
        lines.append(f"To accept the licence and download them: {preparation.command} yes=true")
    else:
        lines.append(f"They must be downloaded by hand; put them there, then run: {preparation.command}")
    return "\n".join(lines)
