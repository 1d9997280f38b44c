"""The command lines of the small tools: words NAME=VALUE with defaults, and errors of one line."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from .errors import KEPT, OvssError, unknown


def parse_options(words: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options, each of the kind of its default (text if that is None); whole numbers are not below 1, or the default, other
    numbers not below 0; `limit`, `workers`, `threads` and `batch` are whole numbers in any case. Loads `plugins`. Raises
    OvssError for unknown names and for values of another kind."""
    words = [word for word in words if word not in DEBUG]
    for word in words:
        if "=" not in word:
            raise OvssError(f"'{word}': expected NAME=VALUE, of {', '.join(defaults)}.")
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))
    except YAMLError as error:
        raise OvssError(f"{' '.join(words)}: expected NAME=VALUE; put values with brackets or quotes in quotes.") from error
    for key, value in given.items():
        if key not in defaults:
            raise unknown("option", key, defaults)
        default = defaults[key]
        if key in ("limit", "workers", "threads", "batch") or type(default) is int:
            least = 0 if default == 0 else 1
            if value != default and (type(value) is not int or value < least):
                raise OvssError(f"{key}={value}: expected a whole number of at least {least}.")
        elif type(default) is float:
            if not _is_number(value) or not 0 <= value < float("inf"):
                raise OvssError(f"{key}={value}: expected a number, 0 or more.")
        elif isinstance(default, dict):
            if not isinstance(value, dict):
                raise OvssError(f"{key}={value}: expected {key}.NAME=VALUE.")
        elif isinstance(default, bool):
            if not isinstance(value, bool):
                raise OvssError(f"{key}={value}: expected true or false.")
        elif isinstance(default, list):
            given[key] = [value] if isinstance(value, str) else value or []
        elif isinstance(value, int | float):  # a folder may be called 2012, or 007
            given[key] = next(word for word in reversed(words) if word.startswith(f"{key}=")).partition("=")[2]
        elif isinstance(value, list | dict):
            raise OvssError(f"{key}={value}: expected one name.")
    options = {**defaults, **given}
    if options.get("plugins"):
        from .registry import load_plugin

        for plugin in options["plugins"]:
            load_plugin(plugin)
    return options


DEBUG = ("debug=true", "debug=false")
TEXT = ("weights", "table", "vfm", "regions", "foreground", "diffusion", "bank", "data_root", "expect", "shard", "device")
SWITCHES = ("rerun", "dry_run", "debug", "skip_bad_images", "boundary", "maps", "compile", "profile")
KINDS = {  # of the options of tools/eval.py; which may be null, and which are taken for lists if one is given
    **dict.fromkeys((*TEXT, "feature_cache", "trunk_cache"), "a text, or null"),
    **dict.fromkeys(("clip", "protocol", "output"), "a text"),
    **dict.fromkeys(("segmentor", "dataset", "plugins"), "one text, or a list"),
    "ids": "one text, or a list, or null",
    **dict.fromkeys(("limit", "threads", "batch"), "a whole number of at least 1, or null"),
    "workers": "a whole number of at least 1",
    **dict.fromkeys(SWITCHES, "true or false"),
    **dict.fromkeys(("tolerance", "trunk_cache_gb"), "a number, 0 or more"),
    "recipe": "recipe.NAME=VALUE",
}


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The composed options of tools/eval.py, numbers that stand for names as text. Raises OvssError for those of another
    kind."""
    result = {}
    for key, value in options.items():
        if key == "runtime":
            if not isinstance(value, dict):
                raise OvssError(f"runtime={value}: expected runtime.NAME=VALUE.")
            result[key] = checked_options(value)
            continue
        kind = KINDS[key]
        if "text" in kind:
            several = isinstance(value, list) and "list" in kind
            items = [str(item) if _is_number(item) else item for item in (value if several else [value])]
            fits = all(isinstance(item, str) and item for item in items) or (value is None and "null" in kind)
            result[key] = items if several or (key in ("plugins", "ids") and value is not None) else items[0]
        else:
            whole = type(value) is int and value >= 1
            fits = {
                "a whole number of at least 1, or null": whole or value is None,
                "a whole number of at least 1": whole,
                "true or false": isinstance(value, bool),
                "a number, 0 or more": _is_number(value) and value >= 0,
                "recipe.NAME=VALUE": isinstance(value, dict),
            }[kind]
            result[key] = value
        if not fits:
            raise OvssError(f"{key}={value}: expected {kind}.")
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def run_tool(work: Callable[[], int | None]) -> None:
    """Runs a tool and ends the process: with the status that `work` returns, or 2 and one line for an error; with `debug=true`
    on the command line the traceback, too."""
    try:
        status = work() or 0
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(2)
    except KeyboardInterrupt:
        message: object = f"interrupted; {KEPT}"
    except Exception as error:
        message = error if isinstance(error, OvssError | OmegaConfBaseException) else _of_plugin(error)
        if message is None:
            raise
        if DEBUG[0] in sys.argv:
            traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _of_plugin(error: Exception) -> OvssError | None:
    """Only a tool that has loaded one has a plug-in's error."""
    if f"{__package__}.registry" not in sys.modules:
        return None
    from .plugin_errors import blamed

    return blamed(error)
