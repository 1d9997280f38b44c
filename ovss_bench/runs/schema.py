"""The schema of result files, one JSON schema per version (schemas/result-<version>.json). Files are validated when written and
read. The columns of data frames and the documentation are derived from the schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import fastjsonschema

from ..errors import OvssError
from .fairness import fairness

VERSION = 3
FOLDER = Path(__file__).parent / "schemas"


def _published(result: dict[str, Any]) -> dict[str, Any]:
    """Version 2 adds published figures, and always has the sources."""
    reason = "the result was written before published figures were recorded"
    return {"sources": {}, "published": {"figures": [], "why_not": reason}} | result


def _tagged(result: dict[str, Any]) -> dict[str, Any]:
    """Version 3 adds fairness tags: those of the method and the networks that the result names."""
    return result | {"fairness": fairness(result, files=False)}


# Conversions from each version to the next.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _published, 2: _tagged}


@cache
def schema(version: int = VERSION) -> dict[str, Any]:
    return json.loads((FOLDER / f"result-{version}.json").read_text("utf-8"))


@cache
def _validator(version: int) -> Callable[[Any], Any]:
    return fastjsonschema.compile(schema(version))


def validate_result(result: Any, where: str | Path) -> dict[str, Any]:
    """The result, converted to the current version. Raises OvssError if it does not match the schema of its version."""
    version = result.get("schema_version") if isinstance(result, dict) else None
    if type(version) is not int or not 1 <= version <= VERSION:
        newer = isinstance(version, int) and version > VERSION
        what = "was written by a newer ovss-bench: update this one" if newer else "is not a result of ovss-bench"
        raise OvssError(f"{where} {what} (schema_version {version}; known: 1 to {VERSION}).")
    try:
        _validator(version)(result)
    except fastjsonschema.JsonSchemaValueException as error:
        raise OvssError(f"{where} does not match the schema of results: {error.message}. Delete it and run again.") from error
    for step in range(version, VERSION):
        result = UPGRADES[step](result) | {"schema_version": step + 1}
    return result
