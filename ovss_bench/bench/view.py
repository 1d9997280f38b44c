"""What was measured, for the screen and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table


def table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row per case and way: time for an image, ratio to the bare encoder (median, least and most), memory, stages."""
    view = Table(box=None, pad_edge=False)
    for column in ("case", "way", "s / image", "bare = 1", "least", "most", "MiB", "equal pixels", "stages"):
        view.add_column(column, justify="left" if column in ("case", "way", "stages") else "right", overflow="fold")
    for name, result in results.items():
        for way, ratio in result["ratios"].items():
            seconds = sorted(result["seconds"][way])[len(result["seconds"][way]) // 2] / result["case"]["images"]
            equal = min((each["equal_pixels"] for each in result["agreement"].values()), default=None)
            view.add_row(
                name,
                way,
                f"{seconds:.3f}",
                *(f"{ratio[key]:.3f}" for key in ("median", "least", "most")),
                str(result["peak_memory_mib"][way]),
                f"{equal:.4f} %" if way == "official style" and equal is not None else "",
                _stages(result) if way == "ours, from files" else "",
            )
    return view


def plot(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Bars of the ratios, with their spread."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [(f"{name}: {way}", ratio) for name, result in results.items() for way, ratio in result["ratios"].items()]
    figure = Figure(figsize=(8, 1 + 0.3 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    medians = [ratio["median"] for _, ratio in rows]
    spread = [[r["median"] - r["least"] for _, r in rows], [r["most"] - r["median"] for _, r in rows]]
    axes.barh([label for label, _ in rows], medians, xerr=spread, color="#4477aa")
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time, bare encoder = 1")
    figure.savefig(path, format="png", dpi=120)


def _stages(result: Mapping[str, Any]) -> str:
    images = result["case"]["images"]
    rows = sorted(result["stages"].items(), key=lambda row: -row[1])
    return ", ".join(f"{stage} {1000 * seconds / images:.0f} ms" for stage, seconds in rows if seconds / images >= 0.0005)
