"""The code that a row's numbers depend on, and its digests: the shared core, the files of its method, its data set's loader and
its auxiliary models, and plug-ins. Other methods, reports and tools are not part of it.

Files are found by parsing imports, including those inside functions, so new modules are covered. Importing the modules instead
would need torch, which tools that only read results do not load."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import CodeType

from ..auxiliary import MODULES
from ..config.recipe import parts
from ..config.registry import DATASETS, PLUGINS, SEGMENTORS, STEPS
from ..datasets.config import dataset_config
from ..files import PACKAGE, config_names, digest
from ..files import code as code_digest

# Counting, construction of segmentors, metrics: every row depends on these and on what they import.
CORE = ("runs/counting.py", "segmentors/build.py", "evaluation")
Row = Collection[type] | Collection[Path]  # the classes of a row's method and loader, or their files


def row_code(row: Row, kinds: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """SHA-256 of the `core`, of each further file, and of the plug-ins of a row with these `kinds` of auxiliary models."""
    core, further, plugins = row_files(row, kinds)
    total = digest(*(part for path in sorted(core) for part in (_name(path), _content(path))))
    return {"core": total} | {_name(path): _sha256(_content(path)) for path in sorted(further)}, plugins


def row_files(row: Row, kinds: Iterable[str]) -> tuple[set[Path], set[Path], dict[str, str]]:
    """The files of the core, the other files of this package, and the digests of plug-ins, for `row_code`."""
    core = _reached((path for part in CORE for path in sorted((PACKAGE / part).rglob("*.py")) or [PACKAGE / part]), _imported)
    parts = [_of_class(entry) if isinstance(entry, type) else ({entry}, {}) for entry in row]
    files = {_file(MODULES[kind]) for kind in kinds if kind in MODULES}.union(*(inside for inside, _ in parts))
    return core, _reached(files, _imported) - core, {path: sha for _, plugins in parts for path, sha in plugins.items()}


def known_code(segmentor: str, dataset: str, kinds: Iterable[str]) -> tuple[dict[str, str], dict[str, str]] | None:
    """`row_code` of a segmentor and a data set of this project by name; None for others."""
    if segmentor.partition("+")[0] not in {*config_names("segmentor"), *SEGMENTORS.modules}:
        return None
    _, method, steps = parts(segmentor)
    if method not in SEGMENTORS.modules or dataset not in config_names("dataset") or not STEPS.modules.keys() >= set(steps):
        return None
    loader = dataset_config(dataset)[1].get("loader", "mmseg")
    files = [_file(f"segmentors.{SEGMENTORS.modules[method]}"), _file(f"datasets.{DATASETS.modules[loader]}")]
    return row_code([*files, *(_file(f"segmentors.steps.{STEPS.modules[step]}") for step in steps)], kinds)


def source_digest(code: Mapping[str, str], plugins: Mapping[str, str]) -> str:
    """One digest of all code of a row, independent of the locations of plug-ins."""
    return digest(*(part for item in sorted(code.items()) for part in item), *sorted(plugins.values()))


def _file(module: str) -> Path:
    return PACKAGE.joinpath(*module.split(".")).with_suffix(".py")


def _of_class(entry: type) -> tuple[set[Path], dict[str, str]]:
    """The files of this package, and the digests of plug-ins, that define a class, its bases and what they import."""
    files, plugins = set(), {}
    for base in entry.__mro__:
        file = Path(getattr(sys.modules.get(base.__module__), "__file__", None) or "")
        if base is entry and not file.name:  # defined in a notebook
            plugins[f"{base.__module__}.{base.__qualname__}"] = digest(*_compiled(base))
        elif PACKAGE in file.parents:
            files.add(file)
        elif base is entry or _is_users(base, file):
            top = sys.modules.get(base.__module__.partition(".")[0])
            package = next(iter(getattr(top, "__path__", ())), None)
            sources = _beside(file, Path(package) if package else file.parent)
            if package:
                plugins[package] = code_digest(".", package=Path(package))
            else:
                plugins |= {str(path): PLUGINS.get(str(path)) or _sha256(path.read_bytes()) for path in sorted(sources)}
            files |= {path for source in sources for path in _imported(source)}
    return files, plugins


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _compiled(kind: type) -> Iterator[str | bytes]:
    """The byte code of a class without a file."""

    def parts(code: CodeType) -> Iterator[str | bytes]:
        yield from (code.co_code, repr(code.co_names))
        for value in code.co_consts:
            yield from parts(value) if isinstance(value, CodeType) else [repr(value)]

    for name, value in sorted(vars(kind).items()):
        function = getattr(value, "fget", None) or getattr(value, "func", None) or value  # of a property, of a cached property
        code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
        yield from (name, *(parts(code) if code else ()))


def _is_users(base: type, file: Path) -> bool:
    """Whether a base class outside this package is a user's: not in a library, or derived from a class of this package."""
    in_library = any(library in file.parents for library in _libraries())
    return bool(file.name) and (not in_library or any(other.__module__.startswith("ovss_bench.") for other in base.__mro__))


