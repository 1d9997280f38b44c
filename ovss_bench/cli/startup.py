"""Imported before all slow modules, so that Ctrl-C during imports and missing libraries also print only one line."""

import sys
from types import TracebackType

from ..errors import KEPT, print_error
from ..missing import missing_libraries


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print_error(f"interrupted; {KEPT}")
    elif isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("ovss_bench"):
        print_error(missing_libraries(error))
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _hook
