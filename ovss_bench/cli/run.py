"""Runs the work of a command: what ends it is one line and an exit status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from omegaconf.errors import OmegaConfBaseException

from ..errors import KEPT, OvssError, print_error
from ..process import Ended, terminate_cleanly
from .options import DEBUG


def print_anything() -> None:
    """Escapes characters that the terminal's encoding lacks, for instance in file names, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def run_tool(work: Callable[[], int | None]) -> None:
    """Runs a command and exits: with the status that `work` returns; with one line and 2 for an error, or 128 + its number for
    a signal. `debug=true` on the command line adds the traceback."""
    print_anything()
    status = 2
    try:
        with terminate_cleanly():
            done = work() or 0
        sys.stdout.flush()
        sys.exit(done)
    except BrokenPipeError:  # the reader of a pipe, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(2)
    except KeyboardInterrupt:
        message: object = f"interrupted; {KEPT}"
    except Ended as end:
        status, message = end.code, f"ended by {end.name}; {KEPT}"
    except Exception as error:
        message = error if isinstance(error, OvssError | OmegaConfBaseException) else _of_plugin(error)
        if message is None:
            raise
        if DEBUG[0] in sys.argv:
            traceback.print_exc()
    print_error(message)
    sys.exit(status)


def _of_plugin(error: Exception) -> OvssError | None:
    """The error of a plug-in, in its own words; only a command that has loaded one has any."""
    if "ovss_bench.config.registry" not in sys.modules:
        return None
    from ..config.plugin_errors import blamed

    return blamed(error)
