"""The averages of a suite, a row per segmentor, CLIP and protocol; one that lacks a data set has no value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..datasets.suites import Suite, mean_of
from .tables import PARTIAL, marked_name, write_table

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("segmentor", "clip", "protocol")


def write_averages(suite: Suite, results: Sequence[dict[str, Any]], folder: Path) -> pd.DataFrame:
    """<suite>.md and <suite>.csv: a column per average, NaN where data sets are missing, and what is missing."""
    import pandas as pd

    rows: dict[tuple, dict[tuple[str, str], float]] = {}
    partial = set()
    for result in results:
        key = marked_name({**result, "partial": False}), result["clip"], result["protocol"]
        rows.setdefault(key, {}).update({(result["dataset"], name): value for name, value in result["metrics"].items()})
        if result["partial"]:
            partial.add(key)
    content = []
    for key, figures in rows.items():
        means = mean_of(suite.averages, figures)
        missing = dict.fromkeys(name for _, names in means.values() for name in names)
        values = {name: float("nan") if value is None else round(value, 2) for name, (value, _) in means.items()}
        name, *others = key
        labels = dict(zip(KEYS, [name + PARTIAL * (key in partial), *others], strict=True))
        content.append(labels | values | {"missing": ", ".join(missing)})
    table = pd.DataFrame(content)
    write_table(table, folder / suite.name)
    return table


def terminal_averages(suite: Suite, table: pd.DataFrame) -> Table:
    """For a screen."""
    view = Table(box=None, pad_edge=False, title=f"{suite.full_name}: averages", title_justify="left")
    for column in table.columns:
        view.add_column(column, justify="left" if column in (*KEYS, "missing") else "right", overflow="fold")
    for row in table.itertuples(index=False):
        view.add_row(*(str(value) if isinstance(value, str) else "–" if value != value else f"{value:.2f}" for value in row))
    return view
