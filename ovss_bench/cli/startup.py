"""Imported by the tools before anything that takes time: Ctrl-C during imports ends them with one line, too."""

import sys
from types import TracebackType

from ..errors import KEPT


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(f"error: interrupted; {KEPT}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _hook
