"""Tables as CSV, for programs: hidden columns too, a column per number, and notes in words."""

from __future__ import annotations

import csv as writing
import io

from .table import Cell, Column, Figure, Table, Text


def csv(table: Table) -> str:
    """Parts of figures (bounds, published, difference) have columns where there are any."""
    columns: dict[str, list[str]] = {}
    for index, column in enumerate(table.columns):
        cells = [row.cells[index] for row in table.rows]
        columns[table.head(column)] = [_value(cell, table.digits) for cell in cells]
        parts = [_parts(cell) for cell in cells]
        for number, name in enumerate(("low", "high", "published", "difference")):
            if any(part[number] is not None for part in parts):
                columns[f"{column.name} {name}"] = [_number(part[number], table.digits) for part in parts]
    if table.noted or table.footnotes:
        columns["notes"] = [
            "; ".join(note for cell, column in zip(row.cells, table.columns, strict=True) for note in _notes(cell, column))
            for row in table.rows
        ]
    buffer = io.StringIO()
    writer = writing.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return buffer.getvalue()


def _value(cell: Cell, digits: int) -> str:
    return cell.text if isinstance(cell, Text) else _number(cell.value, digits)


def _parts(cell: Cell) -> tuple[float | None, ...]:
    return (*(cell.interval or (None, None)), cell.published, cell.difference) if isinstance(cell, Figure) else (None,) * 4


def _notes(cell: Cell, column: Column) -> list[str]:
    return [f"{column.name}: {note}" for note in cell.notes] if isinstance(cell, Figure) else cell.notes


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
