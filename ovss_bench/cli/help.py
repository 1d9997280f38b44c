"""What `--help` prints: every option with its comment, in groups, in 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from .eval_options import EVAL
from .options import Command

WIDTH, LEFT = 80, 16  # columns of a terminal as it opens; where comments begin, after an indentation of 2


def help_of(program: str, command: Command) -> str:
    """The help of a command that is started as `program`."""
    usage = [f"{program} {words}".rstrip() for words in command.usage]
    parts = ["usage: " + "\n       ".join(usage), _filled(command.summary or "")]
    groups = {title: list(options) for title, options in command.groups.items()}
    if "debug" not in command.options():
        next(reversed(groups.values())).append(EVAL["debug"])
    for title, options in groups.items():
        rows = ((f"{option.name}=", option.comment + _default(option.default)) for option in options)
        parts.append(f"{title}:\n{columns(rows)}")
    parts += map(_filled, command.notes)
    return "\n\n".join([*parts, "Examples:\n" + "\n".join(f"  {program} {example}".rstrip() for example in command.examples)])


def columns(rows: Iterable[tuple[str, str]]) -> str:
    """Rows of two columns; a wide name has a line of its own."""
    lines = []
    for name, text in rows:
        if len(name) >= LEFT:
            lines.append(f"  {name}")
            name = ""
        lines.append(_filled(text, f"  {name:{LEFT}}", " " * (LEFT + 2)))
    return "\n".join(lines)


def _filled(text: str, first: str = "", rest: str = "") -> str:
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=rest, **options)


def _default(value: Any) -> str:
    if value is None or value in ([], {}):
        return ""
    text = ", ".join(value) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)
    return f" [{text}]"