def _libraries() -> set[Path]:
    """The folders of Python's own modules and of installed packages."""
    return {Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib")}


def _beside(file: Path, folder: Path) -> set[Path]:
    """A plug-in's file, and the files below its folder that it imports, directly or indirectly. Libraries below the folder, as
    of a virtual environment in a checkout, are left out."""
    others = {PACKAGE, *(library for library in _libraries() if folder in library.parents)}

    def imports(path: Path) -> Iterator[Path]:
        nodes = [*ast.walk(ast.parse(path.read_bytes()))]
        modules = (getattr(sys.modules.get(name), "__file__", None) for name in _absolute(nodes))
        for file in {Path(module) for module in modules if module} | _relative(path, nodes):
            if folder in file.parents and others.isdisjoint(file.parents) and file.is_file():
                yield file

    return _reached([file] if file.is_file() else [], imports)


def _reached(files: Iterable[Path], imports: Callable[[Path], Iterable[Path]]) -> set[Path]:
    """The files and what they import, directly or indirectly."""
    left, reached = list(files), set()
    while left:
        path = left.pop()
        if path not in reached:
            reached.add(path)
            left += imports(path)
    return reached


@cache
def _content(path: Path) -> bytes:
    """Read once: later edits do not affect a running process."""
    return path.read_bytes()


def _imported(path: Path) -> set[Path]:
    """The files of this package that a Python file imports, except `__init__.py`, which computes nothing."""
    return _imports(path, _content(path) if PACKAGE in path.parents else path.read_bytes())


@cache
def _imports(path: Path, content: bytes) -> set[Path]:
    nodes = [*ast.walk(ast.parse(content))]
    found = _relative(path, nodes) if PACKAGE in path.parents else set()
    names = {name for name in _absolute(nodes) if name.startswith("ovss_bench")}
    found |= {_file(name.partition(".")[2]) for name in names}
    if names:  # `import ovss_bench as ob`, then `ob.attend`
        used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        used |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
        found |= {file for name, file in _interface().items() if name in used}
    return {file for file in found if file.is_file()}


def _relative(path: Path, nodes: Sequence[ast.AST]) -> set[Path]:
    """Possible files of relative imports, except those that only type checkers execute."""
    guards = (node for node in nodes if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING")
    typing = {node for guard in guards for node in ast.walk(guard)}
    found: set[Path] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level and node not in typing:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            found |= {base.with_suffix(".py"), *(base / f"{alias.name}.py" for alias in node.names)}
    return found


def _absolute(nodes: Sequence[ast.AST]) -> set[str]:
    """The modules of absolute imports."""
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@cache
def _interface() -> dict[str, Path]:
    """The files that define the names of the Python interface (__init__.pyi), except runs and reports, which no method uses."""
    stub = (node for node in ast.parse(_content(PACKAGE / "__init__.pyi")).body if isinstance(node, ast.ImportFrom))
    found = [(node.module, alias.name) for node in stub for alias in node.names if node.module]
    return {name: _file(module) for module, name in found if not module.startswith(("runs.", "reports."))}


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()
