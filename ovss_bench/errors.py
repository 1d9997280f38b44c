"""The one exception that users see: what is wrong, where, and what to do. The tools print it without a traceback, status 2."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

MOST = 80  # names that an error lists: more than there are data sets
KEPT = "what was finished is kept; rerun the same command to resume"


class OvssError(Exception):
    """A mistake in the input (names, files, values) or a run that cannot go on; the message is complete by itself."""

    status = 2  # with which a tool ends that tells it


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: object) -> str:
    """Text for a terminal, which would take control characters of names and files for its own: they are shown as `\\x1b`."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", str(text))


def print_error(error: object) -> None:
    print(f"error: {visible(error)}", file=sys.stderr, flush=True)


def unknown(kind: str, name: object, known: Iterable[str]) -> OvssError:
    """The error for a name that does not exist, with the three closest that do, or all; of very many the first."""
    known = sorted(str(k) for k in known)
    close = get_close_matches(str(name), known, n=3, cutoff=0.3)
    shown = ", ".join(known) if len(known) <= MOST else f"{', '.join(known[:10])}, ... ({len(known)} in all)"
    hint = f"Did you mean {' or '.join(close)}?" if close and len(known) > 6 else f"Known: {shown}."
    return OvssError(f"unknown {kind} '{name}'. {hint}")


@contextmanager
def reading(what: object, hint: str) -> Iterator[None]:
    """The boundary around all that parses a kind of file: whatever is raised becomes one OvssError about `what`, for parsers of
    damaged files raise nearly anything. Wrong names and imports are the program's own mistakes, and stay what they are."""
    try:
        yield
    except (OvssError, NameError, ImportError):
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, (OSError, ValueError)) and str(error) else repr(error)
        raise OvssError(f"{what} cannot be read: {reason[:1000]}. {hint}") from error
