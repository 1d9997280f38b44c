"""Tables of results: markdown, CSV and for the terminal, with the same rows and columns."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..errors import reading
from ..files import write_text

if TYPE_CHECKING:
    import pandas as pd

PARTIAL = " (partial)"
METRICS = (
    "mIoU",
    "mAcc",
    "aAcc",
    "fwIoU",
    "mIoU_seen",
    "mIoU_unseen",
    "hIoU",
    "IoU_object",
    "CoI_mIoU",
    "mIoU_quirk255",
    "mBoundaryIoU",
)


def frame(results: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row per result, metrics in percent with two decimals; a partial or overridden result is marked behind its name, and so
    is one for which something untrained stood in."""
    import pandas as pd

    rows = []
    for result in results:
        row = {
            "segmentor": marked_name(result),
            "clip": result["clip"],
            "dataset": result["dataset"],
            "protocol": result["protocol"],
        }
        rows.append(row | {name: _two(result["metrics"][name]) for name in METRICS if name in result["metrics"]})
    return pd.DataFrame(rows)


def marked_name(result: dict[str, Any]) -> str:
    """The segmentor with what distinguishes its result from that of a plain run of it on all images."""
    marks = PARTIAL if result["partial"] else ""
    marks += "".join(f" {name}={value}" for name, value in result["overridden"].items())
    stand_ins = [kind for kind, source in result.get("sources", {}).items() if source["stand_in"]]
    return result["segmentor"] + marks + (f" (stand-in {', '.join(stand_ins)})" if stand_ins else "")


def markdown(table: pd.DataFrame) -> str:
    """A GitHub table; the best mIoU of each data set, where there is such a column, is bold."""
    import pandas as pd

    from .markdown import escape_markdown as escape

    cells = table.map(lambda value: f"{value:.2f}" if isinstance(value, float) else escape(str(value))).replace("nan", "–")
    if "mIoU" in table:
        best = table.groupby("dataset")["mIoU"].transform("max")
        cells["mIoU"] = [f"**{cell}**" if top else cell for cell, top in zip(cells["mIoU"], table["mIoU"] == best, strict=True)]
    numbers = {name for name in table if pd.api.types.is_float_dtype(table[name])}
    lines = [
        "| " + " | ".join(map(escape, cells.columns)) + " |",
        "|" + "|".join(" ---: " if c in numbers else " --- " for c in cells.columns) + "|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells.itertuples(index=False)), ""])


def csv(table: pd.DataFrame) -> str:
    buffer = io.StringIO()
    table.to_csv(buffer, index=False, lineterminator="\n", float_format="%.2f")
    return buffer.getvalue()


def terminal(table: pd.DataFrame) -> Table:
    """For a screen: what all rows have in common stands above the table."""
    common = [name for name in ("clip", "dataset", "protocol") if table[name].nunique() == 1]
    title = ", ".join(f"{name} {table[name].iloc[0]}" for name in common)
    view = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table = table.drop(columns=common)
    for column in table.columns:
        view.add_column(column, justify="right" if column in METRICS else "left", overflow="fold")
    for row in table.itertuples(index=False):
        view.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row))
    return view


def write_tables(results: Sequence[dict[str, Any]], folder: Path) -> pd.DataFrame:
    """table.md and table.csv in `folder`."""
    table = frame(results)
    write_table(table, folder / "table")
    return table


def write_table(table: pd.DataFrame, base: Path) -> None:
    """<base>.md and <base>.csv."""
    for suffix, text in ((".md", markdown(table)), (".csv", csv(table))):
        write_text(base.with_name(base.name + suffix), text)


def without_labels(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each result that has no mIoU because no pixel counted."""
    return [
        f"{result['segmentor']} on {result['dataset']}: no mIoU, since none of the {result['images']['evaluated']} images has "
        "a labelled pixel that counts. Are all labels ignored (ignore_index), or is recipe.min_foreground too large?"
        for result in results
        if result["metrics"]["mIoU"] is None or math.isnan(result["metrics"]["mIoU"])
    ]


def differences(table: pd.DataFrame, expected: str | Path, tolerance: float) -> list[str]:
    """A line for each row of which the mIoU differs from that of a table.csv by more than `tolerance` points, or is missing
    there."""
    import pandas as pd

    with reading(f"table {expected}", "Expected a table.csv of tools/eval.py."):
        other = pd.read_csv(expected)
        keys = ["segmentor", "clip", "dataset", "protocol"]
        known = {tuple(row): float(value) for *row, value in other[[*keys, "mIoU"]].itertuples(index=False)}
    lines = []
    for *key, value in table[[*keys, "mIoU"]].itertuples(index=False):
        name = f"{key[0]} on {key[2]}"
        if tuple(key) not in known:
            lines.append(f"{name}: not in {expected}")
        elif not (abs(value - known[tuple(key)]) <= tolerance or (math.isnan(value) and math.isnan(known[tuple(key)]))):
            lines.append(f"{name}: {value:.2f} mIoU, expected {known[tuple(key)]:.2f} +- {tolerance}")
    return lines


def _two(value: float | None) -> float:
    return float("nan") if value is None else round(value, 2)
