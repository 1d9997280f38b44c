"""The hyperparameters of a method: the annotated attributes of its class, their defaults, and their allowed values.

Importing a method imports torch, which takes seconds. Tools that only read results take the hyperparameters of this project's
methods from segmentors/hyperparameters.json instead; `python -m ovss_bench.segmentors` writes it."""

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
from ..types import MAX_SIDE
from .validation import Expected, bare, in_words, validate


class File(str):
    """Annotates a hyperparameter that is a file: a string in recipes, a `Path` in the method, its content in fingerprints."""


class Folder(str):
    """The same for a folder and all files below it."""


PATHS = {File: (Path.is_file, "file"), Folder: (Path.is_dir, "folder"), Path: (Path.exists, "file or folder")}
# Bounds of numbers, so that loops end and 32 bits suffice.
BOUNDED = {
    int: Annotated[int, Ge(-MAX_SIDE), Le(MAX_SIDE), Expected(f"a whole number up to {MAX_SIDE}")],
    float: Annotated[float, Ge(-1e30), Le(1e30), Expected("a number up to 1e30")],
}
TABLE = PACKAGE / "segmentors" / "hyperparameters.json"
KINDS = {"None": NoneType, "int": int, "float": float, "bool": bool, "str": str, "File": File, "Folder": Folder, "Path": Path}
KINDS |= {"tuple[int, ...]": tuple[int, ...], "tuple[float, ...]": tuple[float, ...]}


class Method:
    """The annotated class attributes of a method are its hyperparameters, with their defaults. Their names must differ from
    the attributes of the direct subclass of this class, which is the contract of all methods."""

    uses_clip = True


@dataclass(frozen=True)
class Hyperparameters:
    """Annotations and defaults by name, in the order of declaration. `owner` is the name of the class, `uses_clip` its
    attribute."""

    owner: str
    uses_clip: bool
    hints: dict[str, Any]
    defaults: dict[str, Any]

    @property
    def paths(self) -> dict[str, type]:
        """The hyperparameters that are files or folders -> `File`, `Folder` or `Path`."""
        return {name: kind for name in self.defaults if (kind := bare(self.hints[name])) in (File, Folder, Path)}

    def checked(self, name: str, value: Any, origin: str | None = None, folders: tuple[Path, ...] = ()) -> Any:
        """Returns the value; for a file or folder, its full path. A relative path may be below one of `folders`. Raises
        OvssError for a value that the annotation does not allow, and for a path that does not exist."""
        if name not in self.paths:
            validate(name, value, _bounded(self.hints[name]), origin)
            return value
        exists, kind = PATHS[self.paths[name]]
        if value is None and NoneType in get_args(self.hints[name]):
            return None
        if not isinstance(value, str | Path) or not str(value):
            raise OvssError(f"{name}={value!r}: expected the path of a {kind}.")
        path = user_path(value)
        for candidate in (path, *(folder / path for folder in folders)):
            if exists(candidate):
                return str(candidate.resolve())
        where = f" in {Path.cwd()}" + (f", nor in {folders[0]}" if folders else "") + ". Give its full path."
        where = ". Correct the path." if path.is_absolute() else where
        raise OvssError(f"{name}={value} of {self.owner}: there is no such {kind}{where}")


def _bounded(hint: Any) -> Any:
    """Adds bounds to the numbers of an annotation, and a minimum length of 1 to its lists."""
    if get_origin(hint) in (Union, UnionType):
        return reduce(or_, map(_bounded, get_args(hint)))
    if get_origin(hint) is tuple:
        item = _bounded(get_args(hint)[0])
        return Annotated[tuple[item, ...], MinLen(1), Expected(f"a list of at least one value, each {in_words(item)}")]
    return BOUNDED.get(hint, hint)


def as_table(methods: Mapping[str, Hyperparameters]) -> dict[str, dict[str, Any]]:
    """Hyperparameters as JSON: the facts of each method, and per hyperparameter [default, a union of KINDS or the choices]."""
    words = {hint: kind for kind, hint in KINDS.items()}

    def kind(hint: Any) -> str | list[str]:
        if get_origin(hint) is Literal:
            return list(get_args(hint))
        return words.get(hint) or " | ".join(words[part] for part in get_args(hint))

    def entry(method: Hyperparameters) -> dict[str, Any]:
        values = {key: [default, kind(method.hints[key])] for key, default in method.defaults.items()}
        return {"class": method.owner, "uses_clip": method.uses_clip} | values

    return {name: entry(method) for name, method in methods.items()}


def from_table(table: Mapping[str, Mapping[str, Any]]) -> dict[str, Hyperparameters]:
    """The reverse of `as_table`."""

    def hint(kind: str | list[str]) -> Any:
        return reduce(or_, (KINDS[part] for part in kind.split(" | "))) if isinstance(kind, str) else Literal[tuple(kind)]

    methods = {}
    for name, entry in table.items():
        values = {key: value for key, value in entry.items() if key not in ("class", "uses_clip")}
        defaults = {key: tuple(value) if isinstance(value, list) else value for key, (value, _) in values.items()}
        hints = {key: hint(kind) for key, (_, kind) in values.items()}
        methods[name] = Hyperparameters(entry["class"], entry["uses_clip"], hints, defaults)
    return methods


@cache
def declared() -> dict[str, Hyperparameters]:
    """The hyperparameters of this project's methods, by registered name."""
    return from_table(read_json(TABLE))
