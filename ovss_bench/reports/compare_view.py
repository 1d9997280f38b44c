"""Comparisons as text, for a terminal or a CI log."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..runs.fairness import mixed
from .table import Column, Figure, Row, Table, Text
from .terminal import lines as text_of

DIGEST = re.compile(r"[0-9a-f]{64}")


def lines_of(comparison: Mapping[str, Any]) -> list[str]:
    """A comparison of two runs (compare.py) or of one with published figures (reproduced.py)."""
    if comparison["level"] == "error":
        return [f"error: {comparison['what']}"]
    return list(_published(comparison) if "figure" in comparison else _runs(comparison))


def method_lines(comparisons: list[Mapping[str, Any]]) -> list[str]:
    """The errors, and `methods_table` as text."""
    compared = [comparison for comparison in comparisons if comparison["level"] != "error"]
    errors = [line for comparison in comparisons if comparison["level"] == "error" for line in lines_of(comparison)]
    return [*errors, *(text_of(methods_table(compared)) if compared else [])]


def methods_table(comparisons: list[Mapping[str, Any]]) -> Table:
    """A row per CLIP and data set on which two methods were compared, and for each CLIP the mean over its data sets."""
    first = comparisons[0]
    columns = [Column("data set"), Column("CLIP")]
    columns += [Column(f"{first[side]['segmentor']} mIoU", right=True) for side in "ab"]
    columns += [Column("difference", right=True, signed=True), Column("level")]
    rows, pairs, remarks = [], {}, [line for line in [_supervisions(comparisons)] if line]
    for comparison in comparisons:
        a, b, difference = comparison["a"], comparison["b"], comparison["difference"]
        bounds = difference["low"], difference["high"]
        if None not in (a["mIoU"], b["mIoU"]):
            pairs.setdefault(a["clip"], []).append((a["mIoU"], b["mIoU"]))
        labels = Text(a["dataset"]), Text(a["clip"])
        change = Figure(difference["value"], interval=None if bounds[0] != bounds[0] else bounds)
        rows.append(Row([*labels, _figure(a), _figure(b), change, Text(comparison["level"])]))
    for side in "ab":
        runs = [comparison[side] for comparison in comparisons]
        if mixture := mixed({run["dataset"]: run.get("supervision", "") for run in runs}):
            remarks.append(f"{runs[0]['segmentor']}: {mixture}")
    for clip, values in pairs.items():
        if len(values) > 1:
            a, b = (sum(side) / len(values) for side in zip(*values, strict=True))
            rows.append(Row([Text(f"mean of {len(values)}"), Text(clip), Figure(a), Figure(b), Figure(b - a), Text("")]))
    return Table(columns, rows, remarks=tuple(remarks))


def _supervisions(comparisons: Sequence[Mapping[str, Any]]) -> str | None:
    """A note on methods with different supervision."""
    kinds = dict.fromkeys(tuple(each[side].get("supervision", "") for side in "ab") for each in comparisons)
    differing = ", ".join(f"{a} -> {b}" for a, b in kinds if a != b)
    return f"different supervision: {differing}" if differing else None


def _figure(run: Mapping[str, Any]) -> Figure:
    settings = ", ".join(f"{name}={value}" for name, value in run["overridden"].items())
    notes = [f"overridden: {settings}"] if settings else []
    return Figure(run["mIoU"], notes=[*notes, *["partial"] * run["partial"], *run.get("unconfirmed", ())])


def summary(comparisons: list[Mapping[str, Any]]) -> str:
    """The number of comparisons of each level."""
    levels = [comparison["level"] for comparison in comparisons]
    return ", ".join(f"{levels.count(level)} {level}" for level in dict.fromkeys(levels))


def _runs(comparison: Mapping[str, Any]) -> Iterator[str]:
    a, b, images = comparison["a"], comparison["b"], comparison["images"]
    title = f"{_name(a)}{'' if _name(a) == _name(b) else f' and {_name(b)}'}: {comparison['level']}"
    if comparison["level"] == "identical":
        yield f"{title} (label maps and counts of {images['compared']} images)"
    else:
        yield title
        yield f"  mIoU {_percent(a['mIoU'])} -> {_percent(b['mIoU'])}, {_interval(comparison)}"
        maps, counts = images["other_maps"], images["other_counts"]
        yield f"  of {images['compared']} images, {maps} have different label maps, {counts} different counts"
        if comparison["other_labels"]:
            yield f"  the ground truth of {comparison['other_labels']} images differs: other labels, or another size"
    if line := _supervisions([comparison]):
        yield f"  {line}"
    for run in (a, b):
        yield from (f"  {run['segmentor']}: {doubt}" for doubt in run.get("unconfirmed", ()))
    yield "  settings that differ:" if comparison["settings"] else "  no setting differs"
    for entry in comparison["settings"]:
        yield f"    {entry['name']}: {_short(entry['a'])} -> {_short(entry['b'])}"
    if comparison["contributing_classes"]:
        yield "  classes that contribute most (points of the difference; IoU):"
    for entry in comparison["contributing_classes"]:
        yield f"    {entry['points']:+8.3f}  {entry['class']}: {_percent(entry['a'])} -> {_percent(entry['b'])}"
    if comparison["contributing_images"]:
        yield "  images that contribute most (points of the difference that would vanish with the counts of the first run):"
    for entry in comparison["contributing_images"]:
        yield f"    {entry['points']:+8.3f}  {entry['image']}"


def _published(comparison: Mapping[str, Any]) -> Iterator[str]:
    figure, difference = comparison["figure"], comparison["difference"]
    yield f"{_name(comparison['run'])}: {comparison['level']}"
    source = f"{figure['variant']}; {figure['source']}{'; second-hand' if figure['second_hand'] else ''}"
    yield f"  {figure['metric']} {comparison['ours']:.2f}, published {figure['miou']:g} ({source})"
    if comparison.get("caveat"):
        yield f"  not the published run: {comparison['caveat']}"
    yield f"  {_interval(comparison)}"
    if difference["low"] == difference["low"]:
        side = "inside" if difference["low"] <= 0 <= difference["high"] else "outside"
        yield f"  the published figure lies {side} our interval"
    for other in comparison["others"]:
        yield f"  also published: {other['miou']:g} ({other['source']})"
    yield "  usual reasons for a gap:"
    for entry in comparison["checklist"]:
        yield f"    {entry['state']:10}  {entry['what']}: {entry['says']}"


def _name(run: Mapping[str, Any]) -> str:
    marks = "".join(f" {name}={value}" for name, value in run["overridden"].items())
    partial = " (partial)" if run["partial"] else ""
    return f"{run['segmentor']}{marks}{partial} with {run['clip']} on {run['dataset']}"


def _interval(comparison: Mapping[str, Any]) -> str:
    value, low, high = (comparison["difference"][name] for name in ("value", "low", "high"))
    bounds = f", 95 % interval over images [{low:+.2f}, {high:+.2f}]"
    bounds = " (no interval: it needs at least two images)" if low != low else bounds
    return f"difference {value:+.2f} points{bounds}, tolerance {comparison['tolerance']:g}"


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) and DIGEST.fullmatch(value) else "none" if value is None else str(value)


def _percent(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.2f}"
