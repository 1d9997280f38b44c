"""Tables for a screen or a log."""

from __future__ import annotations

import io

from rich.console import Console, Group
from rich.table import Table as Grid
from rich.text import Text

from .table import Figure, Markup, Table

MARKUP = Markup(str, mark=" ({})", minus="-")


def terminal(table: Table) -> Group:
    """A table for rich: the best figures are bold, and names are never parsed as markup."""
    table = table.collapsed()
    grid = Grid(box=None, pad_edge=False)
    for column, name in zip(table.shown, MARKUP.head(table), strict=True):
        grid.add_column(Text(name), justify="right" if column.right else "left", overflow="fold")
    for row in table.rows:
        cells = [cell for cell, column in zip(row.cells, table.columns, strict=True) if not column.hidden]
        best = ["bold" if isinstance(cell, Figure) and cell.rank == 1 else "" for cell in cells]
        grid.add_row(*map(Text, MARKUP.line(row, table), best))
    caption = [Text(table.caption)] if table.caption else []
    return Group(*caption, grid, *(Text(note.strip()) for note in MARKUP.notes(table)))


def lines(table: Table) -> list[str]:
    """The lines of a table as plain text."""
    console = Console(file=io.StringIO(), width=10_000, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(terminal(table))
    return [line.rstrip() for line in captured.get().split("\n")][:-1]
