"""Comparisons as text, for a terminal or a CI log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .table import Column, Figure, Row, Table, Text
from .terminal import lines as text_of

DIGEST = re.compile(r"[0-9a-f]{64}")


def lines_of(comparison: Mapping[str, Any]) -> list[str]:
    """A comparison of two runs (compare.py) or of one with what is published (reproduced.py)."""
    if comparison["level"] == "error":
        return [f"error: {comparison['what']}"]
    return _published(comparison) if "figure" in comparison else _runs(comparison)


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
    rows, pairs = [], {}
    for comparison in comparisons:
        a, b, difference = comparison["a"], comparison["b"], comparison["difference"]
        bounds = difference["low"], difference["high"]
        if None not in (a["mIoU"], b["mIoU"]):
            pairs.setdefault(a["clip"], []).append((a["mIoU"], b["mIoU"]))
        labels = Text(a["dataset"]), Text(a["clip"])
        change = Figure(difference["value"], interval=None if bounds[0] != bounds[0] else bounds)
        rows.append(Row([*labels, _figure(a), _figure(b), change, Text(comparison["level"])]))
    for clip, values in pairs.items():
        if len(values) > 1:
            a, b = (sum(side) / len(values) for side in zip(*values, strict=True))
            rows.append(Row([Text(f"mean of {len(values)}"), Text(clip), Figure(a), Figure(b), Figure(b - a), Text("")]))
    return Table(columns, rows)


def _figure(run: Mapping[str, Any]) -> Figure:
    settings = ", ".join(f"{name}={value}" for name, value in run["overridden"].items())
    notes = [f"overridden: {settings}"] if settings else []
    return Figure(run["mIoU"], notes=notes + ["partial"] * run["partial"])


def summary(comparisons: list[Mapping[str, Any]]) -> str:
    """How many there are of each level."""
    levels = [comparison["level"] for comparison in comparisons]
    return ", ".join(f"{levels.count(level)} {level}" for level in dict.fromkeys(levels))


def _runs(comparison: Mapping[str, Any]) -> list[str]:
    a, b, images = comparison["a"], comparison["b"], comparison["images"]
    lines = [f"{_name(a)}{'' if _name(a) == _name(b) else f' and {_name(b)}'}: {comparison['level']}"]
    settings = [f"    {entry['name']}: {_short(entry['a'])} -> {_short(entry['b'])}" for entry in comparison["settings"]]
    settings = ["  settings that differ:", *settings] if settings else ["  no setting differs"]
    if comparison["level"] == "identical":
        return [f"{lines[0]} (label maps and counts of {images['compared']} images)", *settings]
    lines.append(
        f"  mIoU {_percent(a['mIoU'])} -> {_percent(b['mIoU'])}, {_interval(comparison)}, tolerance {comparison['tolerance']:g}"
    )
    lines.append(
        f"  of {images['compared']} images {images['other_maps']} have other label maps, {images['other_counts']} other counts"
    )
    if comparison["other_labels"]:
        lines.append(f"  the ground truth of {comparison['other_labels']} images differs: other labels, or another size")
    lines += settings
    if comparison["contributing_classes"]:
        lines.append("  classes that contribute most (points of the difference; IoU):")
        for entry in comparison["contributing_classes"]:
            lines.append(f"    {entry['points']:+8.3f}  {entry['class']}: {_percent(entry['a'])} -> {_percent(entry['b'])}")
    if comparison["contributing_images"]:
        lines.append("  images that contribute most (points that the difference would lose without theirs):")
        lines += [f"    {entry['points']:+8.3f}  {entry['image']}" for entry in comparison["contributing_images"]]
    return lines


def _published(comparison: Mapping[str, Any]) -> list[str]:
    run, figure = comparison["run"], comparison["figure"]
    lines = [f"{_name(run)}: {comparison['level']}"]
    lines.append(
        f"  {figure['metric']} {comparison['ours']:.2f}, published {figure['miou']:g} ({figure['variant']}; {figure['source']}"
        f"{'; second-hand' if figure['second_hand'] else ''})"
    )
    if comparison.get("caveat"):
        lines.append(f"  not the published run: {comparison['caveat']}")
    lines.append(f"  {_interval(comparison)}, tolerance {comparison['tolerance']:g}")
    low, high = comparison["difference"]["low"], comparison["difference"]["high"]
    if low == low:
        side = "inside" if low <= 0 <= high else "outside"
        lines.append(f"  the published figure lies {side} the interval of ours")
    lines += [f"  also published: {other['miou']:g} ({other['source']})" for other in comparison["others"]]
    lines.append("  usual reasons for a gap:")
    lines += [f"    {entry['state']:10}  {entry['what']}: {entry['says']}" for entry in comparison["checklist"]]
    return lines


def _name(run: Mapping[str, Any]) -> str:
    marks = "".join(f" {name}={value}" for name, value in run["overridden"].items())
    partial = " (partial)" if run["partial"] else ""
    return f"{run['segmentor']}{marks}{partial} with {run['clip']} on {run['dataset']}"


def _interval(comparison: Mapping[str, Any]) -> str:
    difference = comparison["difference"]
    text = f"difference {difference['value']:+.2f} points"
    if difference["low"] != difference["low"]:
        return f"{text} (no interval: it takes two images or more)"
    return f"{text}, 95 % interval of image sampling [{difference['low']:+.2f}, {difference['high']:+.2f}]"


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) and DIGEST.fullmatch(value) else "not there" if value is None else str(value)


def _percent(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.2f}"
