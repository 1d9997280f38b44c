"""Importing the package imports all its modules, which register their converters."""

from importlib import import_module
from pkgutil import iter_modules

for module in iter_modules(__path__):
    import_module(f".{module.name}", __name__)
