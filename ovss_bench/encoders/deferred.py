"""Imports a library without those of its dependencies that this project never uses, to save seconds at every start.

Written by hand: `importlib.util.LazyLoader` must import the parent packages, and `lazy_loader` requires changes to the library.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any


@contextmanager
def deferred(*modules: str) -> Iterator[None]:
    """Replaces `modules` not yet imported by placeholders. Their attributes import the module when they are used."""
    placeholders = {module: _Module(module) for module in modules if module not in sys.modules}
    sys.modules.update(placeholders)
    try:
        yield
    finally:
        for module, placeholder in placeholders.items():
            if sys.modules.get(module) is placeholder:
                del sys.modules[module]


class _Module(ModuleType):
    def __getattr__(self, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(self.__name__, name)


class _Name:
    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _resolved(self) -> Any:
        return getattr(import_module(self._module), self._name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._resolved()(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # looked up for annotations
            raise AttributeError(name)
        return getattr(self._resolved(), name)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._resolved())
