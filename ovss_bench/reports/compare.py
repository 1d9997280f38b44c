"""Compares two runs on the same images, and finds the images, classes and settings behind their difference."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OvssError, unknown
from ..evaluation.bootstrap import Interval, class_counts, mean_iou_and_gradient, paired, paired_interval
from ..evaluation.confusion import total
from ..evaluation.metrics import iou
from ..runs.fairness import class_of
from ..runs.load import result_paths
from ..runs.published import unconfirmed
from ..runs.store import disagreements, read_counts, read_result

# Exit statuses; of several comparisons, the first in this order wins.
STATUS = {"error": 2, "different": 1, "inconclusive": 3, "equivalent": 0, "identical": 0}
LISTED = 10  # images and classes that contribute most
DECIMALS = 4  # of differences in points of mIoU
CHUNK = 256  # images whose counts are held as dense arrays at a time


@dataclass(frozen=True)
class Run:
    """A result and the counts and hashes of its images."""

    path: Path
    result: dict[str, Any]
    counts: dict[str, np.ndarray]
    hashes: dict[str, str]

    @cached_property
    def classes(self) -> list[str]:
        return [entry["class"] for entry in self.result["per_class"]]

    def facts(self) -> dict[str, Any]:
        names = ("segmentor", "clip", "dataset", "protocol", "overridden", "partial")
        facts = {"path": str(self.path)} | {name: self.result[name] for name in names}
        facts |= {"supervision": class_of(self.result), "unconfirmed": unconfirmed(self.result)}
        return facts | {"mIoU": self.result["metrics"]["mIoU"]}


@dataclass(frozen=True)
class ReadResult:
    """A pickled result: thousands of results as dictionaries would need gigabytes of memory."""

    path: Path
    setting: str
    packed: bytes


Groups = dict[tuple[str, ...], list[ReadResult]]  # by segmentor, CLIP and data set
Pair = list[ReadResult | None]


def read_run(path: str | Path) -> Run:
    """Raises OvssError if the result or its counts are missing, damaged or inconsistent."""
    return _with_counts(Path(path), read_result(path))


def _with_counts(path: Path, result: dict[str, Any]) -> Run:
    beside = path.with_suffix(".npz")
    if not beside.is_file():
        raise OvssError(f"the counts of {path} are missing: expected {beside}. Copy both files, or run again.")
    counts, hashes, _ = read_counts(beside, result["fingerprint"], len(result["per_class"]))
    if reasons := disagreements(result, counts, list(counts)):
        what = f"{path} and its counts {beside} do not state the same images and pixels"
        raise OvssError(f"{what} ({reasons}). Delete both and run again.")
    return Run(path, result, counts, hashes)


def compare_runs(a: Run, b: Run, tolerance: float = 0.1) -> dict[str, Any]:
    """How `b` differs from `a`, in points of mIoU. The level is the first of these that applies:

    - identical: the same label maps and the same counts;
    - equivalent: the 95 % interval of the difference (evaluation/bootstrap.py) lies within `tolerance`;
    - different: the interval excludes 0;
    - inconclusive.

    Raises OvssError for runs with different classes or images.
    """
    if a.classes != b.classes:
        what = f"{a.path} and {b.path} have different classes ({a.result['dataset']}, {b.result['dataset']})"
        raise OvssError(f"{what}: only runs on the same data set can be compared.")
    counts = paired(a.counts, b.counts)
    ids = sorted(a.counts)
    other_counts = [not np.array_equal(*both) for both in zip(*counts, strict=True)]
    other_maps = [a.hashes[name] != b.hashes[name] for name in ids]
    changed = any(other_counts)
    bounds = paired_interval(a.counts, b.counts, len(a.classes)) if changed else Interval(0.0, 0.0, 0.0)
    points = Interval(*(round(100 * bound, DECIMALS) for bound in (bounds.value, bounds.low, bounds.high)))
    level = _level(points, tolerance) if changed or any(other_maps) else "identical"
    return {
        "level": level,
        "a": a.facts(),
        "b": b.facts(),
        "difference": {"value": points.value, "low": points.low, "high": points.high},
        "tolerance": tolerance,
        "images": {"compared": len(ids), "other_maps": sum(other_maps), "other_counts": sum(other_counts)},
        "contributing_images": _images(ids, *counts, len(a.classes)) if changed else [],
        "contributing_classes": _classes(a, b) if changed else [],
        "settings": list(_settings(a.result, b.result)),
        "other_labels": _other_labels(*counts, len(a.classes)) if changed else 0,
    }


def compare_paths(a: str | Path, b: str | Path, tolerance: float = 0.1) -> list[dict[str, Any]]:
    """Compares two result files, or the results of two folders, matched by segmentor, CLIP and data set, and if ambiguous also
    by protocol and overrides. A result that has no counterpart or cannot be compared becomes an entry of level "error"."""
    a, b = Path(a), Path(b)
    if a.is_file() and b.is_file():
        return [compare_runs(read_run(a), read_run(b), tolerance)]
    sides = [_grouped(side, ("segmentor", "clip", "dataset")) for side in (a, b)]
    only = next((number for number, side in enumerate((a, b)) if side.is_file()), None)
    return [_compared(pair, (f"in {a}", f"in {b}"), tolerance) for pair in _pairs(sides, (str(a), str(b)), only)]


def compare_methods(folder: str | Path, a: str, b: str, tolerance: float = 0.1) -> tuple[list[dict[str, Any]], list[str]]:
    """Compares two segmentors of a folder on every data set and CLIP that both were run with, and lists the results without a
    counterpart; matches as `compare_paths` does. Raises OvssError if one has no result, or if nothing matches."""
    sides = [_grouped(folder, ("clip", "dataset"), segmentor=name) for name in (a, b)]
    for name, side in zip((a, b), sides, strict=True):
        if not side:
            raise unknown(f"segmentor in {folder}", name, {read_result(path)["segmentor"] for path in result_paths(folder)})
    pairs, places = list(_pairs(sides, (f"{a} in {folder}", f"{b} in {folder}"))), (f"of {a}", f"of {b}")
    comparisons = [_compared(pair, places, tolerance) for pair in pairs if None not in pair]
    alone = [_alone(pair, places) for pair in pairs if None in pair]
    if not comparisons:
        raise OvssError(f"no data set in {folder} has results of {a} and of {b} with the same settings: {'; '.join(alone)}.")
    return comparisons, alone


def _alone(pair: Pair, places: Sequence[str]) -> str:
    (path,) = (each.path for each in pair if each is not None)
    return f"{path} has no counterpart {places[pair.index(None)]}"


def _compared(pair: Pair, places: Sequence[str], tolerance: float) -> dict[str, Any]:
    a, b = pair
    if a is None or b is None:
        return {"level": "error", "what": f"{_alone(pair, places)}."}
    try:
        ours, theirs = (_with_counts(each.path, pickle.loads(each.packed)) for each in (a, b))
        return compare_runs(ours, theirs, tolerance)
    except OvssError as error:
        return {"level": "error", "what": str(error)}


def status(comparisons: Sequence[Mapping[str, Any]]) -> int:
    levels = {comparison["level"] for comparison in comparisons}
    return next(STATUS[level] for level in STATUS if level in levels)


def _level(points: Interval, tolerance: float) -> str:
    if max(abs(points.low), abs(points.high)) <= tolerance:
        return "equivalent"
    return "different" if points.low > 0 or points.high < 0 else "inconclusive"


def _grouped(folder: str | Path, key: Sequence[str], **wanted: str) -> Groups:
    """The `wanted` results below a folder, grouped by the fields of `key`, each with the settings that distinguish it."""
    groups: Groups = {}
    for path in result_paths(folder):
        result = read_result(path)
        if all(result[name] == value for name, value in wanted.items()):
            setting = json.dumps([result["protocol"], result["overridden"]], sort_keys=True)
            found = ReadResult(path, setting, pickle.dumps(result))
            groups.setdefault(tuple(result[name] for name in key), []).append(found)
    return groups


def _pairs(sides: Sequence[Groups], names: Sequence[str], only: int | None = None) -> Iterator[Pair]:
    """Matching results, sorted; None for a missing counterpart. `only`: the side whose results need a counterpart; by default
    both."""
    counting = sides if only is None else [sides[only]]
    for key in sorted({key for side in counting for key in side}):
        entries = [side.get(key, []) for side in sides]
        if all(len(each) == 1 for each in entries):
            yield [each[0] for each in entries]
            continue
        for setting in sorted({each.setting for side in counting for each in side.get(key, [])}):
            found = [[each for each in side if each.setting == setting] for side in entries]
            for name, same in zip(names, found, strict=True):
                if len(same) > 1:
                    *segmentor, clip, dataset = key
                    which = f"results{''.join(f' of {one}' for one in segmentor)} with {clip} on {dataset}"
                    files = ", ".join(each.path.name for each in same)
                    raise OvssError(f"{name} holds {len(same)} {which}: {files}. Name the files, or delete the old ones.")
            yield [same[0] if same else None for same in found]


def _images(ids: Sequence[str], a: Sequence[np.ndarray], b: Sequence[np.ndarray], classes: int) -> list[dict[str, Any]]:
    """The points of the difference that would vanish if `b` had the counts of `a` on an image; the largest first."""
    ours, theirs = class_counts(a, classes), class_counts(b, classes)
    changed = np.unique((theirs - ours).nonzero()[0])
    everything = theirs.sum(axis=0)
    value = mean_iou_and_gradient(everything[None])[0][0]
    points = np.zeros(len(ids))
    for start in range(0, len(changed), CHUNK):
        rows = changed[start : start + CHUNK]
        points[rows] = 100 * (value - mean_iou_and_gradient(everything - (theirs[rows] - ours[rows]).toarray())[0])
    largest = sorted(changed.tolist(), key=lambda i: (-abs(points[i]), ids[i]))[:LISTED]
    return [{"image": ids[i], "points": round(float(points[i]), DECIMALS)} for i in largest]


def _classes(a: Run, b: Run) -> list[dict[str, Any]]:
    """The contribution of each class to the difference, in points; they sum to it. The largest first."""
    each = [100 * iou(total(run.counts.values(), len(run.classes))) for run in (a, b)]
    counted = [~np.isnan(values) for values in each]
    # Relative to the midpoint of both means, a class that only one run has contributes what it shifts that run's mean by.
    middle = sum(values[used].mean() if used.any() else 0 for values, used in zip(each, counted, strict=True)) / 2
    shares = [np.where(used, values - middle, 0) / max(used.sum(), 1) for values, used in zip(each, counted, strict=True)]
    points = shares[1] - shares[0]
    largest = np.argsort(-np.abs(points), kind="stable")[:LISTED]
    rows = [[round(float(values[c]), DECIMALS) for values in (*each, points)] for c in largest]
    names = [a.classes[c] for c in largest]
    return [{"class": name, "a": x, "b": y, "points": share} for name, (x, y, share) in zip(names, rows, strict=True) if share]


def _settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings and provenance that differ between two results: name and both values, None if missing."""
    ours, theirs = (dict(_flat(result)) for result in (a, b))
    for name in dict.fromkeys([*ours, *theirs]):
        if ours.get(name) != theirs.get(name):
            yield {"name": name, "a": ours.get(name), "b": theirs.get(name)}


def _flat(result: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in ("segmentor", "clip", "dataset", "protocol"):
        yield name, result[name]
    yield from ((f"recipe.{name}", entry["value"]) for name, entry in result["recipe"].items())
    yield from ((f"{kind} {name}", value) for kind, source in result["sources"].items() for name, value in source.items())
    for name in ("weights_digest", "names_digest", "dataset_fingerprint", "precision"):
        yield name, result[name]
    for name in ("source_digest", "device", "threads", "world_size", "python", "platform"):
        yield name, result["provenance"][name]
    for kind in ("code", "plugins", "packages"):
        yield from ((f"{kind} {name}", value) for name, value in result["provenance"].get(kind, {}).items())


def _other_labels(a: Sequence[np.ndarray], b: Sequence[np.ndarray], classes: int) -> int:
    """The number of images whose ground truth differs in pixels per class: other labels, or another size."""
    ours, theirs = ([np.bincount(r["truth"], r["pixels"], classes + 1) for r in records] for records in (a, b))
    return sum(not np.array_equal(*both) for both in zip(ours, theirs, strict=True))
