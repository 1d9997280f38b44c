"""Imported before all slow modules, so that Ctrl-C during imports also prints one line."""

import sys
from types import TracebackType

from ..errors import KEPT, print_error


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print_error(f"interrupted; {KEPT}")
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _hook
