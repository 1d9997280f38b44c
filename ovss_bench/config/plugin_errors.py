"""Whatever a plug-in raises becomes one error that names the file and the line."""

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
    """The error that names the last line of a plug-in that an exception came through on its way here; None if there is none,
    unless the class `kind` is a plug-in's: then it names the line that raised it."""
    if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):  # the loop knows what to do
        return None
    tops = {each.__module__.partition(".")[0] for registry in (SEGMENTORS, DATASETS) for each in registry.registered.values()}
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename != __file__]

    def is_plugin(module: str) -> bool:
        top = module.partition(".")[0]
        return top.startswith("ovss_bench_plugin_") or top in tops - {"ovss_bench"}

    own = [place for place in frames if is_plugin(place[0].f_globals.get("__name__") or "")]
    if not own and not (kind and is_outside(kind)):
        return None
    frame, line = (own or frames)[-1]
    message = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return OvssError(f"{message} ({frame.f_code.co_filename}, line {line}, in {frame.f_code.co_name}; debug=true shows all)")


@contextmanager
def plugin_errors(what: str, kind: type | None = None) -> Iterator[None]:
    """Around calls of what may be a plug-in's; `what` was called, of the class `kind`."""
    try:
        yield
    except (OvssError, Ended):
        raise
    except (Exception, SystemExit) as error:  # a plug-in may call sys.exit()
        found = blamed(error, kind)
        if found is None:
            raise
        raise OvssError(f"{what}: {found}") from error
