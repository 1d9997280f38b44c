"""The only module that imports mmseg, because that takes a second and imports torch."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO

from ..errors import unknown


def mmseg_class(name: str) -> type:
    """A data set class of mmseg. Raises OvssError for an unknown name."""
    with redirect_stdout(StringIO()):  # mmseg prints that the optional "OneDL" is missing
        import mmseg.datasets  # noqa: F401  (registers the classes)
        from mmseg.registry import DATASETS as MMSEG
    if name not in MMSEG.module_dict:
        raise unknown("data set class of mmseg", name, MMSEG.module_dict)
    return MMSEG.module_dict[name]
