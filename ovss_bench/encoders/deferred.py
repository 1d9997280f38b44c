"""Importing a library without the libraries that it imports for what is not used here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any


@contextmanager
def deferred(*modules: str) -> Iterator[None]:
    """What is imported in the block gets of these modules, unless they are imported already, only names, and the modules behind
    them when something is done with a name: when it is called, or an attribute or an instance of it is asked for."""
    stand_ins = {module: _Module(module) for module in modules if module not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for module, stand_in in stand_ins.items():
            if sys.modules.get(module) is stand_in:
                del sys.modules[module]


class _Module(ModuleType):
    def __getattr__(self, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(self.__name__, name)


class _Name:
    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _itself(self) -> Any:
        return getattr(import_module(self._module), self._name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._itself()(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # annotations ask for these
            raise AttributeError(name)
        return getattr(self._itself(), name)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._itself())
