"""Validates configuration values against annotations with pydantic. The error for an invalid value is one line that says what
was expected: in the words of `Expected` if the annotation has one, else in those of its type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..errors import OvssError, unknown
from ..types import MAX_SIDE


@dataclass(frozen=True)
class Expected:
    """Describes the allowed values."""

    words: str


Name = Annotated[str, Expected("a name")]
Count = Annotated[int, Ge(1), Le(MAX_SIDE), Expected(f"a positive whole number up to {MAX_SIDE}")]
Pixels = Annotated[int, Ge(1), Le(MAX_SIDE), Expected(f"a positive number of pixels up to {MAX_SIDE}")]
Whole = Annotated[int, Ge(0), Le(MAX_SIDE), Expected(f"a whole number from 0 to {MAX_SIDE}")]
Images = Annotated[int, Ge(1), Le(2**31 - 1), Expected("a positive number of images")]
Number = Annotated[float, Ge(0), Lt(1e30), Expected("a number, 0 or more")]  # keeps float32 from overflowing
Fraction = Annotated[float, Gt(0), Lt(1), Expected("a positive number below 1")]
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "NAME=VALUE"}


def validate(name: str, value: Any, hint: Any, origin: str | None = None, kind: str = "") -> Any:
    """Returns the value; a list becomes a tuple if the annotation is one. The OvssError for an invalid value states its `kind`,
    name, value, `origin` and what was expected, or similar names if it should be one of the texts of a `Literal`."""
    converted = tuple(value) if isinstance(value, list) and is_list(hint) else value
    try:
        return _adapter(hint).validate_python(converted)
    except ValidationError:
        source = f" (from {origin})" if origin else ""
        if (known := choices(hint)) and isinstance(value, str | None):
            raise unknown(f"value of {name}{source}", value, map(str, known)) from None
        raise OvssError(f"{kind}{name}={value!r}{source}: expected {in_words(hint)}.") from None


def validate_all(
    values: Mapping[str, Any], hints: Mapping[str, Any], kind: str, origin: Callable[[str], str | None] = lambda name: None
) -> dict[str, Any]:
    """Validates each value against the annotation of its name. Raises OvssError for invalid values and unknown names."""
    for name in values:
        if name not in hints:
            source = f" (from {origin(name)})" if origin(name) else ""
            raise unknown(f"{kind}{source}", name, hints)
    return {name: validate(name, value, hints[name], origin(name)) for name, value in values.items()}


def in_words(hint: Any) -> str:
    """Describes the values that an annotation allows."""
    if get_origin(hint) is Annotated:
        stated = [part.words for part in hint.__metadata__ if isinstance(part, Expected)]
        return stated[-1] if stated else in_words(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        parts = [in_words(part) for part in get_args(hint) if part is not NoneType]
        return " or ".join(parts) + (", or null" if NoneType in get_args(hint) else "")
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) in (tuple, list):
        return f"a list, each {in_words(get_args(hint)[0])}"
    return WORDS.get(get_origin(hint) or hint, getattr(hint, "__name__", str(hint)))


@cache
def _adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True))


def is_list(hint: Any) -> bool:
    """Whether an annotation is a tuple, or a union with one: a list in YAML and on the command line."""
    return get_origin(hint) is tuple or any(map(is_list, get_args(hint)))


def bare(hint: Any) -> Any:
    """An annotation without metadata and without null."""
    if get_origin(hint) is Annotated:
        return bare(get_args(hint)[0])
    parts = [part for part in get_args(hint) if part is not NoneType] if get_origin(hint) in (Union, UnionType) else []
    return bare(parts[0]) if len(parts) == 1 else hint


def choices(hint: Any) -> tuple[Any, ...]:
    """The choices of an annotation that allows nothing else, except perhaps null; otherwise empty."""
    return get_args(bare(hint)) if get_origin(bare(hint)) is Literal else ()
