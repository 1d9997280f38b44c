"""Importing a module here registers its method."""

from . import clearclip, clip, gem, maskclip, naclip, sclip  # noqa: F401
