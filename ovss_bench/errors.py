"""The exception that users see: what is wrong, where, and what to do. Tools print it without a traceback; their status is 2."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

MAX_LISTED = 80  # names listed in an error message; enough for all data sets
KEPT = "what was finished is kept; rerun the same command to resume"


class OvssError(Exception):
    """Wrong input (names, files, values), or a run that cannot continue. The message needs no traceback to be understood."""

    status = 2  # exit status of a tool that reports this error


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: object) -> str:
    """Escapes control characters, which names and files may contain, as in `\\x1b`, so that a terminal shows them."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", str(text))


def print_error(error: object) -> None:
    print(f"error: {visible(error)}", file=sys.stderr, flush=True)


def unknown(kind: str, name: object, known: Iterable[str]) -> OvssError:
    """The error for an unknown name. It suggests up to three similar names, or lists the known ones."""
    known = sorted(str(k) for k in known)
    close = get_close_matches(str(name), known, n=3, cutoff=0.3)
    shown = ", ".join(known) if len(known) <= MAX_LISTED else f"{', '.join(known[:10])}, ... ({len(known)} in all)"
    hint = f"Did you mean {' or '.join(close)}?" if close and len(known) > 6 else f"Known: {shown}."
    return OvssError(f"unknown {kind} '{name}'. {hint}")


@contextmanager
def reading(what: object, hint: str) -> Iterator[None]:
    """Turns any exception of a parser into one OvssError about `what`, since parsers raise nearly anything on damaged files.
    NameError and ImportError are bugs of this program: they pass unchanged."""
    try:
        yield
    except (OvssError, NameError, ImportError):
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, (OSError, ValueError, SyntaxError)) and str(error) else repr(error)
        raise OvssError(f"{what} cannot be read: {reason[:1000]}. {hint}") from error
