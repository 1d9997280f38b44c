"""A report in markdown and as CSV."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import visible
from .table import Cell, Report, Row


@dataclass(frozen=True)
class Markup:
    """How a language writes text as it is, the best and the second figure, what stands beside a figure, and footnote marks."""

    escape: Callable[[str], str]
    best: str
    second: str
    aside: str
    mark: str

    def cell(self, cell: Cell, report: Report, average: bool) -> str:
        if cell.value is None and cell.published is None:
            return self.escape("–")
        text = "–" if cell.value is None else f"{cell.value:.{report.digits}f}"
        text = self.escape(text) if cell.rank is None else (self.best, self.second)[cell.rank - 1].format(text)
        beside = []
        if cell.interval:
            beside.append("[" + ", ".join(f"{bound:.{report.digits}f}" for bound in cell.interval) + "]")
        if cell.published is not None:
            published = f"{cell.published:.{report.digits}f}" if average else f"{cell.published:g}"  # as it is printed
            difference = "" if cell.difference is None else f", {cell.difference:+.{report.digits}f}".replace("-", "−")
            beside.append(self.escape(f"({published}{difference})"))
        if beside:
            text += " " + self.aside.format(" ".join(beside))
        return text + self.marks(cell.notes, report)

    def marks(self, notes: Sequence[str], report: Report) -> str:
        return self.mark.format(",".join(report.marks[note] for note in notes)) if notes else ""

    def line(self, row: Row, report: Report) -> list[str]:
        labels = [self.escape(getattr(row, label)) for label in report.labels]
        labels[0] += self.marks(row.notes, report)
        pairs = zip(row.cells, report.columns, strict=True)
        return labels + [self.cell(cell, report, column.average) for cell, column in pairs]

    def head(self, report: Report) -> list[str]:
        return [self.escape(name) for name in (*report.labels, *map(report.head, report.columns))]


def escape_markdown(text: str) -> str:
    text = visible(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


MARKDOWN = Markup(escape_markdown, "**{}**", "<ins>{}</ins>", "{}", "<sup>{}</sup>")


def markdown(report: Report) -> str:
    """A GitHub table with caption, remarks and footnotes."""
    count = len(report.labels)
    rule = [" --- "] * count + [" ---: "] * len(report.columns)
    lines = [
        MARKDOWN.escape(report.caption),
        "",
        "| " + " | ".join(MARKDOWN.head(report)) + " |",
        "|" + "|".join(rule) + "|",
        *("| " + " | ".join(MARKDOWN.line(row, report)) + " |" for row in report.rows),
    ]
    notes = [f"<sup>{letter}</sup> {MARKDOWN.escape(note)}" for note, letter in report.marks.items()]
    return "\n".join([*lines, *(line for note in (*report.remarks, *notes) for line in ("", note)), ""])


def csv(report: Report) -> str:
    """The table with a column per number, and the footnotes in words."""
    import pandas as pd

    lines = []
    for row in report.rows:
        line: dict[str, Any] = {"segmentor": row.segmentor, "clip": row.clip, "protocol": row.protocol}
        notes = list(row.notes)
        for column, cell in zip(report.columns, row.cells, strict=True):
            low, high = cell.interval or (None, None)
            line[report.head(column)] = cell.value
            parts = {"low": low, "high": high, "published": cell.published, "difference": cell.difference}
            line |= {f"{column.name} {part}": value for part, value in parts.items()}
            notes += [f"{column.name}: {note}" for note in cell.notes]
        lines.append(line | {"notes": "; ".join(notes)})
    frame = pd.DataFrame(lines)
    figures = {report.head(column) for column in report.columns}
    frame = frame[[name for name in frame if name in figures or frame[name].notna().any()]]
    return frame.to_csv(index=False, lineterminator="\n", float_format=f"%.{report.digits}f")
