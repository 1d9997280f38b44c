"""The registries of segmentors, steps and data sets, and the plug-ins that add to them: Python files and installed packages.

A package declares its plug-in by an entry point in the group `ovss_bench.plugins`, whose value is the module to import. Entry
points are loaded only to find an otherwise unknown name, so a broken package affects nothing else. The recipes of a plug-in
are in a folder `configs/segmentor` beside the module."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from traceback import extract_tb

import mmengine

from ..errors import OvssError, unknown
from ..files import CONFIGS, config_names, digest, user_path
from .segmentor_file import RECIPES

GROUP = "ovss_bench.plugins"
PLUGINS: dict[str, str] = {}  # plug-in files that were loaded -> SHA-256
_IMPORTED: dict[EntryPoint, OvssError | None] = {}  # -> the error if the import failed


class Registry(mmengine.Registry):
    """mmengine's registry with three additions: classes of a `package` of this project, each imported on first use (methods
    import torch, which most tools do not need); installed plug-ins; an error that suggests similar names."""

    def __init__(self, name: str, package: str | None = None) -> None:
        super().__init__(name, scope="ovss_bench")
        self.package = package

    @property
    def modules(self) -> dict[str, str]:
        """The package's table MODULES: registered name -> module."""
        return importlib.import_module(self.package).MODULES if self.package else {}

    @property
    def module_dict(self) -> dict[str, type]:
        """All classes. Those of this project are imported first."""
        for module in self.modules.values():
            importlib.import_module(f"{self.package}.{module}")
        return self._module_dict

    @property
    def registered(self) -> dict[str, type]:
        """The classes imported so far."""
        return self._module_dict

    @property
    def names(self) -> set[str]:
        """All names, without importing classes."""
        return {*self.modules, *self._module_dict}

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"{self.name} registry: {', '.join(sorted(self.names))}"

    def get(self, key: str) -> type:
        if key in self.modules:
            importlib.import_module(f"{self.package}.{self.modules[key]}")
        elif key not in self._module_dict:
            load_installed(key)
        if key not in self._module_dict:
            raise not_found(self.name, key, self.names)
        return self._module_dict[key]


SEGMENTORS = Registry("segmentor", "ovss_bench.segmentors")
DATASETS = Registry("dataset", "ovss_bench.datasets")
STEPS = Registry("step", "ovss_bench.segmentors.steps")


def load_plugin(path: str | Path) -> None:
    """Imports, once, a Python file that registers segmentors, steps or data sets, and adds the recipes beside it. If that
    fails, its registrations are undone and OvssError is raised."""
    path = user_path(path).resolve()
    if str(path) in PLUGINS:
        return
    if not path.is_file():
        raise OvssError(f"plugin {path} does not exist. Give the path of a Python file, e.g. 'plugins=[./my_method.py]'.")
    name = f"ovss_bench_plugin_{path.stem}_{digest(str(path))[:8]}"  # folders may have files of the same name
    with _importing(f"plugin {path}"):
        if not _is_imported(path):  # else it was imported as part of a package
            spec = importlib.util.spec_from_file_location(name, path)
            if spec is None or spec.loader is None:
                raise OvssError("it is not a Python file; its name must end in .py.")
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
        _add_recipes(path.parent)
    PLUGINS[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()


def load_installed(wanted: str) -> None:
    """Imports the plug-ins of installed packages, each once, to find `wanted`. Warns of broken ones; raises OvssError if the
    plug-in `wanted` is broken."""
    for entry in entry_points(group=GROUP):
        is_new = entry not in _IMPORTED
        error = _IMPORTED[entry] = _import_installed(entry) if is_new else _IMPORTED[entry]
        if error and entry.name == wanted:
            raise error
        if error and is_new:
            warnings.warn(str(error), stacklevel=3)


def not_found(kind: str, name: object, known: Iterable[str]) -> OvssError:
    """The error for a name that neither this project nor a plug-in registers."""
    error = unknown(kind, name, known)
    broken = [entry.name for entry, problem in _IMPORTED.items() if problem]
    return OvssError(f"{error} These plug-ins cannot be imported: {', '.join(broken)}.") if broken else error


def _import_installed(entry: EntryPoint) -> OvssError | None:
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown package"
    try:
        with _importing(f"plug-in '{entry.name}' of {package} ({entry.value})"):
            spec = importlib.util.find_spec(entry.module)
            origin = spec.origin if spec else None
            if origin not in PLUGINS:  # else it was loaded as a file
                entry.load()
            if origin is None:
                raise OvssError(f"{entry.module} is a folder without __init__.py. Add one.")
            _add_recipes(Path(origin).parent)
    except OvssError as error:
        return error
    return None


@contextmanager
def _importing(what: str) -> Iterator[None]:
    """Turns any exception into an OvssError that names the line, and undoes the registrations of the block."""
    registries = (SEGMENTORS.module_dict, DATASETS.module_dict, STEPS.module_dict, RECIPES)
    before: list[tuple[dict, dict]] = [(each, dict(each)) for each in registries]
    try:
        yield
    except (Exception, SystemExit) as error:
        for registry, content in before:
            registry.clear()
            registry.update(content)
        frames = [frame for frame in extract_tb(error.__traceback__) if frame.name == "<module>"]
        where = f" ({frames[0].filename}, line {frames[0].lineno})" if frames else ""
        reason = str(error) if isinstance(error, OvssError) else f"{type(error).__name__}: {error}{where}"
        raise OvssError(f"{what} cannot be imported: {reason}") from error


def _add_recipes(folder: Path) -> None:
    folder = folder.resolve() / "configs" / "segmentor"
    if folder == CONFIGS.resolve() / "segmentor":  # the plug-in is in the root of this project
        return
    for path in sorted(folder.glob("*.yaml")):
        if path.stem in config_names("segmentor") or RECIPES.get(path.stem, path) != path:
            raise OvssError(f"recipe '{path.stem}' already exists. Give {path} another name.")
        RECIPES[path.stem] = path


def _is_imported(path: Path) -> bool:
    files = (vars(module).get("__file__") for module in list(sys.modules.values()))
    return any(file.endswith(path.name) and Path(file).resolve() == path for file in files if file)
