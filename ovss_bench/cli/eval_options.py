"""The options of `ovss eval`: names, defaults and comments from configs/tools/eval.yaml, annotations from here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from ..auxiliary import SOURCES
from ..config.validation import Count, Expected, Images, Number
from ..errors import OvssError
from ..files import CONFIGS, load_config
from ..segmentors import OUTSIDE
from .options import Option, Text, Texts, checked_value

HINTS: dict[str, Any] = {
    **dict.fromkeys(("segmentor", "dataset", "plugins"), Texts),
    **dict.fromkeys(("clip", "protocol", "output"), Text),
    **dict.fromkeys(("ids", "text", "refine"), Annotated[list[Text] | None, Expected("one text, or a list, or null")]),
    **dict.fromkeys(("weights", "data_root", "table", "shard", "expect", "device"), Text | None),
    **dict.fromkeys(("feature_cache", "trunk_cache", *SOURCES, *OUTSIDE, "save_label_maps"), Text | None),
    "limit": Images | None,
    **dict.fromkeys(("threads", "batch"), Count | None),
    "workers": Count,
    **dict.fromkeys(("tolerance", "trunk_cache_gb"), Number),
    **dict.fromkeys(("rerun", "dry_run", "debug", "compile", "profile", "boundary", "maps", "skip_bad_images"), bool),
    "recipe": Annotated[dict, Expected("recipe.NAME=VALUE")],
}


def _groups() -> dict[str, list[Option]]:
    """The options of the file, grouped by its titles; those of `runtime` are named runtime.NAME."""
    defaults, result, prefix = load_config("tools", "eval"), {}, ""
    group: list[Option] = []
    for line in (CONFIGS / "tools" / "eval.yaml").read_text("utf-8").partition("\ndefaults:")[0].splitlines():
        if line.startswith("## "):
            result[line[3:]] = group = []
        elif line == "runtime:":
            prefix, defaults = "runtime.", defaults["runtime"]
        elif match := re.match(r" *(\w+): .*?# (.*)", line):
            name, comment = match.groups()
            group.append(Option(prefix + name, HINTS[name], defaults[name], comment))
    return result


GROUPS = _groups()
EVAL = {option.name: option for group in GROUPS.values() for option in group}  # other commands use some of them


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The composed options. Raises OvssError for invalid values."""
    if not isinstance(options.get("runtime", {}), dict):
        raise OvssError(f"runtime={options['runtime']}: expected runtime.NAME=VALUE.")
    values = {name: checked_value(name, value, HINTS[name]) for name, value in options.items() if name != "runtime"}
    return values | ({"runtime": checked_options(options["runtime"])} if "runtime" in options else {})
