"""Texts in Hydra's grammar: what a user writes after `NAME=` must arrive as it was written. Hydra sees a number in
`ids=[2007_000033]`, and an error in `data_root=/my data/a=b`, `output=~/x` or `weights=/größe.pt`."""

from __future__ import annotations

import os
import re

from hydra.core.override_parser.types import Quote, QuotedString

from ..files import user_path
from .options import KINDS, items_of

TEXTS = {**{key: kind for key, kind in KINDS.items() if "text" in kind}, "names": "a text, or null", "templates": "a text"}
# Options of which a comma separates several names: in a grid its runs, otherwise Hydra says how a list is written.
SEVERAL = {key for key, kind in TEXTS.items() if "list" in kind} | {"clip", "protocol", "names", "templates"}
PLAIN = re.compile(r"(?!(?i:null|true|false|nan|inf)$)(?:[A-Za-z_]|\.{0,2}/)[\w./:@%+-]*", re.ASCII)  # is a text to Hydra, too


def literal(argument: str, grid: bool) -> str:
    """An override NAME=VALUE, in quotes where its value is a text that Hydra would take for something else. Values with
    interpolations (`${...}`), and in a grid those with functions (`choice(a,b)`), are left to Hydra."""
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
