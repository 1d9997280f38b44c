"""Runs a command; errors and signals become one line and an exit status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from omegaconf.errors import OmegaConfBaseException

from ..errors import KEPT, OvssError, print_error
from ..process import Ended, terminate_cleanly
from .options import DEBUG


def run_tool(work: Callable[[], int | None]) -> None:
    """Runs a command and exits with its status; `debug=true` on the command line adds the traceback of an error."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")  # characters that the terminal's encoding lacks, e.g. in file names
    status, message = outcome(work, DEBUG[0] in sys.argv)
    if message and os.environ.get("RANK", "0") == "0":  # the other processes of torchrun would print the same
        print_error(message)
    sys.exit(status)


def outcome(work: Callable[[], int | None], debug: bool) -> tuple[int, OvssError | OmegaConfBaseException | str | None]:
    """The exit status of `work`, and its error if it fails: 128 + N after signal N, otherwise that of the error, usually 2."""
    try:
        with terminate_cleanly():
            status = work() or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2, None
    except KeyboardInterrupt:
        return 2, f"interrupted; {KEPT}"
    except Ended as end:
        return end.code, f"ended by {end.name}; {KEPT}"
    except (Exception, SystemExit) as error:  # a plug-in may call sys.exit()
        message = error if isinstance(error, OvssError | OmegaConfBaseException) else _of_plugin(error)
        if message is None:
            raise
        if debug:
            traceback.print_exc()
        return getattr(message, "status", 2), message
    return status, None


def _of_plugin(error: BaseException) -> OvssError | None:
    """The error with its place in a plug-in; None if no plug-in is involved."""
    if "ovss_bench.config.registry" not in sys.modules:
        return None
    from ..config.plugin_errors import blamed

    return blamed(error)
