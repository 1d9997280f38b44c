"""Quotes the command line of `ovss eval` for Hydra's grammar, so that texts after `NAME=` arrive as written. Hydra would parse
`ids=[2007_000033]` as a number, and reject `data_root=/my data/a=b`, `output=~/x` or `weights=/größe.pt`."""

from __future__ import annotations

import os
import re
import warnings
from importlib.metadata import PackageNotFoundError, distribution

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString

from ..errors import OvssError, unknown
from ..files import PACKAGE, user_path
from .eval_options import EVAL, HINTS
from .options import items_of, kind_of

TEXTS = {name for name, hint in HINTS.items() if kind_of(hint) in (str, list)} | {"names", "templates"}
# Options in which commas separate the runs of a grid.
SEVERAL = {name for name, hint in HINTS.items() if kind_of(hint) is list} | {"clip", "protocol", "names", "templates"}
PLAIN = re.compile(r"(?!(?i:null|true|false|nan|inf)$)(?:[A-Za-z_]|\.{0,2}/)[\w./:@%+-]*", re.ASCII)  # Hydra reads text, too
LAUNCHERS = {"submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}


def is_grid(arguments: list[str]) -> bool:
    return not {"-m", "--multirun"}.isdisjoint(arguments)


def checked(arguments: list[str]) -> list[str]:
    """The command line for Hydra, with `++` before recipe overrides, which are new keys. Raises OvssError for unknown keys."""
    grid, result = is_grid(arguments), []
    in_process = grid and not any(word.startswith("hydra/launcher=") for word in arguments)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not argument.startswith("-") and not re.fullmatch(r"hydra/\w+|(\+\+?|~)?[A-Za-z_][\w.]*", key):
            raise OvssError(f"'{argument}': expected NAME=VALUE.")
        if key == "hydra/launcher" and value in LAUNCHERS:
            check_launcher(value)
        if equals and key not in EVAL and not key.startswith(("-", "+", "~", "hydra", "recipe.")):
            raise unknown("option", key, EVAL)
        argument = literal(argument, grid)
        if not grid and "," in value and OverridesParser.create().parse_override(argument).is_sweep_override():
            listed = f"write {key}=[{value}], or " if key.startswith("recipe.") or kind_of(HINTS.get(key)) is list else ""
            raise OvssError(f"{key}={value}: {listed}add -m to run a grid, one run for each value.")
        if argument.startswith("recipe."):
            argument = f"++{_in_one_run(argument) if in_process else argument}"
        result.append(argument)
    # argparse expects the flags, with their values, before all overrides.
    return sorted(result, key=lambda argument: argument[:1] != "-" and ("=" in argument or argument[:1] == "~"))


def check_launcher(name: str) -> None:
    """Prepares the environment of a launcher's jobs. Raises OvssError if its package is not installed."""
    package = f"hydra-{LAUNCHERS[name]}-launcher"
    try:
        distribution(package)
    except PackageNotFoundError:
        extra = "ray" if name == "ray" else "launchers"
        hint = f"pip install 'ovss-bench[{extra}]', or pip install {package}"
        raise OvssError(f"hydra/launcher={name} needs {package}, which is not installed: {hint}") from None
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Our presets have the same names as those of the packages.
    warnings.filterwarnings("ignore", message=r"(?s).*validated against ConfigStore schema")


def _in_one_run(argument: str) -> str:
    """The choices for a recipe value as a list: one run evaluates all of them, and shares what does not depend on the value."""
    override = OverridesParser.create().parse_override(f"++{argument}")
    if not override.is_choice_sweep():
        return argument
    return f"{override.key_or_group}=[{','.join(override.sweep_string_iterator())}]"


def literal(argument: str, grid: bool) -> str:
    """NAME=VALUE, quoted where Hydra would misread the text, except interpolations (`${...}`) and a grid's `choice(a,b)`."""
    key, equals, text = argument.partition("=")
    name = key.lstrip("+~").rpartition(".")[2]
    if not equals or name not in TEXTS or "${" in text or text in ("", "null"):
        return argument
    if text.startswith("[") and text.endswith("]") and (name in SEVERAL or key.lstrip("+").startswith("recipe.")):
        return f"{key}=[{_quoted(text[1:-1])}]"
    if grid and ("," in text or re.fullmatch(r"\w+\(.*\)", text)):
        return argument if "(" in text else f"{key}={_quoted(text)}"
    if "," in text and name in SEVERAL and not os.path.exists(user_path(text)) and all(map(PLAIN.fullmatch, items_of(text))):
        return argument
    return f"{key}={_item(text)}"


def _quoted(text: str) -> str:
    items = items_of(text)
    return ",".join(map(_item, items)) if all(items) else text


def _item(text: str) -> str:
    in_quotes = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text if in_quotes or PLAIN.fullmatch(text) else QuotedString(text, Quote.single).with_quotes()
