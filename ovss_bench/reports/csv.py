"""Tables as CSV, for programs: with hidden columns, a column per number, and the text of notes."""

from __future__ import annotations

import csv as writing
import io

from .table import Cell, Column, Figure, Table, Text


def csv(table: Table) -> str:
    """A table as CSV. Bounds, published figures and differences get further columns where they occur."""
    head, columns = [], []
    for index, column in enumerate(table.columns):
        cells = [row.cells[index] for row in table.rows]
        head.append(table.head(column))
        columns.append([cell.text if isinstance(cell, Text) else _number(cell.value, table.digits) for cell in cells])
        parts = [_parts(cell) for cell in cells]
        for number, name in enumerate(("low", "high", "published", "difference")):
            if any(part[number] is not None for part in parts):
                head.append(f"{column.name} {name}")
                columns.append([_number(part[number], table.digits) for part in parts])
    if table.noted or table.footnotes:
        head.append("notes")
        pairs = [zip(row.cells, table.columns, strict=True) for row in table.rows]
        columns.append(["; ".join(note for cell, column in row for note in _notes(cell, column)) for row in pairs])
    buffer = io.StringIO()
    writing.writer(buffer, lineterminator="\n").writerows([head, *zip(*columns, strict=True)])
    return buffer.getvalue()


def _parts(cell: Cell) -> tuple[float | None, ...]:
    return (*(cell.interval or (None, None)), cell.published, cell.difference) if isinstance(cell, Figure) else (None,) * 4


def _notes(cell: Cell, column: Column) -> list[str]:
    return [f"{column.name}: {note}" for note in cell.notes] if isinstance(cell, Figure) else cell.notes


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
