"""Command lines of `ovss eval` in Hydra's grammar: what a user writes after `NAME=` must arrive as it was written. Hydra would
see a number in `ids=[2007_000033]`, and an error in `data_root=/my data/a=b`, `output=~/x` or `weights=/größe.pt`."""

from __future__ import annotations

import os
import re
import warnings
from importlib.metadata import PackageNotFoundError, distribution

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString

from ..errors import OvssError, unknown
from ..files import PACKAGE, load_config, user_path
from .eval_options import HINTS
from .options import items_of, kind_of

TEXTS = {name for name, hint in HINTS.items() if kind_of(hint) in (str, list)} | {"names", "templates"}
# Options with which a comma separates several names: the runs of a grid; otherwise Hydra explains how a list is written.
SEVERAL = {name for name, hint in HINTS.items() if kind_of(hint) is list} | {"clip", "protocol", "names", "templates"}
PLAIN = re.compile(r"(?!(?i:null|true|false|nan|inf)$)(?:[A-Za-z_]|\.{0,2}/)[\w./:@%+-]*", re.ASCII)  # is a text to Hydra, too
LAUNCHERS = {"submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}


def is_grid(arguments: list[str]) -> bool:
    return not {"-m", "--multirun"}.isdisjoint(arguments)


def checked(arguments: list[str]) -> list[str]:
    """The command line with recipe overrides as Hydra wants new keys (`++`), after a check of all other keys."""
    known = load_config("tools", "eval")
    keys = [key for key in known if key not in ("defaults", "hydra", "runtime")]
    keys += [f"runtime.{key}" for key in known["runtime"]]
    result = []
    grid = is_grid(arguments) and not any(word.startswith("hydra/launcher=") for word in arguments)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not argument.startswith("-") and not re.fullmatch(r"hydra/\w+|(\+\+?|~)?[A-Za-z_][\w.]*", key):
            raise OvssError(f"'{argument}': expected NAME=VALUE.")
        if key == "hydra/launcher" and value in LAUNCHERS:
            check_launcher(value)
        if equals and key not in keys and not key.startswith(("-", "+", "~", "hydra", "recipe.")):
            raise unknown("option", key, keys)
        argument = literal(argument, is_grid(arguments))
        result.append(f"++{_in_one_run(argument, grid)}" if argument.startswith("recipe.") else argument)
    # argparse expects the flags, with their values, before all overrides.
    return sorted(result, key=lambda argument: argument[:1] != "-" and ("=" in argument or argument[:1] == "~"))


def check_launcher(name: str) -> None:
    """Prepares the environment of a launcher's jobs. Raises OvssError if its package is not installed."""
    try:
        distribution(f"hydra-{LAUNCHERS[name]}-launcher")
    except PackageNotFoundError:
        raise OvssError(
            f"hydra/launcher={name} needs hydra-{LAUNCHERS[name]}-launcher, which is not installed: pip install "
            f"'ovss-bench[{'ray' if name == 'ray' else 'launchers'}]', or pip install hydra-{LAUNCHERS[name]}-launcher"
        ) from None
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Our presets have the names that the packages give their own.
    warnings.filterwarnings("ignore", message=r"(?s).*validated against ConfigStore schema")


def _in_one_run(argument: str, grid: bool) -> str:
    """Recipe values of a grid that runs in this process become a list, so that they share what does not depend on them."""
    override = OverridesParser.create().parse_override(f"++{argument}") if grid else None
    if not override or not override.is_choice_sweep():
        return argument
    return f"{override.key_or_group}=[{','.join(override.sweep_string_iterator())}]"


def literal(argument: str, grid: bool) -> str:
    """An override NAME=VALUE, in quotes where Hydra would take its text for something else. Values with interpolations
    (`${...}`), and in a grid those with functions (`choice(a,b)`), are left to Hydra."""
    key, equals, text = argument.partition("=")
    name = key.lstrip("+~").rpartition(".")[2]
    if not equals or name not in TEXTS or "${" in text or text in ("", "null"):
        return argument
    if text.startswith("[") and text.endswith("]") and (name in SEVERAL or key.lstrip("+").startswith("recipe.")):
        return f"{key}=[{_quoted(text[1:-1])}]"
    if grid and ("," in text or re.fullmatch(r"\w+\(.*\)", text)):
        return argument if "(" in text else f"{key}={_quoted(text)}"
    names = (
        "," in text and name in SEVERAL and not os.path.exists(user_path(text)) and all(map(PLAIN.fullmatch, items_of(text)))
    )
    return argument if names else f"{key}={_item(text)}"


def _quoted(text: str) -> str:
    items = items_of(text)
    return ",".join(map(_item, items)) if all(items) else text


def _item(text: str) -> str:
    in_quotes = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text if in_quotes or PLAIN.fullmatch(text) else QuotedString(text, Quote.single).with_quotes()
