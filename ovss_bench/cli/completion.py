"""Shell completion by argcomplete: commands, options NAME=, and the names that an option takes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from ..errors import OvssError
from ..files import config_names
from .commands import COMMANDS, command_of
from .options import Command, kind_of

FOLDERS = {  # option -> folders of configs/ with the names that it takes
    **{name: (name,) for name in ("segmentor", "clip", "dataset", "table", "protocol", "regions", "foreground", "diffusion")},
    "suite": ("dataset/suite",),
    "vfm": ("vision",),
}
ACTIONS = {"datasets": ("list", "prepare", "check"), "regions": ("index",)}


def complete() -> None:
    """Answers the shell, which has set argcomplete's environment variables, and ends the process."""
    import argcomplete

    parser = argparse.ArgumentParser(add_help=False)
    words: Any = parser.add_argument("words", nargs="*")
    words.completer = candidates
    argcomplete.autocomplete(parser, always_complete_options=False)


def candidates(prefix: str, parsed_args: argparse.Namespace, **others: Any) -> Iterable[str]:
    """What the word that begins with `prefix` may be, after the words before it."""
    words = parsed_args.words or []
    if not words:
        return COMMANDS
    try:
        command = command_of(words[0])
    except OvssError:
        return ()
    key, equals, text = prefix.partition("=")
    if not equals:
        names = config_names("dataset") if words[1:] and words[0] == "datasets" else ACTIONS.get(words[0], ())
        return [*names, *(f"{name}=" for name in command.options())]
    head, comma, _ = text.rpartition(",")  # of a list, the last item
    start = f"{head}{comma}" or "[" * text.startswith("[")
    return [f"{key}={start}{name}" for name in names_of(command, key)]


def names_of(command: Command, name: str) -> list[str]:
    """The names that an option takes; none if it takes something else."""
    if name not in (options := command.options()):
        return []
    hint = options[name].hint
    if kind_of(hint) is bool:
        return ["true", "false"]
    known = [each for part in (hint, *get_args(hint)) if get_origin(part) is Literal for each in get_args(part)]
    known += [entry for folder in FOLDERS.get(name, ()) for entry in config_names(folder)]
    return known + [f"suite/{entry}" for entry in config_names("dataset/suite") if name == "dataset"]
