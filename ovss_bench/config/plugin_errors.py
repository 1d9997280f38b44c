"""Turns exceptions in a plug-in into one error that names the file and the line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import OvssError
from ..process import Ended
from .registry import DATASETS, SEGMENTORS, STEPS


def is_outside(kind: type) -> bool:
    """Whether a class is defined outside this package."""
    return kind.__module__.partition(".")[0] != "ovss_bench"


def blamed(error: BaseException, kind: type | None = None) -> OvssError | None:
    """The OvssError for an exception from a plug-in. It names the last line of the traceback that is in a plug-in, or just the
    last line if none is but the class `kind` belongs to a plug-in. None for all other exceptions."""
    if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):  # out of memory: left to the engine
        return None
    classes = [each for registry in (SEGMENTORS, STEPS, DATASETS) for each in registry.registered.values()]
    plugins = tuple({each.__module__.partition(".")[0] + "." for each in classes if is_outside(each)})
    places = [place for place in traceback.walk_tb(error.__traceback__) if place[0].f_code.co_filename != __file__]
    modules = (f"{frame.f_globals.get('__name__')}." for frame, _ in places)
    inside = [place for place, name in zip(places, modules, strict=True) if name.startswith(("ovss_bench_plugin_", *plugins))]
    if not inside and not (kind and is_outside(kind)):
        return None
    frame, line = (inside or places)[-1]
    message = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return OvssError(f"{message} ({frame.f_code.co_filename}, line {line}, in {frame.f_code.co_name}; debug=true shows all)")


@contextmanager
def plugin_errors(what: str, kind: type | None = None) -> Iterator[None]:
    """Encloses a call of `what`, a method of the class `kind`, which may belong to a plug-in."""
    try:
        yield
    except (OvssError, Ended):
        raise
    except (Exception, SystemExit) as error:  # a plug-in may call sys.exit()
        explanation = blamed(error, kind)
        if explanation is None:
            raise
        raise OvssError(f"{what}: {explanation}") from error
