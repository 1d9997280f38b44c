"""Where a data set's files are: the data root and the folders below it, which may have alternative names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import OvssError
from ..files import DATASET_FACTS, PACKAGE, config_names, environment, on_disk, user_path
from .config import alternatives, pattern_of

# Prefix of the marker file in folders of images or labels that are still being written.
UNFINISHED = ".unfinished"


class MissingData(OvssError):
    """Some or all files of a data set are missing."""


def data_root(root: str | Path | None = None) -> Path:
    """The folder of all data sets: the argument, the environment variable OVSS_DATA, or `datasets` in the checkout (for an
    installed wheel, in the working directory)."""
    default = "datasets" if DATASET_FACTS.parent == PACKAGE else DATASET_FACTS
    return user_path(root or environment("OVSS_DATA") or default)


def root_hint(root: str | Path | None) -> str:
    """For error messages: how to choose another data root; empty if one was chosen."""
    chosen = root or environment("OVSS_DATA")
    return "" if chosen else " (the default; choose another with data_root=DIR or the environment variable OVSS_DATA)"


def find_folder(name: str, config: dict[str, Any], root: str | Path | None) -> Path:
    """The data set's folder: the first of `folders` below the data root with the images, labels and id list. Raises MissingData
    if there is none, or if a preparation has not finished."""
    base = data_root(root)
    required = [config["images"], config["labels"], *filter(None, [config.get("ids")])]
    for folder in config["folders"]:
        _refuse_unfinished(name, config, base / folder)
        if all(any(os.path.exists(base / folder / on_disk(path)) for path in alternatives(paths)) for paths in required):
            return base / folder
    raise MissingData(f"data set '{name}' was not found in {base}{root_hint(root)}. Expected:\n{tree(name, config, base)}")


def _refuse_unfinished(name: str, config: dict[str, Any], folder: Path) -> None:
    for path in written_paths(config):
        for mark in (folder / on_disk(path)).glob(UNFINISHED + "*"):
            command = mark.read_text("utf-8", "replace").strip() or f"python tools/datasets.py prepare {name}"
            raise MissingData(f"data set '{name}' is half prepared: {mark.parent} is incomplete. Resume with: {command}")


@contextmanager
def unfinished(folders: Iterable[Path], stage: str, command: str) -> Iterator[None]:
    """Marks folders as unfinished until the block ends without an error. The markers name `command`, which resumes the work."""
    folders = {folder for folder in folders if folder.suffix not in (".txt", ".json")}  # lists are written atomically
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{UNFINISHED}-{stage}").write_text(command, "utf-8", "backslashreplace")
    except OSError as error:
        text = f"cannot write {error.filename}: {error.strerror}. Choose another folder with data_root=DIR."
        raise OvssError(text) from error
    yield
    for folder in folders:
        (folder / f"{UNFINISHED}-{stage}").unlink()


def prepared_folder(config: dict[str, Any], root: Path) -> Path:
    """The folder to prepare: the first of `folders` that contains any part of the data set, else the first."""
    paths = written_paths(config)
    existing = (folder for folder in config["folders"] if any((root / folder / path).exists() for path in paths))
    return root / next(existing, config["folders"][0])


def written_paths(config: dict[str, Any]) -> list[str]:
    """The folders of images, labels and raw files, including all alternatives."""
    raw = config.get("prepare", {}).get("raw", ())
    return [path for names in (config["images"], config["labels"], *raw) for path in alternatives(names)]


def tree(name: str, config: dict[str, Any], root: str | Path) -> str:
    """The expected layout of the files, for messages."""
    first, *others = config["folders"]
    lines = [f"  {Path(root) / first}/" + (f"    (or {', '.join(others)})" if others else "")]
    lines += [f"    {pattern_of(config, kind)}" for kind in ("image", "label")]
    if config.get("ids"):
        lines.append(f"    {config['ids']}    (one <id> per line)")
    if name in config_names("dataset"):
        lines.append(f"  Where to get it and how to convert it: python tools/datasets.py list {name}")
    return "\n".join(lines)


def first_existing(names: str | list[str], folder: Path) -> str:
    """The first name that exists in a folder, or the first name if none exists."""
    return next((name for name in alternatives(names) if (folder / name).exists()), alternatives(names)[0])


def first_suffix(suffixes: str | list[str], folder: Path) -> str:
    """The first suffix that occurs at any depth of a folder, or the first suffix if none occurs."""
    first, *others = alternatives(suffixes)
    names = [name for _, _, names in os.walk(folder, followlinks=True) for name in names if name[0] != "."] if others else []
    return next((suffix for suffix in (first, *others) if any(name.endswith(suffix) for name in names)), first)


def resolved(config: dict[str, Any], root: Path) -> dict[str, Any]:
    """The configuration with alternative folders and suffixes of images and labels replaced by those that exist in `root`."""
    folders = {key: first_existing(config[key], root) for key in ("images", "labels")}
    suffixes = {f"{key[:-1]}_suffix": first_suffix(config[f"{key[:-1]}_suffix"], root / path) for key, path in folders.items()}
    return config | folders | suffixes
