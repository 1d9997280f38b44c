"""The files of segmentors, in configs/segmentor and beside plug-ins, and the files that they extend."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from ..errors import OvssError, unknown
from ..files import CONFIGS, config_names, load_config, read_yaml

RECIPES: dict[str, Path] = {}  # recipe files of plug-ins
# The keys of a segmentor's file, and how many mappings are nested below each.
DEPTHS = {"extends": 0, "paper": 0, "unconfirmed": 0, "method": 0, "training": 1}
DEPTHS |= {"recipe": 1, "per_clip": 2, "per_dataset": 2, "per_clip_dataset": 3}


@dataclass(frozen=True)
class SegmentorFile:
    """The content of one file, without the files that it extends. `where` names it in messages and origins."""

    name: str
    path: Path
    where: str
    content: dict[str, Any]


def lineage(name: str) -> list[SegmentorFile]:
    """The file of a segmentor, preceded by those that it extends; empty if it has none. Raises OvssError for circular
    `extends`, and for a file that is invalid or extends an unknown one."""
    files: list[SegmentorFile] = []
    parent: str | None = name
    while parent is not None:
        if circle := [file for file in files if file.name == parent]:
            names = [file.name for file in files[: files.index(circle[0]) + 1]]
            through = " -> ".join([*reversed(names), parent])
            raise OvssError(f"{circle[0].where} extends itself: {through}. Remove the key `extends` from one of these files.")
        file = _file(parent)
        if file is None and files:
            raise unknown(f"segmentor that {files[0].where} extends", parent, [*config_names("segmentor"), *RECIPES])
        files[:0] = [file] if file else []
        parent = file.content.get("extends") if file else None
    return files


def merged(files: list[SegmentorFile]) -> dict[str, Any]:
    """The merged content of a lineage: a later file replaces single values; null removes a section."""
    return reduce(_merge, (file.content for file in files), {})


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    shared = base.keys() & over.keys()
    removed = {key for key in shared if isinstance(base[key], dict) and over[key] is None}
    inner = {key: _merge(base[key], over[key]) for key in shared if isinstance(base[key], dict) and isinstance(over[key], dict)}
    return {key: value for key, value in (base | over | inner).items() if key not in removed}


def _file(name: str) -> SegmentorFile | None:
    if name in config_names("segmentor"):
        path = CONFIGS / "segmentor" / f"{name}.yaml"
        return SegmentorFile(name, path, f"configs/segmentor/{name}.yaml", load_config("segmentor", name))
    path = RECIPES.get(name)
    return SegmentorFile(name, path, str(path), _read(path)) if path else None


def _read(path: Path) -> dict[str, Any]:
    """The recipe file of a plug-in. Raises OvssError if it is invalid."""
    config = read_yaml(path, "recipe")
    if not isinstance(config, dict):
        raise OvssError(f"recipe {path}: expected the keys {', '.join(DEPTHS)}.")
    for key, value in config.items():
        if key not in DEPTHS:
            raise unknown(f"key of recipe {path}", key, DEPTHS)
        by_dataset = key == "unconfirmed" and isinstance(value, dict)  # see runs/published.py
        for text in value.values() if by_dataset else [value]:
            _check_depth(text, DEPTHS[key], f"recipe {path}: {key}")
    return config


def _check_depth(value: Any, depth: int, where: str) -> None:
    """Raises OvssError unless a section consists of `depth` nested mappings, or is empty."""
    if not isinstance(value, dict | None if depth else str):
        raise OvssError(f"{where}: expected {'NAME: VALUE below it' if depth else 'a text'}.")
    for key, inner in value.items() if isinstance(value, dict) and depth > 1 else ():
        _check_depth(inner, depth - 1, f"{where}.{key}")
