"""The model of every printed or written table; its renderers are terminal.py, markdown.py, latex.py, csv.py and html.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class Column:
    """`metric`: what its figures measure; shown in the heading if the table has several metrics. `average`: its published
    figures are means that nobody printed, so they are rounded like ours. `signed`: its figures are differences."""

    name: str
    metric: str = ""
    right: bool = False  # alignment
    average: bool = False
    signed: bool = False
    common: bool = False  # a label that moves to the caption where all rows agree
    hidden: bool = False  # shown in CSV only


@dataclass
class Text:
    """`notes` become footnotes."""

    text: str
    notes: list[str] = field(default_factory=list)


@dataclass
class Figure:
    """A figure, usually in percent; its `value` may be missing. `interval`: its 95 % interval; `difference`: points above the
    `published` figure; `rank`: 1 for the best of its group, 2 for the second; `partial`: measured on some of the images;
    `kind`: only figures of the same kind (supervision, see `class_of`) are ranked together."""

    value: float | None = None
    interval: tuple[float, float] | None = None
    published: float | None = None
    difference: float | None = None
    partial: bool = False
    rank: int | None = None
    kind: str = ""
    notes: list[str] = field(default_factory=list)

    def rounded(self, digits: int) -> float:
        return float("nan") if self.value is None else round(self.value, digits)


Cell = Text | Figure


@dataclass
class Row:
    """Cells in the order of the columns. Rows of the same `group` are comparable; rules separate groups."""

    cells: list[Cell]
    group: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """`shared`: labels common to all rows; `remarks`: on how to read the table; `noted`: CSV always has a column of notes."""

    columns: list[Column]
    rows: list[Row]
    title: str = ""
    shared: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    digits: int = 2
    noted: bool = False

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]], common: Sequence[str] = (), right: Sequence[str] = ()) -> Table:
        """A row per record: floats become figures, None and NaN empty figures, other values text. Figures are right-aligned."""
        names = list(dict.fromkeys(name for record in records for name in record))
        numeric = {name for name in names if all(isinstance(record.get(name, 0.0), float) for record in records)}
        columns = [Column(name, right=name in {*numeric, *right}, common=name in common) for name in names]
        return cls(columns, [Row([_cell(record.get(name)) for name in names]) for record in records])

    def cells(self, name: str) -> list[Cell]:
        indices = [index for index, column in enumerate(self.columns) if column.name == name]
        return [row.cells[index] for row in self.rows for index in indices]

    def collapsed(self) -> Table:
        """The table without the common columns in which all rows agree; the caption states their values instead."""
        shared, columns = list(self.shared), list(self.columns)
        for index, column in enumerate(columns):
            texts = {cell.text for row in self.rows if isinstance(cell := row.cells[index], Text)}
            if column.common and not column.hidden and len(texts) == 1:
                shared.append(f"{column.name} {texts.pop()}")
                columns[index] = replace(column, hidden=True)
        return replace(self, columns=columns, shared=tuple(shared))

    @property
    def shown(self) -> list[Column]:
        return [column for column in self.columns if not column.hidden]

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(column.metric for column in self.columns if column.metric))

    @property
    def caption(self) -> str:
        parts = [part for part in (self.title, *self.shared) if part]
        return "; ".join(parts) + "." if parts else ""

    @cached_property
    def footnotes(self) -> dict[str, str]:
        """The notes of all cells in reading order, each with its letters."""
        notes = dict.fromkeys(note for row in self.rows for cell in row.cells for note in cell.notes)
        return {note: _letters(number) for number, note in enumerate(notes)}

    def head(self, column: Column) -> str:
        return f"{column.name} ({column.metric})" if column.metric and len(self.metrics) > 1 else column.name

    def groups(self) -> list[list[Row]]:
        return [list(rows) for _, rows in groupby(self.rows, lambda row: row.group)]


@dataclass(frozen=True)
class Markup:
    """How a format writes literal text, the best and second-best figures, additions to figures, footnote marks and minus."""

    escape: Callable[[str], str]
    best: str = "{}"
    second: str = "{}"
    aside: str = "{}"
    mark: str = "{}"
    minus: str = "−"

    def head(self, table: Table) -> list[str]:
        return [self.escape(table.head(column)) for column in table.shown]

    def line(self, row: Row, table: Table) -> list[str]:
        pairs = zip(row.cells, table.columns, strict=True)
        return [self.cell(cell, column, table) for cell, column in pairs if not column.hidden]

    def notes(self, table: Table) -> list[str]:
        """Remarks and footnotes, a line each."""
        footnotes = (f"{self.mark.format(mark)} {self.escape(note)}" for note, mark in table.footnotes.items())
        return [*map(self.escape, table.remarks), *footnotes]

    def cell(self, cell: Cell, column: Column, table: Table) -> str:
        if isinstance(cell, Figure) and cell.value is None and cell.published is None:
            return self.escape("–")
        text = self.escape(cell.text) if isinstance(cell, Text) else self._figure(cell, column, table.digits)
        letters = {table.footnotes[note] for note in cell.notes}
        marks = ",".join(sorted(letters, key=lambda letter: (len(letter), letter)))
        return text + self.mark.format(marks) if marks else text

    def _figure(self, cell: Figure, column: Column, digits: int) -> str:
        sign = "+" if column.signed else ""
        text = self.escape("–") if cell.value is None else self._number(cell.value, digits, sign)
        if cell.rank:
            text = (self.best, self.second)[cell.rank - 1].format(text)
        beside = []
        if cell.interval:
            beside.append("[" + ", ".join(self._number(bound, digits, sign) for bound in cell.interval) + "]")
        if cell.published is not None:
            published = f"{cell.published:.{digits}f}" if column.average else f"{cell.published:g}"  # as printed
            difference = "" if cell.difference is None else ", " + self._number(cell.difference, digits, "+")
            beside.append(f"({published}{difference})")
        return f"{text} {self.aside.format(' '.join(beside))}" if beside else text

    def _number(self, value: float, digits: int, sign: str = "") -> str:
        return f"{value:{sign}.{digits}f}".replace("-", self.minus)


def _cell(value: Any) -> Cell:
    if value is None or value != value:
        return Figure()
    return Figure(value) if isinstance(value, float) else Text(str(value))


def _letters(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    last = chr(ord("a") + number % 26)
    return last if number < 26 else _letters(number // 26 - 1) + last
