"""Miniatures of all data sets: three to five drawn scenes in the exact format in which the official archives come.

`MINIATURES[name](root)` writes what `tools/datasets.py prepare name data_root=root` starts from: the archives themselves, or,
where that is what a user has, their unpacked content.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

FAMILIES = ("voc", "context", "coco", "ade", "cityscapes", "aerial", "objects", "mess")
MINIATURES: dict[str, Callable[[Path], None]] = {
    name: writer for family in FAMILIES for name, writer in import_module(f".{family}", __name__).MINIATURES.items()
}
