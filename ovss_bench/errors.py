"""The one exception that users see: what is wrong, where, and what to do. The tools print it without a traceback, status 2."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MOST = 80  # names that an error lists: more than there are data sets
KEPT = "what was finished is kept; rerun the same command to resume"


class OvssError(Exception):
    """A mistake in the input (names, files, values) or a run that cannot go on; the message is complete by itself."""

    status = 2  # with which a tool ends that tells it


def unknown(kind: str, name: object, known: Iterable[str]) -> OvssError:
    """The error for a name that does not exist, with the three closest that do, or all; of very many the first."""
    known = sorted(str(k) for k in known)
    close = get_close_matches(str(name), known, n=3, cutoff=0.3)
    shown = ", ".join(known) if len(known) <= MOST else f"{', '.join(known[:10])}, ... ({len(known)} in all)"
    hint = f"Did you mean {' or '.join(close)}?" if close and len(known) > 6 else f"Known: {shown}."
    return OvssError(f"unknown {kind} '{name}'. {hint}")
