"""Reads the results in a folder, also as a data frame."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OvssError
from ..files import user_path
from .schema import schema
from .store import read_result

if TYPE_CHECKING:
    import pandas as pd

LARGE = ("per_class", "recipe")  # large fields that no table shows
NAME = re.compile(r".+-[0-9a-f]{12}\.json")


def result_paths(folder: str | Path) -> list[Path]:
    """The result files below a folder, or the file itself, sorted. Raises OvssError if there is none."""
    folder = user_path(folder)
    paths = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*.json") if NAME.fullmatch(path.name))
    if not paths:
        raise OvssError(f"there is no result in {folder}. tools/eval.py writes them to results/runs, or output=DIR.")
    return paths


def read_results(*folders: str | Path, leave_out: Collection[str] = ()) -> tuple[dict[Path, dict[str, Any]], list[OvssError]]:
    """The results below folders by file, without the fields in `leave_out`, and the errors for unreadable files."""
    results, damaged = {}, []
    for path in dict.fromkeys(path for folder in folders for path in result_paths(folder)):
        try:
            results[path] = {key: value for key, value in read_result(path).items() if key not in leave_out}
        except OvssError as error:
            damaged.append(error)
    return results, damaged


def load_results(folder: str | Path = "results", *, partial: bool = False) -> pd.DataFrame:
    """A row per result below a folder: method, CLIP, data set, every metric (percent), published figure, provenance, `path`.
    Partial results are included only on request; unreadable files are left out with a warning."""
    results, damaged = read_results(folder, leave_out=LARGE)
    for error in damaged:
        warnings.warn(str(error), stacklevel=2)
    return frame_of({path: result for path, result in results.items() if partial or not result["partial"]})


def frame_of(results: Mapping[Path, Mapping[str, Any]]) -> pd.DataFrame:
    """A row per result. The columns are the fields that the schema marks with `column`; metrics in order of appearance."""
    import pandas as pd

    rows = []
    for path, result in results.items():
        first = next(iter(result["published"]["figures"]), {})
        figure = {"published": first.get("miou"), "difference": first.get("difference")}
        rows.append(dict(_columns(result, schema())) | figure | {"path": str(path)})
    return pd.DataFrame(rows)


def _columns(value: Mapping[str, Any], part: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, inner in part["properties"].items():
        if key not in value:
            continue
        column = inner.get("column")
        if column == "*":
            yield from value[key].items()
        elif column and isinstance(value[key], dict):
            yield column, " ".join(f"{name}={item}" for name, item in value[key].items())
        elif column:
            yield column, value[key]
        elif "properties" in inner and value[key] is not None:
            yield from _columns(value[key], inner)
