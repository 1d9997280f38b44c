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

# Goals for the ratio to the bare encoder passes. Methods that change nothing but CLIP's last block have the goal LAST_BLOCK.
GOALS = {"resclip": 1.3, "scclip": 1.3, "cliptrase": 1.3, "clip_diy": 1.1, "cliper:given": 1.3}
GOALS |= {"proxyclip:given": 1.3, "corrclip:given": 1.3, "corrclip_v2:given": 1.3}
LAST_BLOCK = 1.1


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a row per case and measured way: seconds per image, their ratio to the bare encoders in the same round (median,
    minimum to maximum), peak memory, and the share of pixels with equal labels in the official-style loop and our run."""
    rows = []
    for name, result in results.items():
        for way, ratio in result["ratios"].items():
            equal = [each["equal_pixels"] for each in result["agreement"].values()] if way == OFFICIAL else []
            equal += [share for precision, share in result.get("precisions", {}).items() if way == f"ours, {precision}"]
            rows.append(
                {
                    "case": name,
                    "measured": way,
                    "s / image": f"{median(result['seconds'][way]) / result['case']['images']:.3f}",
                    "ratio": f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})",
                    "MiB": f"{result['peak_memory_mib'][way]}",
                    "equal labels": f"{min(equal):.4f} %" if equal else "",
                }
            )
    return markdown(Table.of(rows))


def methods_view(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a row per case of a method: its ratio to the bare encoder passes (median, minimum to maximum), the ratio of the
    official-style loop, its ratio in CPU time, its goal, equal labels, peak memory, slowest functions, and stages."""
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
                "ovss-bench": f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})",
                "official-style loop": f"{official['median']:.2f}" if official else "–",
                "CPU time": f"{result['processor_ratios'][METHOD]['median']:.2f}",
                "goal": f"{most:.1f}{missed}" if most else "–",
                "equal labels": f"{min(equal):.4f} %" if equal else "–",
                "peak MiB": f"{result['memory_mib']['peak']}" if result.get("memory_mib") else "–",
                "slowest functions": ", ".join(f"{each} {100 * share:.0f} %" for each, share in own(result)[:2]) or "–",
                "stages": ", ".join(f"{stage} {100 * spent / total:.0f} %" for stage, spent in longest if spent > 0.02 * total),
            }
        )
    return markdown(Table.of(rows, right=["ovss-bench", "official-style loop", "CPU time", "equal labels", "peak MiB"]))


def own(result: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The functions outside the encoders with their shares of the time, the largest first."""
    return sorted(result.get("operations", {}).items(), key=lambda operation: -operation[1])


def goal(case: str) -> float | None:
    """The goal for the ratio of a method's case, if it has one."""
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
    """Markdown, a row per method of a case that measured several in one run and each in a separate run: CPU time
    relative to `clip`, or to the cheapest run; then all together, and the sum of the separate runs."""
    times = {name: median(each) for name, each in result["processor_seconds"].items() if name == FILES or name.endswith(ALONE)}
    together = times.pop(FILES)
    unit = times.get(f"clip{ALONE}", min(times.values()))
    rows = [{"run": name.removesuffix(ALONE), "CPU time": f"{spent / unit:.2f}"} for name, spent in times.items()]
    rows.append({"run": "all in one run", "CPU time": f"{together / unit:.2f}"})
    rows.append({"run": "sum of separate runs", "CPU time": f"{sum(times.values()) / unit:.2f}"})
    return markdown(Table.of(rows, right=["CPU time"]))


def rates_view(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a row per case with the image size of a data set: images per second of each method; then the seconds that all
    images of these data sets take at this rate."""
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
