"""The command lines of the small tools: words NAME=VALUE with defaults, and errors of one line."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..errors import KEPT, OvssError, print_error, unknown
from ..files import user_path
from ..process import Ended, terminate_cleanly


def parse_options(words: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options, each of the kind of its default (text if that is None); whole numbers are not below 1, or the default, other
    numbers not below 0; `limit`, `workers`, `threads` and `batch` are whole numbers in any case. Loads `plugins`. Raises
    OvssError for unknown names and for values of another kind."""
    words = [word for word in words if word not in DEBUG]
    given: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise OvssError(f"'{word}': expected NAME=VALUE, of {', '.join(defaults)}.")
        if (name := key.partition(".")[0]) in defaults and isinstance(defaults[name], dict):
            given[name] = _typed([each for each in words if re.match(rf"{re.escape(name)}[.=]", each)])[name]
        elif key not in defaults:
            raise unknown("option", key, defaults)
        elif key in WHOLE or isinstance(defaults[key], bool | int | float):
            given[key] = _typed([word])[key]
        elif isinstance(defaults[key], list):
            given[key] = [as_path(item) for item in split_list(text)]
        else:
            given[key] = None if defaults[key] is None and text in ("", "null") else as_path(unquoted(text))
    for key, value in given.items():
        default = defaults[key]
        if key in WHOLE or type(default) is int:
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
        elif value == "":
            raise OvssError(f"{key}=: expected a text.")
    options = {**defaults, **given}
    if options.get("plugins"):
        from ..config.registry import load_plugin

        for plugin in options["plugins"]:
            load_plugin(plugin)
    return options


DEBUG = ("debug=true", "debug=false")


def _typed(words: Sequence[str]) -> dict[str, Any]:
    """Values of the kind that YAML sees in them."""
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))
    except YAMLError as error:
        raise OvssError(f"{' '.join(words)}: expected NAME=VALUE; put values with brackets or quotes in quotes.") from error


def split_list(text: str) -> list[str]:
    """The texts of `[a,b]`, or of one text, as they are written: an id 2007_000033 is no number. One that holds a comma must be
    in quotes."""
    if not (text.startswith("[") and text.endswith("]")):
        return [] if text in ("", "null") else [unquoted(text)]
    return [unquoted(item) for item in items_of(text[1:-1])]


def items_of(text: str) -> list[str]:
    """What commas separate, without the white space around it; commas in quotes are none."""
    items = re.findall(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,]*?)\s*(?:,|$)""", text)
    return items[:-1] if items and not items[-1] and not text.rstrip().endswith(",") else items


def unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def is_place(word: str) -> bool:
    """Whether a word of a command line is a file or folder, of which the name may hold `=`, and not NAME=VALUE."""
    return "=" not in word or os.path.exists(user_path(word))


def as_path(text: str) -> str:
    """The normal form of an option that may be a path; no name begins with `~`."""
    return str(user_path(text)) if text.startswith("~") else text


WHOLE = ("limit", "workers", "threads", "batch")  # whole numbers, whatever their defaults are
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
            items = [as_path(item) if isinstance(item, str) and key != "ids" else item for item in items]
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


def print_anything() -> None:
    """Escapes what a terminal of another encoding cannot show, such as names of files, instead of ending with an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def run_tool(work: Callable[[], int | None]) -> None:
    """Runs a tool and ends the process: with the status that `work` returns, or one line and 2 for an error, 128 + number for a
    signal; with `debug=true` on the command line the traceback, too."""
    print_anything()
    status = 2
    try:
        with terminate_cleanly():
            done = work() or 0
        sys.stdout.flush()
        sys.exit(done)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(2)
    except KeyboardInterrupt:
        message: object = f"interrupted; {KEPT}"
    except Ended as end:
        status, message = end.code, f"ended by {end.name}; {KEPT}"
    except Exception as error:
        message = error if isinstance(error, OvssError | OmegaConfBaseException) else _of_plugin(error)
        if message is None:
            raise
        if DEBUG[0] in sys.argv:
            traceback.print_exc()
    print_error(message)
    sys.exit(status)


def _of_plugin(error: Exception) -> OvssError | None:
    """Only a tool that has loaded one has a plug-in's error."""
    if "ovss_bench.config.registry" not in sys.modules:
        return None
    from ..config.plugin_errors import blamed

    return blamed(error)
