"""The command line that all commands share: declared options, given as words NAME=VALUE, and errors of one line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import MinLen
from omegaconf import OmegaConf
from yaml import YAMLError

from ..config.validation import Expected, validate
from ..errors import OvssError, unknown
from ..files import user_path

Text = Annotated[str, MinLen(1), Expected("a text")]
Texts = Annotated[list[Text], Expected("one text, or a list")]
DEBUG = ("debug=true", "debug=false")  # every command takes them, see run.py


@dataclass(frozen=True)
class Option:
    """An option NAME=VALUE: the annotation of its value, its default, and its comment in the help."""

    name: str
    hint: Any
    default: Any
    comment: str = ""


@dataclass(frozen=True)
class Command:
    """A command: what its help says of it, and `run`, which takes the words after its name and returns the exit status."""

    summary: str | None  # the docstring of its file
    usage: tuple[str, ...]  # the words before the options, a line each
    groups: Mapping[str, Sequence[Option]]  # title -> options
    examples: tuple[str, ...]  # without the name of the program
    run: Callable[[list[str]], int | None]
    notes: tuple[str, ...] = ()

    def options(self) -> dict[str, Option]:
        return {option.name: option for group in self.groups.values() for option in group}

    def parse(self, words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """The words that are no options, and the options."""
        places = [word for word in words if is_place(word)]
        return places, parse_options([word for word in words if word not in places], self.options().values())


def parse_options(words: Sequence[str], options: Iterable[Option]) -> dict[str, Any]:
    """The value of each option by name; loads `plugins`. Raises OvssError for unknown names and for values that do not fit."""
    known = {option.name: option for option in options}
    words = [word for word in words if word not in DEBUG]
    given: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        name = key.partition(".")[0]
        if not equals:
            raise OvssError(f"'{word}': expected NAME=VALUE, of {', '.join(known)}.")
        if name in known and kind_of(known[name].hint) is dict:
            given[name] = _typed([each for each in words if re.match(rf"{re.escape(name)}[.=]", each)])[name]
        elif key not in known:
            raise unknown("option", key, known)
        elif kind_of(known[key].hint) is list:
            given[key] = split_list(text)
        elif kind_of(known[key].hint) is str:
            given[key] = None if known[key].default is None and text in ("", "null") else unquoted(text)
        else:
            given[key] = _typed([word])[key]
    values = {name: option.default for name, option in known.items()}
    values |= {name: checked_value(name, value, known[name].hint) for name, value in given.items()}
    if values.get("plugins"):
        from ..config.registry import load_plugin

        for plugin in values["plugins"]:
            load_plugin(plugin)
    return values


def checked_value(name: str, value: Any, hint: Any) -> Any:
    """The value as its option takes it: numbers as text where names are expected, one text as a list, `~` as the home folder.
    Raises OvssError if it does not fit the annotation."""
    kind = kind_of(hint)
    if kind in (str, list) and value is not None:
        items = value if kind is list and isinstance(value, list) else [value]
        items = [str(item) if type(item) in (int, float) else item for item in items]
        items = [_home(item) if isinstance(item, str) and name != "ids" else item for item in items]
        value = items if kind is list else items[0]
        # File names may hold undecodable bytes, which pydantic refuses in a text.
        items = [item.encode("utf-8", "backslashreplace").decode() if isinstance(item, str) else item for item in items]
        validate(name, items if kind is list else items[0], hint)
    else:
        validate(name, value, hint)
    return value


def kind_of(hint: Any) -> type:
    """The type of an annotation's values, apart from null: of `Text | None` str."""
    if get_origin(hint) is Annotated:
        return kind_of(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return next(kind_of(part) for part in get_args(hint) if part is not NoneType)
    return str if get_origin(hint) is Literal else get_origin(hint) or hint


def with_flags(words: Sequence[str], options: Mapping[str, Option]) -> list[str]:
    """The words with `--name VALUE`, and `--name` for a switch, as NAME=VALUE."""
    result, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, text = word.removeprefix("--").partition("=")
        name = flag.replace("-", "_")
        if not word.startswith("--") or not flag:
            result.append(word)
        elif name not in options:
            raise unknown("option", name, options)
        elif equals or kind_of(options[name].hint) is bool:
            result.append(f"{name}={text or 'true'}")
        elif rest:
            result.append(f"{name}={rest.pop(0)}")
        else:
            raise OvssError(f"{word}: expected {name}=VALUE.")
    return result


def _typed(words: Sequence[str]) -> Any:
    """Values of the kind that YAML sees in them."""
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))
    except YAMLError as error:
        raise OvssError(f"{' '.join(words)}: expected NAME=VALUE; put values with brackets or quotes in quotes.") from error


def split_list(text: str) -> list[str]:
    """The texts of `[a,b]`, or of one text, as they are written: the id 2007_000033 is not a number. An item with a comma must
    be in quotes."""
    if not (text.startswith("[") and text.endswith("]")):
        return [] if text in ("", "null") else [unquoted(text)]
    return [unquoted(item) for item in items_of(text[1:-1])]


def items_of(text: str) -> list[str]:
    """The items between commas, without the white space around them; commas in quotes do not separate."""
    items = re.findall(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,]*?)\s*(?:,|$)""", text)
    return items[:-1] if items and not items[-1] and not text.rstrip().endswith(",") else items


def unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def is_place(word: str) -> bool:
    """Whether a word is a name, file or folder, even one with `=` in its name, and not NAME=VALUE."""
    return "=" not in word or os.path.exists(user_path(word))


def _home(text: str) -> str:
    """A text that may be a path; no name begins with `~`."""
    return str(user_path(text)) if text.startswith("~") else text
