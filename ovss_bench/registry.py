"""The registries of segmentors and datasets, and the import of plug-ins that add to them."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

import mmengine

from .errors import OvssError, unknown


class Registry(mmengine.Registry):
    """mmengine's registry, with an error that lists the closest names."""

    def get(self, key: str) -> type:
        if key not in self.module_dict:
            raise unknown(self.name, key, self.module_dict)
        return self.module_dict[key]


SEGMENTORS = Registry("segmentor")
DATASETS = Registry("dataset")
PLUGINS: dict[str, str] = {}  # path -> SHA-256 of the file, part of a run's fingerprint


def load_plugin(path: str | Path) -> None:
    """Imports a Python file that registers segmentors or datasets. Importing the same file again changes nothing."""
    path = Path(path).expanduser().resolve()
    if str(path) in PLUGINS:
        return
    if not path.is_file():
        raise OvssError(f"plugin {path} does not exist. Give the path of a Python file, e.g. 'plugins=[./my_method.py]'.")
    name = f"ovss_bench_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise OvssError(f"plugin {path} cannot be imported: {type(error).__name__}: {error}") from error
    PLUGINS[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
