"""Exceptions in a plug-in become one error that names the file and the line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import OvssError
from ..process import Ended
from .registry import DATASETS, SEGMENTORS


def is_outside(kind: type) -> bool:
    """Whether a class is a plug-in's."""
    return kind.__module__.partition(".")[0] != "ovss_bench"


def blamed(error: BaseException, kind: type | None = None) -> OvssError | None:
    """The error that names the last line of a plug-in in the traceback of an exception. Without one, None; but if the class
    `kind` is a plug-in's, the line that raised the exception."""
    if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):  # the engine handles it
        return None
    classes = [each for registry in (SEGMENTORS, DATASETS) for each in registry.registered.values()]
    plugins = {each.__module__.partition(".")[0] for each in classes if is_outside(each)}
    places = [place for place in traceback.walk_tb(error.__traceback__) if place[0].f_code.co_filename != __file__]
    tops = [(place[0].f_globals.get("__name__") or "").partition(".")[0] for place in places]
    inside = [place for place, top in zip(places, tops, strict=True) if top.startswith("ovss_bench_plugin_") or top in plugins]
    if not inside and not (kind and is_outside(kind)):
        return None
    frame, line = (inside or places)[-1]
    message = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return OvssError(f"{message} ({frame.f_code.co_filename}, line {line}, in {frame.f_code.co_name}; debug=true shows all)")


@contextmanager
def plugin_errors(what: str, kind: type | None = None) -> Iterator[None]:
    """Around a call of `what`, a method of the class `kind`, which may be a plug-in's."""
    try:
        yield
    except (OvssError, Ended):
        raise
    except (Exception, SystemExit) as error:  # a plug-in may call sys.exit()
        found = blamed(error, kind)
        if found is None:
            raise
        raise OvssError(f"{what}: {found}") from error
