"""What can be set in a method: the annotated attributes of its class, with their defaults, and the values that these allow.

Importing a method imports torch, which tools that only read results have no use for. So, as long as no method is imported, the
declarations of this project's methods are read from their source.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from ..errors import OvssError, unknown
from ..files import PACKAGE, user_path
from ..image import MOST


class File(str):
    """Annotates a hyperparameter that is a file: a text in recipes, a `Path` in the method. What it holds counts for a run, not
    where it is."""


class Folder(str):
    """The same of a folder, with all files in and below it."""


PATHS = {File: (Path.is_file, "file"), Folder: (Path.is_dir, "folder"), Path: (Path.exists, "file or folder")}


class Method:
    """What can be configured: annotated class attributes are its hyperparameters, with their defaults. The class that derives
    from it directly is the contract, whose names no hyperparameter may have."""


@dataclass(frozen=True)
class Hyperparameters:
    """Those of a class: what it is called, and by name their annotations and defaults, in the order of declaration."""

    owner: str
    hints: Mapping[str, Any]
    defaults: Mapping[str, Any]

    @property
    def paths(self) -> dict[str, type]:
        """Those that are files or folders, with `File`, `Folder` or `Path`."""
        kinds = {name: {hint, *get_args(hint)} & PATHS.keys() for name, hint in self.hints.items() if name in self.defaults}
        return {name: next(iter(found)) for name, found in kinds.items() if found}

    def located(self, name: str, value: str | Path | None, folder: Path | None) -> str | None:
        """The full path of a file or folder that is named from here or from `folder`. Raises OvssError if there is none."""
        exists, kind = PATHS[self.paths[name]]
        if value is None and type(None) in get_args(self.hints[name]):
            return None
        if not isinstance(value, str | Path) or not str(value):
            raise OvssError(f"{name}={value!r}: expected the path of a {kind}.")
        path = user_path(value)
        found = next((each for each in (path, *([folder / path] if folder else [])) if exists(each)), None)
        if found is None:
            where = f"in {Path.cwd()}" + (f", nor in {folder}" if folder and not path.is_absolute() else "")
            raise OvssError(f"{name}={value} of {self.owner}: there is no such {kind} {where}. Give its full path.")
        return str(found.resolve())

    def check(self, name: str, value: Any) -> None:
        """Raises OvssError where the annotation does not allow the value."""
        hint = self.hints[name]
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise unknown(f"value of {name}", value, map(str, get_args(hint)))
            return
        if get_origin(hint) is tuple:  # in YAML and on the command line a list
            kinds = {float: (int, float)}.get(get_args(hint)[0], get_args(hint)[:1])
            fits = isinstance(value, list | tuple) and value
            if not fits or any(type(item) not in kinds or not _bounded(item, kinds[-1]) for item in value):
                raise OvssError(f"{name}={value!r}: expected a list of {kinds[-1].__name__} values.")
            return
        allowed = tuple(get_args(hint) or (hint,))
        number = int in allowed or float in allowed
        fits = isinstance(value, (int, float) if float in allowed else allowed) and not (number and isinstance(value, bool))
        if fits and number and isinstance(value, int | float) and not _bounded(value, float if float in allowed else int):
            raise OvssError(f"{name}={value!r}: expected a number of at most {MOST if float not in allowed else 1e30:g}.")
        if not fits and not (value is None and type(None) in allowed):
            raise OvssError(f"{name}={value!r}: expected {getattr(hint, '__name__', hint)}.")


def _bounded(value: float, kind: type) -> bool:
    """Whether 32 bits hold a number, and a loop of so many steps has an end; NaN is not."""
    return abs(value) <= (MOST if kind is int else 1e30)


@cache
def declared() -> dict[str, Hyperparameters]:
    """The hyperparameters of this project's methods, by the names under which they are registered, read from their source. A
    method that declares more than literals is left out: it has to be imported."""
    classes = {
        node.name: node
        for path in sorted((PACKAGE / "segmentors").glob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }

    def collect(node: ast.ClassDef) -> dict[str, tuple[Any, Any]]:
        found: dict[str, tuple[Any, Any]] = {}
        for base in node.bases:
            found |= collect(classes[base.id]) if isinstance(base, ast.Name) and base.id in classes else {}
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and part.value is not None:
                hint = eval(ast.unparse(part.annotation), {"Literal": Literal, **{kind.__name__: kind for kind in PATHS}})
                found[part.target.id] = hint, ast.literal_eval(part.value)
            elif isinstance(part, ast.Assign) and part.targets[0].id in found:
                name = part.targets[0].id
                found[name] = found[name][0], ast.literal_eval(part.value)
        return found

    methods = {}
    for node in classes.values():
        for decorator in node.decorator_list:
            words = {word.arg: word.value for word in getattr(decorator, "keywords", ())}
            if "name" in words:
                try:
                    found = collect(node)
                except (NameError, ValueError):
                    continue
                hints, defaults = ({name: pair[side] for name, pair in found.items()} for side in (0, 1))
                methods[ast.literal_eval(words["name"])] = Hyperparameters(node.name, hints, defaults)
    return methods
