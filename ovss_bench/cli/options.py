"""Declarations of options, and the parser of NAME=VALUE for all commands except eval."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_origin

from annotated_types import MinLen
from omegaconf import OmegaConf
from yaml import YAMLError

from ..config.validation import Expected, bare, choices, validate
from ..errors import OvssError, unknown
from ..files import user_path

Text = Annotated[str, MinLen(1), Expected("a text")]
Texts = Annotated[list[Text], Expected("one text, or a list")]
DEBUG = ("debug=true", "debug=false")  # accepted by every command, see run.py


@dataclass(frozen=True)
class Option:
    """An option NAME=VALUE; `hint` is the annotation of its value."""

    name: str
    hint: Any
    default: Any
    comment: str = ""


@dataclass(frozen=True)
class Command:
    """A command: its help, and `run`, which takes the words after the command's name and returns the exit status."""

    summary: str | None  # the docstring of its module
    usage: tuple[str, ...]  # a line each
    groups: Mapping[str, Sequence[Option]]  # title -> options
    examples: tuple[str, ...]  # without the name of the program
    run: Callable[[list[str]], int | None]
    notes: tuple[str, ...] = ()

    def options(self) -> dict[str, Option]:
        return {option.name: option for group in self.groups.values() for option in group}

    def parse(self, words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """The positional arguments, and the value of each option."""
        positional = [word for word in words if is_positional(word)]
        return positional, parse_options([word for word in words if word not in positional], self.options().values())


def parse_options(words: Sequence[str], options: Iterable[Option]) -> dict[str, Any]:
    """The value of each option, given or default. Also loads `plugins`. Raises OvssError for unknown names and wrong values."""
    known = {option.name: option for option in options}
    words = [word for word in words if word not in DEBUG]
    values = {name: option.default for name, option in known.items()}
    given: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        name = key if key in known else key.partition(".")[0]
        if not equals:
            raise OvssError(f"'{word}': expected NAME=VALUE, with one of the names {', '.join(known)}.")
        kind = kind_of(known[name].hint) if name in known else None
        if key not in known and kind is not dict:
            raise unknown("option", key, known)
        if kind is list:
            given[name] = split_list(text)
        elif kind is str:
            given[name] = None if values[name] is None and text in ("", "null") else unquoted(text)
        else:
            same = [each for each in words if re.match(rf"{name}[.=]", each)] if kind is dict else [word]
            given[name] = _typed(same)[name]
    values |= {name: checked_value(name, value, known[name].hint) for name, value in given.items()}
    for plugin in values.get("plugins") or ():
        from ..config.registry import load_plugin

        load_plugin(plugin)
    return values


def checked_value(name: str, value: Any, hint: Any) -> Any:
    """The value converted by its annotation: numbers to text, one text to a list, `~` to the home folder. Raises OvssError if
    it is wrong."""

    def text(item: Any) -> Any:
        item = str(item) if type(item) in (int, float) else item
        return str(user_path(item)) if isinstance(item, str) and item.startswith("~") and name != "ids" else item

    kind, checked = kind_of(hint), value
    if kind in (str, list) and value is not None:
        items = [text(item) for item in (value if kind is list and isinstance(value, list) else [value])]
        # File names may hold undecodable bytes, which pydantic refuses in a text.
        safe = [item.encode("utf-8", "backslashreplace").decode() if isinstance(item, str) else item for item in items]
        value, checked = (items, safe) if kind is list else (items[0], safe[0])
    validate(name, checked, hint)
    return value


def kind_of(hint: Any) -> type:
    """The type of an annotation's values other than None: str for `Text | None`."""
    return str if choices(hint) else get_origin(bare(hint)) or bare(hint)


def with_flags(words: Sequence[str], options: Mapping[str, Option]) -> list[str]:
    """The words with `--name VALUE`, and `--name` for a switch, rewritten as NAME=VALUE."""
    result, rest = [], iter(words)
    for word in rest:
        flag, equals, text = word.removeprefix("--").partition("=")
        name = flag.replace("-", "_")
        if not word.startswith("--") or not flag:
            result.append(word)
        elif name not in options:
            raise unknown("option", name, options)
        elif equals or kind_of(options[name].hint) is bool:
            result.append(f"{name}={text or 'true'}")
        elif (value := next(rest, None)) is not None:
            result.append(f"{name}={value}")
        else:
            raise OvssError(f"{word}: expected {name}=VALUE.")
    return result


def _typed(words: Sequence[str]) -> Any:
    """Values parsed as YAML."""
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))
    except YAMLError as error:
        raise OvssError(f"{' '.join(words)}: expected NAME=VALUE; put values with brackets or quotes in quotes.") from error


def split_list(text: str) -> list[str]:
    """The items of `[a,b]`, or the only one, as text: the id 2007_000033 is not a number. Items with commas are quoted."""
    if not (text.startswith("[") and text.endswith("]")):
        return [] if text in ("", "null") else [unquoted(text)]
    return [unquoted(item) for item in items_of(text[1:-1])]


def items_of(text: str) -> list[str]:
    """The items between commas, stripped; commas in quotes are part of an item."""
    items = re.findall(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,]*?)\s*(?:,|$)""", text)
    return items[:-1] if items and not items[-1] and not text.rstrip().endswith(",") else items


def unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def is_positional(word: str) -> bool:
    """Whether a word is not NAME=VALUE, but a name, or an existing path, which may contain `=`."""
    return "=" not in word or os.path.exists(user_path(word))
