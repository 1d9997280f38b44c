"""Tables of one evaluation: a row per result, and the averages of suites."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..datasets.suites import Suite, mean_of
from ..errors import reading
from ..files import write_text
from ..runs.fairness import class_of, mark_of, mixed
from ..runs.published import stand_ins, unconfirmed
from .csv import csv as to_csv
from .markdown import markdown
from .table import Figure, Table

PARTIAL = " (partial)"
METRICS = (
    "mIoU", "mAcc", "aAcc", "fwIoU", "mIoU_seen", "mIoU_unseen", "hIoU", "IoU_object", "CoI_mIoU", "mIoU_quirk255",
    "mBoundaryIoU",
)  # fmt: skip
LABELS = ("clip", "dataset", "protocol")
RANKED = "The best of each data set is marked among the rows of the same supervision."


def results_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """A row per result, metrics in percent; the best mIoU of each data set and kind of supervision is marked."""
    records = [
        {"segmentor": marked_name(result)}
        | {name: result[name] for name in LABELS}
        | ({"supervision": mark} if (mark := mark_of(result)) else {})
        | {name: _float(result["metrics"][name]) for name in METRICS if name in result["metrics"]}
        for result in results
    ]
    table = Table.of(records, common=(*LABELS, "supervision"))
    by_dataset: dict[tuple[str, str], list[Figure]] = {}
    for result, figure in zip(results, table.cells("mIoU"), strict=False):  # results without mIoU have no such column
        if isinstance(figure, Figure) and figure.value is not None:
            figure.kind = class_of(result)
            figure.notes += [*seen_notes(result), *unconfirmed(result)]
            by_dataset.setdefault((result["dataset"], figure.kind), []).append(figure)
    for figures in by_dataset.values():
        best = max(figure.rounded(table.digits) for figure in figures)
        for figure in figures:
            figure.rank = 1 if figure.rounded(table.digits) == best else None
    several = len(by_dataset) > len({dataset for dataset, _ in by_dataset})
    return replace(table, remarks=(RANKED,)) if several else table


def seen_notes(result: Mapping[str, Any]) -> list[str]:
    """Footnotes for a result whose method saw, or may have seen, images or class names of the data set in training."""
    _, *marks = class_of(result).split("; ")
    return [f"{mark} in training" for mark in marks]


def marked_name(result: Mapping[str, Any]) -> str:
    """The segmentor, marked if the result is partial, overrides the recipe, or was made with a stand-in."""
    marks = PARTIAL if result["partial"] else ""
    marks += "".join(f" {name}={value}" for name, value in result["overridden"].items())
    kinds = ", ".join(stand_ins(result))
    return result["segmentor"] + marks + (f" (stand-in {kinds})" if kinds else "")


def averages_table(suite: Suite, results: Sequence[Mapping[str, Any]]) -> Table:
    """A row per segmentor, CLIP and protocol, a column per average. An average is empty if a data set is missing; the last
    column lists those."""
    rows: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for result in results:
        labels = marked_name({**result, "partial": False}), result["clip"], result["protocol"], mark_of(result)
        rows.setdefault(labels, []).append(result)
    records, notes = [], []
    for (segmentor, clip, protocol, supervision), members in rows.items():
        figures = {(result["dataset"], name): value for result in members for name, value in result["metrics"].items()}
        means = mean_of(suite.averages, figures)
        missing = dict.fromkeys(name for _, names in means.values() for name in names)
        name = segmentor + PARTIAL * any(result["partial"] for result in members)
        labels = {"segmentor": name, "clip": clip, "protocol": protocol} | ({"supervision": supervision} if supervision else {})
        mixture = mixed({result["dataset"]: class_of(result) for result in members})
        doubts = dict.fromkeys(doubt for result in members for doubt in unconfirmed(result))
        notes.append([*([mixture] if mixture else []), *doubts])
        records.append(labels | {name: _float(value) for name, (value, _) in means.items()} | {"missing": ", ".join(missing)})
    table = Table.of(records, common=(*LABELS, "supervision"))
    for row, each in zip(table.rows, notes, strict=True):
        row.cells[0].notes += each
    return table


def write_results(results: Sequence[Mapping[str, Any]], folder: Path) -> Table:
    """Writes table.md and table.csv."""
    return write_table(results_table(results), folder / "table")


def write_averages(suite: Suite, results: Sequence[Mapping[str, Any]], folder: Path) -> Table:
    """Writes <suite>.md and <suite>.csv."""
    table = write_table(averages_table(suite, results), folder / suite.name)
    return replace(table, title=f"{suite.full_name}: averages")


def write_table(table: Table, base: Path) -> Table:
    """Writes <base>.md and <base>.csv."""
    for suffix, text in ((".md", markdown(table)), (".csv", to_csv(table))):
        write_text(base.with_name(base.name + suffix), text)
    return table


def without_labels(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each result without mIoU, because no pixel counts."""
    return [
        f"{result['segmentor']} on {result['dataset']}: no mIoU, since none of the {result['images']['evaluated']} images has "
        "a labelled pixel that counts. Are all labels ignored (ignore_index), or is recipe.min_foreground too large?"
        for result in results
        if math.isnan(_float(result["metrics"]["mIoU"]))
    ]


def differences(results: Sequence[Mapping[str, Any]], expected: str | Path, tolerance: float) -> list[str]:
    """A line for each result that is not in a table.csv, or whose mIoU there differs by more than `tolerance` points."""
    keys = ("segmentor", *LABELS)
    with reading(f"table {expected}", "Expected a table.csv of a run."), open(expected, encoding="utf-8", newline="") as file:
        known = {tuple(row[key] for key in keys): float(row["mIoU"] or "nan") for row in csv.DictReader(file)}
    lines = []
    for result in results:
        key = (marked_name(result), *(result[name] for name in LABELS))
        value, name = round(_float(result["metrics"]["mIoU"]), 2), f"{key[0]} on {result['dataset']}"
        if key not in known:
            lines.append(f"{name}: not in {expected}")
        elif not (abs(value - known[key]) <= tolerance or (math.isnan(value) and math.isnan(known[key]))):
            lines.append(f"{name}: {value:.2f} mIoU, expected {known[key]:.2f} +- {tolerance}")
    return lines


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)
