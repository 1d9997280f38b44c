"""Importing a module here registers its loaders."""

from . import base, demo  # noqa: F401
