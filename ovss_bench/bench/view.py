"""Measurements as markdown tables and as plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..reports.markdown import markdown
from ..reports.table import Table
from .methods import METHOD
from .ways import OFFICIAL


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a row per case and way: seconds per image, their ratio to the bare encoder in the same round (median, minimum
    to maximum), peak memory, and the share of pixels with equal labels in the official-style loop and our run."""
    rows = []
    for name, result in results.items():
        for way, ratio in result["ratios"].items():
            equal = [each["equal_pixels"] for each in result["agreement"].values()] if way == OFFICIAL else []
            rows.append(
                {
                    "case": name,
                    "way": way,
                    "s / image": f"{median(result['seconds'][way]) / result['case']['images']:.3f}",
                    "bare = 1": f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})",
                    "MiB": f"{result['peak_memory_mib'][way]}",
                    "same labels": f"{min(equal):.4f} %" if equal else "",
                }
            )
    return markdown(Table.of(rows))


def methods_view(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a row per case of a method: its ratio to the bare encoder passes in wall time (median, minimum to maximum) and
    in processor time, the official style's, equal labels, and the stages that take most of its time."""
    rows = []
    for name, result in of_methods(results).items():
        ratio, official = result["ratios"][METHOD], result["ratios"].get(OFFICIAL)
        equal = [each["equal_pixels"] for each in result["agreement"].values()]
        total = sum(result["stages"].values())
        longest = sorted(result["stages"].items(), key=lambda stage: -stage[1])
        rows.append(
            {
                "method": name,
                "official style": f"{official['median']:.2f}" if official else "–",
                "ours": f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})",
                "processor time": f"{result['processor_ratios'][METHOD]['median']:.2f}",
                "same labels": f"{min(equal):.4f} %" if equal else "–",
                "stages": ", ".join(f"{stage} {100 * spent / total:.0f} %" for stage, spent in longest if spent > 0.02 * total),
            }
        )
    return markdown(Table.of(rows, right=["official style", "ours", "processor time", "same labels"]))


def of_methods(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The cases of methods, without those of configs/bench."""
    return {name: result for name, result in sorted(results.items()) if result["case"]["method"]}


def stages(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a row per case: milliseconds per image of each stage of our run from files."""
    rows = [
        {"case": name} | {key: f"{1000 * value / result['case']['images']:.0f} ms" for key, value in result["stages"].items()}
        for name, result in results.items()
    ]
    return markdown(Table.of(rows))


def plot(results: Mapping[str, Mapping[str, Any]], path: Path, only: str | None = None) -> None:
    """A bar chart of the ratios with their range, of all ways or of one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [
        (name if only else f"{name}: {way}", ratio)
        for name, result in results.items()
        for way, ratio in result["ratios"].items()
        if only in (None, way)
    ]
    figure = Figure(figsize=(8, 1 + 0.3 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    least, medians, most = (np.array([ratio[key] for _, ratio in rows]) for key in ("least", "median", "most"))
    axes.barh([label for label, _ in rows], medians, xerr=[medians - least, most - medians], color="#4477aa")
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time, bare encoder passes = 1")
    figure.savefig(path, format="png", dpi=120)
