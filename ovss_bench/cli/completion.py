"""Shell completion with argcomplete: commands, options NAME=, and values that are names."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from ..config.validation import choices
from ..files import config_names
from .commands import COMMANDS, command_of
from .eval_options import EVAL
from .options import Command, kind_of

FOLDERS = {name: name for name in EVAL if config_names(name)}  # option -> folder of configs/ with its values
FOLDERS |= {"text": "step", "refine": "step", "suite": "dataset/suite", "vfm": "vision"}
ACTIONS = {"datasets": ("list", "prepare", "check"), "regions": ("index",)}


def complete() -> None:
    """Answers the shell's request, which is in argcomplete's environment variables, and exits."""
    import argcomplete

    parser = argparse.ArgumentParser(add_help=False)
    words: Any = parser.add_argument("words", nargs="*")
    words.completer = candidates
    argcomplete.autocomplete(parser, always_complete_options=False)


def candidates(prefix: str, parsed_args: argparse.Namespace, **others: Any) -> Iterable[str]:
    """The completions of `prefix`, the word after the parsed ones."""
    name, *words = parsed_args.words or [""]
    if name not in COMMANDS:
        return () if name else COMMANDS
    command = command_of(name)
    key, equals, text = prefix.partition("=")
    if not equals:
        names = config_names("dataset") if words and name == "datasets" else ACTIONS.get(name, ())
        return [*names, *(f"{option}=" for option in command.options())]
    head, comma, _ = text.rpartition(",")  # completes the last item of a list
    start = f"{head}{comma}" or "[" * text.startswith("[")
    return [f"{key}={start}{value}" for value in values_of(command, key)]


def values_of(command: Command, name: str) -> list[str]:
    """The values of an option that can be listed."""
    if name not in command.options():
        return []
    hint = command.options()[name].hint
    if kind_of(hint) is bool:
        return ["true", "false"]
    suites = [f"suite/{suite}" for suite in config_names("dataset/suite")] if name == "dataset" else []
    return [*choices(hint), *(config_names(FOLDERS[name]) if name in FOLDERS else ()), *suites]
