"""Measurements as markdown tables and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..reports.markdown import markdown
from ..reports.table import Table
from .measure import OFFICIAL


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


def stages(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a row per case: milliseconds per image of each stage of our run from files."""
    rows = [
        {"case": name} | {key: f"{1000 * value / result['case']['images']:.0f} ms" for key, value in result["stages"].items()}
        for name, result in results.items()
    ]
    return markdown(Table.of(rows))


def plot(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """A bar chart of the ratios with their range."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [(f"{name}: {way}", ratio) for name, result in results.items() for way, ratio in result["ratios"].items()]
    figure = Figure(figsize=(8, 1 + 0.3 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    least, medians, most = (np.array([ratio[key] for _, ratio in rows]) for key in ("least", "median", "most"))
    axes.barh([label for label, _ in rows], medians, xerr=[medians - least, most - medians], color="#4477aa")
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time, bare encoder = 1")
    figure.savefig(path, format="png", dpi=120)
