"""Measurements as markdown tables and as plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..config.registry import SEGMENTORS
from ..datasets.config import dataset_config
from ..datasets.expected import counts as image_counts
from ..reports.markdown import markdown
from ..reports.table import Table
from ..segmentors.base import LastBlockSegmentor
from .ways import ALONE, FILES, METHOD, OFFICIAL

# The project's goals for ratios to the bare encoder passes. LAST_BLOCK: for methods that change only CLIP's last block.
GOALS = {"resclip": 1.3, "scclip": 1.3, "cliptrase": 1.3, "clip_diy": 1.1, "cliper:given": 1.3}
GOALS |= {"proxyclip:given": 1.3, "corrclip:given": 1.3, "corrclip_v2:given": 1.3}
LAST_BLOCK = 1.1


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a row per case and way: seconds per image, their ratio to the bare encoder in the same round (median, minimum
    to maximum), peak memory, and the share of pixels with equal labels in the official-style loop and our run."""
    rows = []
    for name, result in results.items():
        for way, ratio in result["ratios"].items():
            equal = [each["equal_pixels"] for each in result["agreement"].values()] if way == OFFICIAL else []
            equal += [share for precision, share in result.get("precisions", {}).items() if way == f"ours, {precision}"]
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
    in processor time, its goal, the official style's ratio, equal labels, peak memory, and the operations and stages that take
    most of its time."""
    rows = []
    for name, result in of_methods(results).items():
        ratio, official = result["ratios"][METHOD], result["ratios"].get(OFFICIAL)
        equal = [each["equal_pixels"] for each in result["agreement"].values()]
        total, most = sum(result["stages"].values()), goal(name)
        longest = sorted(result["stages"].items(), key=lambda stage: -stage[1])
        missed = ", missed" if most and ratio["median"] > most else ""
        rows.append(
            {
                "method": name,
                "official style": f"{official['median']:.2f}" if official else "–",
                "ours": f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})",
                "processor time": f"{result['processor_ratios'][METHOD]['median']:.2f}",
                "goal": f"{most:.1f}{missed}" if most else "–",
                "same labels": f"{min(equal):.4f} %" if equal else "–",
                "MiB": f"{result['memory_mib']['peak']}" if result.get("memory_mib") else "–",
                "own operations": ", ".join(f"{each} {100 * share:.0f} %" for each, share in own(result)[:2]) or "–",
                "stages": ", ".join(f"{stage} {100 * spent / total:.0f} %" for stage, spent in longest if spent > 0.02 * total),
            }
        )
    return markdown(Table.of(rows, right=["official style", "ours", "processor time", "same labels", "MiB"]))


def own(result: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The operations outside the encoders with their shares of the time, the largest first."""
    return sorted(result.get("operations", {}).items(), key=lambda operation: -operation[1])


def goal(case: str) -> float | None:
    """The goal for the ratio of a method's case, if there is one."""
    method = SEGMENTORS.get(case) if case in SEGMENTORS.names else None
    only_last = method and issubclass(method, LastBlockSegmentor) and method.patch_logits is LastBlockSegmentor.patch_logits
    return GOALS.get(case, LAST_BLOCK if only_last and method and not method.refine else None)


def prompts_view(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a row per method on a concept segmenter: the prompts that its decoders saw for one image."""
    counted = {name: result["counts"] for name, result in of_methods(results).items() if "prompts" in result.get("counts", {})}
    rows = [
        {
            "method": name,
            "prompts": f"{counts['prompts']}",
            "decoded without masks": f"{counts['detect']}",
            "masks": f"{counts['masks']}",
            "skipped": f"{100 * counts['skipped']:.0f} %",
        }
        for name, counts in counted.items()
    ]
    return markdown(Table.of(rows, right=["prompts", "decoded without masks", "masks", "skipped"])) if rows else ""


def shared_view(result: Mapping[str, Any]) -> str:
    """Markdown, for a case that measured several methods in one run and each in a separate run. A row per method: processor
    time relative to `clip`, or to the cheapest run; then the common run, and the sum of the separate runs."""
    times = {name: median(each) for name, each in result["processor_seconds"].items() if name == FILES or name.endswith(ALONE)}
    together = times.pop(FILES)
    unit = times.get(f"clip{ALONE}", min(times.values()))
    rows = [{"run": name.removesuffix(ALONE), "processor time": f"{spent / unit:.2f}"} for name, spent in times.items()]
    rows.append({"run": "all in one run", "processor time": f"{together / unit:.2f}"})
    rows.append({"run": "sum of the runs one by one", "processor time": f"{sum(times.values()) / unit:.2f}"})
    return markdown(Table.of(rows, right=["processor time"]))


def rates_view(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a row per case in the shape of a data set: images per second of each method. The last row: the seconds for all
    images of these data sets at this rate."""
    rows, total = [], Counter[str]()
    shaped = [result for result in results.values() if result["case"].get("shape")]
    for result in shaped:
        case = result["case"]
        rates = {
            way.removesuffix(ALONE): case["images"] / median(seconds)
            for way, seconds in result["seconds"].items()
            if way.endswith(ALONE)
        }
        images = image_counts(dataset_config(case["shape"])[1])[0]
        total.update({method: images / rate for method, rate in rates.items()})
        rows.append({"images / s": f"{case['shape']}, {images} images"} | {name: f"{rate:.1f}" for name, rate in rates.items()})
    rows.append({"images / s": f"all {len(shaped)}, in seconds"} | {name: f"{seconds:.0f}" for name, seconds in total.items()})
    return markdown(Table.of(rows, right=list(total))) if shaped else ""


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
