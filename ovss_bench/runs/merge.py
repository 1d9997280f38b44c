"""Computes results from counts: at the end of a run, or later, from the parts of `shard=I/N`, without data and GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import OvssError, reading
from ..evaluation.boundary import boundary_total, mean_boundary_iou
from ..evaluation.confusion import Records, total
from ..evaluation.metrics import DatasetFacts, areas, class_metrics, metrics
from ..evaluation.per_image import per_image
from .published import compare_published
from .store import RunStore, read_parts

# Provenance that may differ between the parts of a result without a note; `source_digest` covers `code`, and packages are
# compared one by one.
FREE = ("command", "world_size", "code", "packages")
# Work that methods skip where no label can depend on it -> its `observed` counters: how often skipped, out of how many.
SKIPPED = {"masks": ("prompts_without_masks", "prompts")}


def make_result(
    head: Mapping[str, Any],
    facts: DatasetFacts,
    counts: Records,
    edges: Records,
    evaluated: Sequence[str],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """The result of a run: `head`, which holds everything not derived from counts, and the figures of the evaluated images."""
    classes = len(head["per_class"])
    matrix = total((counts[image] for image in evaluated), classes)
    scores = class_metrics(matrix)
    columns = [row["class"] for row in head["per_class"]], scores["IoU"], scores["Acc"], *areas(matrix)
    figures = metrics(matrix, facts) | per_image((counts[image] for image in evaluated), classes)
    if edges:
        figures["mBoundaryIoU"] = mean_boundary_iou(boundary_total((edges[image] for image in evaluated), classes))
    expected, timing = head["images"]["expected"], head["timing"]
    seen = head.get("observed", {})
    shares = {kind: round(seen[part] / seen[whole], 4) for kind, (part, whole) in SKIPPED.items() if seen.get(whole)}
    seconds = timing["seconds"] - timing.get("stages", {}).get("text", 0)  # encoding texts does not depend on the images
    result = {
        **head,
        "metrics": {name: _percent(value) for name, value in figures.items()},
        "images": {"expected": expected, "evaluated": len(evaluated), "failed": dict(failed)},
        "partial": len(evaluated) != expected,
        "per_class": [
            {"class": name, "IoU": _percent(iou), "Acc": _percent(acc), "correct": int(c), "predicted": int(p), "true": int(t)}
            for name, iou, acc, c, p, t in zip(*columns, strict=True)
        ],
        "timing": timing
        | {"images_per_second": round(timing["images"] / max(seconds, 1e-9), 2)}
        | ({"skipped": shares} if shares else {}),
    }
    return result | {"published": compare_published(result)}


def _percent(value: float) -> float:
    return round(100 * float(value), 8)


def merge(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Writes the result of the parts in a run's folder of shards, and returns it with notes on anything that qualifies it.
    Raises OvssError if images are missing (with the shards to run again) or a process is still writing a part."""
    with reading(f"the parts in {folder}", "Start their shards again."):
        return _merged(folder, *read_parts(folder))


def _merged(folder: Path, parts: list[dict[str, Any]], notes: list[str]) -> tuple[dict[str, Any], list[str]]:
    if not parts:
        raise OvssError("\n".join(notes))
    head = parts[0]["head"]
    with RunStore(folder.parents[2], head["dataset"], head["clip"], head["segmentor"], head["fingerprint"]) as store:
        notes += store.damaged
        images = parts[0]["images"]
        if len(set(images)) < len(images) or any(part["images"] != images for part in parts):
            raise OvssError(f"{folder}: a part lists an image twice, or the parts list different images. Evaluate them again.")
        evaluated = [image for image in images if image in store.counts]
        failed = {image: reason for part in parts for image, reason in part["failed"].items() if image not in store.counts}
        missing = [image for image in images if image not in store.counts and image not in failed]
        if missing:
            raise OvssError("\n".join([*notes, _missing(store.base, parts, missing)]))
        facts: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in parts[0]["facts"].items()}
        heads = [part["head"] for part in parts]
        result = make_result(_joined(heads), DatasetFacts(**facts), store.counts, store.edges, evaluated, failed)
        store.finish(result, evaluated)
    return result, notes + _differences(heads)


def part_folders(folder: Path) -> list[Path]:
    """The folders of shards at or below `folder` that contain parts. Raises OvssError if there are none."""
    found = sorted({path.parent for path in folder.rglob("part-*.json") if path.parent.suffix == ".shards"})
    if not found:
        raise OvssError(f"there are no parts to merge in {folder}. tools/eval.py shard=I/N output=DIR writes them.")
    return found


def _missing(base: Path, parts: Sequence[Mapping[str, Any]], missing: Sequence[str]) -> str:
    shards, lacking = parts[0]["shard"][1], set(missing)
    whole = {part["shard"][0] for part in parts if part["shard"][1] == shards and not lacking & set(part["own"])}
    again = ", ".join(f"shard={number}/{shards}" for number in range(1, shards + 1) if number not in whole)
    shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
    count = f"{len(missing)} of {len(parts[0]['images'])} images"
    return f"{base}: {count} are missing: {shown}. Start these again, or copy their files here: {again}."


def _joined(heads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first head, with the measurements of all heads summed, or their maximum or minimum."""
    timings = [head["timing"] for head in heads]
    timing = timings[0] | {
        "seconds": round(sum(timing["seconds"] for timing in timings), 2),
        "images": sum(timing["images"] for timing in timings),
        "started": min(timing["started"] for timing in timings),
    }
    stages = _sums([timing.get("stages", {}) for timing in timings])
    timing["stages"] = {stage: round(seconds, 3) for stage, seconds in stages.items()}
    if peaks := [timing["peak_gpu_memory_mib"] for timing in timings if "peak_gpu_memory_mib" in timing]:
        timing["peak_gpu_memory_mib"] = max(peaks)
    return {
        **heads[0],
        "timing": timing,
        "peak_memory_mib": max(head["peak_memory_mib"] for head in heads),
        "provenance": heads[0]["provenance"] | {"world_size": sum(head["provenance"]["world_size"] for head in heads)},
        **added_up([head.get("observed", {}) for head in heads]),
    }


def added_up(parts: Sequence[Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """The field `observed` of a head: the counters of all parts of a pass, summed; no field if nothing was counted."""
    sums = _sums(parts)
    return {"observed": dict(sorted(sums.items()))} if sums else {}


def _sums(parts: Sequence[Mapping[str, Any]]) -> Counter:
    sums = Counter()
    for part in parts:
        sums.update(part)
    return sums


def _differences(heads: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes on differences in the parts' provenance, which may have changed their counts."""
    each = [head["provenance"] | head["provenance"]["packages"] for head in heads]
    values = {key: list(dict.fromkeys(str(one.get(key)) for one in each)) for key in sorted(each[0]) if key not in FREE}
    return [f"the parts were evaluated with different {key}: {', '.join(v)}" for key, v in values.items() if len(v) > 1]
