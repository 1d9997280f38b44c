"""Importing the package registers all converters."""

from . import ade, aerial, cityscapes, coco, context, mess, objects, paxray  # noqa: F401
