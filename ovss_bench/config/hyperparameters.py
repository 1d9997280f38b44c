"""The hyperparameters of a method: the annotated attributes of its class, with their defaults, and the values that these allow.

Importing a method imports torch, which takes seconds and is of no use to tools that only read results. These take the
declarations of this project's methods from segmentors/hyperparameters.json; `python -m ovss_bench.segmentors` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le, MinLen

from ..errors import OvssError
from ..files import PACKAGE, read_json, user_path
from ..image import MOST
from .validation import Expected, in_words, validate


class File(str):
    """Annotates a hyperparameter that is a file: a text in recipes, a `Path` in the method. Its content counts for a run, not
    its location."""


class Folder(str):
    """The same for a folder, with all files in and below it."""


PATHS = {File: (Path.is_file, "file"), Folder: (Path.is_dir, "folder"), Path: (Path.exists, "file or folder")}
# A loop of so many steps ends, and 32 bits hold the number.
BOUNDED = {
    int: Annotated[int, Ge(-MOST), Le(MOST), Expected(f"a whole number up to {MOST}")],
    float: Annotated[float, Ge(-1e30), Le(1e30), Expected("a number up to 1e30")],
}
TABLE = PACKAGE / "segmentors" / "hyperparameters.json"
KINDS = {"None": NoneType, "int": int, "float": float, "bool": bool, "str": str, "File": File, "Folder": Folder, "Path": Path}
KINDS |= {"tuple[int, ...]": tuple[int, ...], "tuple[float, ...]": tuple[float, ...]}


class Method:
    """What can be configured: annotated class attributes are its hyperparameters, with their defaults. The class that derives
    from it directly is the contract, whose names no hyperparameter may have."""


@dataclass(frozen=True)
class Hyperparameters:
    """Of a class: its name, and by name the annotations and defaults, in the order of declaration."""

    owner: str
    hints: dict[str, Any]
    defaults: dict[str, Any]

    @property
    def paths(self) -> dict[str, type]:
        """Those that are files or folders, with `File`, `Folder` or `Path`."""
        kinds = {name: {hint, *get_args(hint)} & PATHS.keys() for name, hint in self.hints.items() if name in self.defaults}
        return {name: next(iter(found)) for name, found in kinds.items() if found}

    def checked(self, name: str, value: Any, origin: str | None = None, folder: Path | None = None) -> Any:
        """A valid value; the full path of a file or folder, which may be given relative to `folder`. Raises OvssError for what
        the annotation does not allow, and for a path that does not exist."""
        if name not in self.paths:
            validate(name, value, _bounded(self.hints[name]), origin)
            return value
        exists, kind = PATHS[self.paths[name]]
        if value is None and NoneType in get_args(self.hints[name]):
            return None
        if not isinstance(value, str | Path) or not str(value):
            raise OvssError(f"{name}={value!r}: expected the path of a {kind}.")
        path = user_path(value)
        found = next((each for each in (path, *([folder / path] if folder else [])) if exists(each)), None)
        if found is None:
            where = f"in {Path.cwd()}" + (f", nor in {folder}" if folder and not path.is_absolute() else "")
            raise OvssError(f"{name}={value} of {self.owner}: there is no such {kind} {where}. Give its full path.")
        return str(found.resolve())


def _bounded(hint: Any) -> Any:
    """An annotation with bounds for its numbers; a list must not be empty."""
    if get_origin(hint) in (Union, UnionType):
        return reduce(or_, map(_bounded, get_args(hint)))
    if get_origin(hint) is tuple:
        item = _bounded(get_args(hint)[0])
        return Annotated[tuple[item, ...], MinLen(1), Expected(f"a list of at least one value, each {in_words(item)}")]
    return BOUNDED.get(hint, hint)


def as_table(methods: Mapping[str, Hyperparameters]) -> dict[str, dict[str, Any]]:
    """Hyperparameters as JSON: for each method its class, and for each hyperparameter the default and the annotation, a union
    of KINDS or a list of choices."""
    words = {hint: kind for kind, hint in KINDS.items()}

    def kind(hint: Any) -> str | list[str]:
        if get_origin(hint) is Literal:
            return list(get_args(hint))
        return words.get(hint) or " | ".join(words[part] for part in get_args(hint))

    return {
        name: {"class": method.owner} | {key: [default, kind(method.hints[key])] for key, default in method.defaults.items()}
        for name, method in methods.items()
    }


def from_table(table: Mapping[str, Mapping[str, Any]]) -> dict[str, Hyperparameters]:
    """The reverse of `as_table`."""

    def hint(kind: str | list[str]) -> Any:
        return reduce(or_, (KINDS[part] for part in kind.split(" | "))) if isinstance(kind, str) else Literal[tuple(kind)]

    methods = {}
    for name, entry in table.items():
        values = {key: value for key, value in entry.items() if key != "class"}
        defaults = {key: tuple(value) if isinstance(value, list) else value for key, (value, _) in values.items()}
        methods[name] = Hyperparameters(entry["class"], {key: hint(kind) for key, (_, kind) in values.items()}, defaults)
    return methods


@cache
def declared() -> dict[str, Hyperparameters]:
    """The hyperparameters of this project's methods, by the names under which they are registered."""
    return from_table(read_json(TABLE))
