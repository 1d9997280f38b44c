"""Importing a module here registers its loaders."""

from . import base, coco, demo  # noqa: F401
