"""The commands of `ovss`, and their `--help` in 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from functools import partial
from importlib import import_module
from typing import Any

from ..errors import unknown
from .eval_options import EVAL
from .options import Command

COMMANDS = {  # each is defined by COMMAND in the module of the same name
    "eval": "evaluate methods on data sets",
    "segment": "segment a photo",
    "report": "tables and an HTML page of results",
    "compare": "compare results with each other, or with published figures",
    "datasets": "list, prepare and check data sets",
    "regions": "make the region maps of a data set once",
    "merge": "merge the results of shard=I/N",
    "bench": "measure speed and memory",
    "new-method": "write the files of a new method",
}
INDENT = 18  # columns before the comments
fill = partial(textwrap.fill, width=80, break_long_words=False, break_on_hyphens=False)


def command_of(name: str) -> Command:
    """Raises OvssError for an unknown name."""
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    return import_module(f".{name.replace('-', '_')}", __package__).COMMAND


def help_of(program: str, command: Command) -> str:
    """The help of a command; `program` is how it is started."""
    usage = [f"{program} {words}".rstrip() for words in command.usage]
    parts = ["usage: " + "\n       ".join(usage), fill(command.summary or "")]
    groups = {title: list(options) for title, options in command.groups.items()}
    if "debug" not in command.options():
        groups.setdefault("Options" if len(groups) == 1 else "Debugging", []).append(EVAL["debug"])
    for title, options in groups.items():
        rows = ((f"{option.name}=", option.comment + _default(option.default)) for option in options)
        parts.append(f"{title}:\n{columns(rows)}")
    parts += map(fill, command.notes)
    return "\n\n".join([*parts, "Examples:\n" + "\n".join(f"  {program} {example}".rstrip() for example in command.examples)])


def columns(rows: Iterable[tuple[str, str]]) -> str:
    """Names with their comments; a long name fills a line."""
    lines = []
    for name, text in rows:
        start = f"  {name}".ljust(INDENT)
        if not start.endswith(" "):
            lines.append(start)
            start = " " * INDENT
        lines.append(fill(text, initial_indent=start, subsequent_indent=" " * INDENT))
    return "\n".join(lines)


def _default(value: Any) -> str:
    if value is None or value in ([], {}):
        return ""
    text = ", ".join(value) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)
    return f" [{text}]"
