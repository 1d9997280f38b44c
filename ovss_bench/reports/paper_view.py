"""A paper's table with ours beside it, for files and for a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..files import write_text
from .papers import PaperTable, side_by_side
from .tables import csv, markdown

if TYPE_CHECKING:
    import pandas as pd


def write_paper(table: PaperTable, results: Sequence[Mapping[str, Any]], folder: Path) -> pd.DataFrame:
    """<table>.csv, a line per cell with sources, and <table>.md as the paper has it, of which the cells are returned: `ours
    (published, difference)`. Below it stand the figures of those who disagree with it."""
    lines = side_by_side(table, results)
    cells = grid(lines)
    base = folder / f"table_{table.name}"
    write_text(base.with_suffix(".csv"), csv(lines))
    others = [
        f"- {line.row} on {line.column}: {line.also}" for line in lines.itertuples() if isinstance(line.also, str) and line.also
    ]
    notes = "\n".join(["Also published:", "", *others, ""]) if others else ""
    doubts = [text for text in lines["unconfirmed"].dropna().unique() if text]
    notes = "\n".join([*doubts, "", notes]) if doubts else notes
    text = f"{table.title}\n\n{markdown(cells)}\nPublished: {table.source}\n\n{notes}"
    write_text(base.with_suffix(".md"), text)
    return cells


def grid(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines of `side_by_side` as a table of texts: a row per run, a column per data set and average."""
    cells = lines.assign(text=[_text(line) for line in lines.itertuples()])
    table = cells.pivot(index="row", columns="column", values="text")
    table = table.loc[lines["row"].unique(), lines["column"].unique()]
    return table.rename_axis(None, axis=1).rename_axis("ours (published, difference)").reset_index()


def terminal_paper(table: PaperTable, cells: pd.DataFrame) -> Table:
    """For a screen."""
    view = Table(*cells.columns, box=None, pad_edge=False, title=table.title, title_justify="left")
    for row in cells.itertuples(index=False):
        view.add_row(*row)
    return view


def _text(line: Any) -> str:
    import pandas as pd

    ours = "–" if pd.isna(line.ours) else f"{line.ours:.2f}"
    if isinstance(line.stood_in, str) and line.stood_in:
        ours += f" with a stand-in for {line.stood_in}"
    if isinstance(line.unconfirmed, str) and line.unconfirmed:
        ours += " with a generator of unconfirmed settings"
    if pd.isna(line.published):
        return ours
    published = f"{line.published:.2f}" if line.average else f"{line.published:g}"  # as it is printed
    return f"{ours} ({published}" + ("" if pd.isna(line.difference) else f", {line.difference:+.2f}") + ")"
