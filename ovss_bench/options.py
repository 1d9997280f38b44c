"""The command lines of the small tools: words NAME=VALUE with defaults, and errors of one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import OvssError, unknown
from .registry import load_plugin


def parse_options(words: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options, `limit` and `workers` as positive whole numbers; loads `plugins`. Raises OvssError for unknown names."""
    for word in words:
        if "=" not in word:
            raise OvssError(f"'{word}': expected NAME=VALUE, of {', '.join(defaults)}.")
    given = OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))
    for key, value in given.items():
        if key not in defaults:
            raise unknown("option", key, defaults)
        if key in ("limit", "workers") and value != defaults[key] and (type(value) is not int or value < 1):
            raise OvssError(f"{key}={value}: expected a whole number of at least 1.")
        if isinstance(defaults[key], dict) and not isinstance(value, dict):
            raise OvssError(f"{key}={value}: expected {key}.NAME=VALUE.")
        if isinstance(defaults[key], bool) and not isinstance(value, bool):
            raise OvssError(f"{key}={value}: expected true or false.")
    options = {**defaults, **given}
    for plugin in options.get("plugins", ()):
        load_plugin(plugin)
    return options


def run_tool(work: Callable[[], int | None]) -> None:
    """Runs a tool and ends the process: with the status that `work` returns, or 2 and one line for an error."""
    try:
        sys.exit(work() or 0)
    except (OvssError, OmegaConfBaseException) as error:
        message: object = error
    except KeyboardInterrupt:
        message = "interrupted; what was finished is kept, the same command goes on"
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
