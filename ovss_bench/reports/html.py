"""Tables in HTML, and a self-contained page of results: a sortable table, and classes, confusions and images of each run.

The script of the page builds everything from one JSON block (templates/page.html). Names reach it as text only: in the block
`<`, `>` and `&` are escaped, the script sets no HTML, and the page's policy allows no other script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.base import load_dataset
from ..datasets.config import dataset_config
from ..errors import OvssError
from ..evaluation.bootstrap import interval
from ..evaluation.confusion import total
from ..evaluation.metrics import areas, divide
from ..files import below, write_text
from ..runs.fairness import class_of, mark_of
from ..runs.load import result_paths
from ..runs.published import unconfirmed
from ..runs.schema import schema
from ..runs.store import maps_folder, read_counts, read_result
from .overlays import ERROR, Pictures, choose, image_ious, side_for
from .results import marked_name, results_table, seen_notes
from .table import Markup, Table
from .templates import FOLDER, render

DETAILED = 24  # the latest runs, with intervals, confusions and pictures; more would make the page large and slow
CONFUSED = 14  # classes of the heat map
PAIRS = 12  # confusions in the list
ROW = ("segmentor", "clip", "dataset", "protocol", "partial", "overridden", "sources", "fairness", "metrics")
MARKUP = Markup(escape, "<strong>{}</strong>", "<u>{}</u>", "<small>{}</small>", "<sup>{}</sup>")
# Fields shown elsewhere on the page; all others are listed as provenance.
ELSEWHERE = {"segmentor", "clip", "dataset", "protocol", "metrics", "partial", "overridden", "recipe", "per_class", "published"}


def html(table: Table) -> str:
    """A table as an HTML fragment, with remarks and footnotes below."""
    table = table.collapsed()
    groups = [[MARKUP.line(row, table) for row in group] for group in table.groups()]
    return render("table.html", table=table, head=MARKUP.head(table), groups=groups, notes=MARKUP.notes(table))


def write_html(
    results: str | Path | Iterable[Path],
    path: str | Path,
    *,
    data_root: str | Path | None = None,
    datasets: Sequence[str | Path] = (),
    images: int = 12,
    partial: bool = False,
    intervals: Mapping[Path, tuple[float, float] | None] | None = None,
    title: str = "ovss-bench results",
) -> Path:
    """Writes the page of a folder's results, or of result files. Raises OvssError if there is no result to show.

    Pictures of `images` images per run need its label maps (runtime.maps=true) and the data set, in `data_root` or one of the
    YAML files `datasets`. `intervals`: 95 % intervals of the mIoU in percent; those of the latest runs are computed anyway.
    """
    files = result_paths(results) if isinstance(results, str | Path) else list(results)
    page = Page(title, {dataset_config(file)[0]: file for file in datasets}, data_root, images)
    for file in files:
        try:
            result = read_result(file)
        except OvssError as error:
            page.notes.append(str(error))
            continue
        if partial or not result["partial"]:
            page.add(file, result, (intervals or {}).get(file))
    left_out = len(files) - len(page.runs) - len(page.notes)
    if not page.runs:
        only = f"{left_out} of {len(files)} results are partial (partial=true shows them), the others cannot be read"
        raise OvssError(f"there is no result to show: {only}.")
    if left_out:
        page.notes.append(f"{left_out} partial results are left out.")
    if len(page.runs) > DETAILED:
        page.notes.append(f"Only the latest {DETAILED} of {len(page.runs)} runs have intervals, confusions and pictures.")
    page.add_details()
    write_text(Path(path), page.text())
    return Path(path)


class Page:
    """Collects the content of the page. Recurring values (pictures, class names, ...) are numbered in `shared`, as JSON."""

    def __init__(self, title: str, datasets: Mapping[str, str | Path], data_root: str | Path | None, images: int) -> None:
        self.title, self.datasets, self.data_root, self.images = title, datasets, data_root, images
        self.notes: list[str] = []
        self.metrics: dict[str, None] = {}
        self.rows: list[dict[str, Any]] = []  # the fields of each result that the table needs
        self.runs: dict[str, dict[str, Any]] = {}
        self.details: dict[str, dict[str, Any]] = {}
        self.shared: dict[str, int] = {}
        self._started: dict[str, tuple[str, Path]] = {}
        self._pictures: dict[str, Pictures | OvssError] = {}

    def share(self, value: Any) -> int:
        return self.shared.setdefault(json.dumps(value), len(self.shared))

    def add(self, file: Path, result: Mapping[str, Any], bounds: tuple[float, float] | None) -> None:
        key = result["fingerprint"][:12]
        if copies := sum(known.startswith(key) for known in self.runs):
            key += f"-{copies + 1}"
        published = result["published"]
        first = next(iter(published["figures"]), {})
        rows = [(c["IoU"], c["Acc"], c["predicted"], c["true"]) for c in result["per_class"]]
        self.metrics |= dict.fromkeys(result["metrics"])
        doubts = unconfirmed(result)
        origin = {name: value for name, value in result["provenance"].items() if name == "unconfirmed"}
        self.rows.append({name: result[name] for name in ROW} | {"provenance": origin})
        self._started[key] = result["timing"]["started"], file
        self.runs[key] = {name: result[name] for name in ("segmentor", "clip", "dataset", "protocol")} | {
            "marks": "; ".join(filter(None, [marked_name(result).removeprefix(result["segmentor"]).strip(), *doubts])),
            "supervision": "; ".join([mark_of(result), *seen_notes(result)]),
            "kind": class_of(result),
            "images": result["images"]["evaluated"],
            "metrics": {name: _rounded(value) for name, value in result["metrics"].items()},
            "interval": bounds and [_rounded(float(end)) for end in bounds],
            "published": first.get("miou"),
            "difference": first.get("difference"),
            "figures": self.share(published["figures"]),
            "why_not": published["why_not"],
            "classes": self.share([c["class"] for c in result["per_class"]]),
            "per_class": [[_rounded(iou), _rounded(acc), *pixels] for iou, acc, *pixels in rows],
            "recipe": [self.share([name, _text(v["value"]), v["origin"]]) for name, v in result["recipe"].items()],
            "provenance": [self.share(line) for line in provenance_lines(file, result)],
        }

    def add_details(self) -> None:
        latest = sorted(self._started, key=lambda key: self._started[key])[-DETAILED:]
        side = side_for(self.images * len(latest))
        for key in sorted(latest, key=list(self.runs).index):
            file = self._started[key][1]
            self.details[key] = self._details(file, read_result(file), side)

    def _details(self, file: Path, result: Mapping[str, Any], side: int) -> dict[str, Any]:
        """Interval, confusions and pictures, or the reason why there are none."""
        classes = len(result["per_class"])
        try:
            counts, _, _ = read_counts(file.with_suffix(".npz"), result["fingerprint"], classes)
        except OvssError as error:
            return {"why_no_counts": str(error)}
        details: dict[str, Any] = {"confusions": confusions(total(counts.values(), classes))}
        bounds = interval(counts.values(), classes)
        ours = result["metrics"].get("mIoU")
        if ours is not None and abs(100 * bounds.value - ours) < 1e-4 and not math.isnan(bounds.low):
            details["interval"] = [round(100 * bounds.low, 2), round(100 * bounds.high, 2)]
        ious = image_ious(counts, classes)
        chosen = choose(ious, self.images, result["dataset_fingerprint"])
        recipe = {"resize": "none", "min_foreground": 0} | {name: v["value"] for name, v in result["recipe"].items()}
        pictures = self._pictures_of(file, result["dataset"], side)
        if isinstance(pictures, OvssError):
            details["why_no_pictures"] = str(pictures)
        else:
            details["colours"] = self.share([_colour(colour) for colour in pictures.colours[:classes].tolist()])

        def picture(image: str) -> dict[str, Any]:
            entry = {"id": image, "mIoU": round(ious[image], 2)}
            if isinstance(pictures, OvssError):
                return entry
            try:
                made = pictures.of(image, below(maps_folder(file), f"{image}.png"), recipe, counts[image])
            except OvssError as error:
                return entry | {"why_not": str(error)}
            return entry | {key: value if key == "classes" else self.share(value) for key, value in made.items()}

        return details | {"pictures": {kind: [picture(image) for image in images] for kind, images in chosen.items()}}

    def _pictures_of(self, file: Path, dataset: str, side: int) -> Pictures | OvssError:
        if not maps_folder(file).is_dir():
            return OvssError("Pictures need the run's label maps: repeat it with runtime.maps=true rerun=true.")
        if dataset not in self._pictures:
            try:
                self._pictures[dataset] = Pictures(load_dataset(self.datasets.get(dataset, dataset), self.data_root), side)
            except OvssError as error:
                self._pictures[dataset] = OvssError(f"Pictures need the data set. {error}")
        return self._pictures[dataset]

    def text(self) -> str:
        content = {
            "notes": self.notes,
            "metrics": list(self.metrics),
            "fields": dict(descriptions(schema())),
            "errors": [[name, _colour(colour)] for name, colour in ERROR.items()],
            "runs": self.runs,
            "details": self.details,
            "shared": list(map(json.loads, self.shared)),
        }
        block = json.dumps(content, separators=(",", ":"))
        style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
        escaped = block.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        parts = {"style": style, "script": script, "table": html(results_table(self.rows)), "data": escaped}
        return render("page.html", title=self.title, style_hash=_hash(style), script_hash=_hash(script), **parts)


def confusions(matrix: np.ndarray) -> dict[str, Any]:
    """The confusions in the (C+1, C+1) matrix of `confusion.total`: the costliest `pairs` as [class of the ground truth, of the
    prediction, percent of the pixels with that ground truth, percent of those with that prediction]; the `classes` in them;
    and `cells`, the percentages of each class's ground truth that are predicted as each of these.

    A confusion of n pixels costs n / union_t + n / union_p, by the unions of both classes. Class C is "no class".
    """
    correct, predicted, true = areas(matrix)
    union = np.append(predicted + true - correct, 0)
    wrong = matrix[:-1].astype(np.float64)
    np.fill_diagonal(wrong, 0)
    share = np.nan_to_num(100 * divide(matrix[:-1], true[:, None]))
    share_predicted = np.nan_to_num(100 * divide(matrix[:-1], matrix[:-1].sum(0)))
    cost = np.nan_to_num(divide(wrong, union[:-1, None])) + np.nan_to_num(divide(wrong, union), posinf=0)
    order = np.argsort(-cost, axis=None, kind="stable")[: CONFUSED**2]
    pairs = [(int(t), int(p)) for t, p in zip(*np.unravel_index(order, cost.shape), strict=True) if wrong[t, p]]
    chosen: set[int] = set()
    for pair in pairs:
        if len(chosen.union(pair)) <= CONFUSED:
            chosen.update(pair)
    columns = sorted(chosen)
    rows = [c for c in columns if c < len(true)]
    return {
        "pairs": [[t, p, *(round(float(each[t, p]), 1) for each in (share, share_predicted))] for t, p in pairs[:PAIRS]],
        "classes": columns,
        "cells": share[np.ix_(rows, columns)].round(1).tolist(),
    }


def provenance_lines(file: Path, result: Mapping[str, Any]) -> Iterator[list[str]]:
    """[field, value] of every field that is not shown elsewhere on the page."""

    def walk(name: str, value: Any) -> Iterator[list[str]]:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                yield from walk(f"{name}.{key}", inner)
        else:
            yield [name, _text(value)]

    yield ["file", str(file)]
    for key, value in result.items():
        if key not in ELSEWHERE:
            yield from walk(key, value)


def descriptions(part: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """The schema's descriptions of its fields, by dotted name."""
    for key, inner in part.get("properties", {}).items():
        if "description" in inner:
            yield above + key, inner["description"]
        yield from descriptions(inner, f"{above}{key}.")


def _colour(colour: Sequence[int]) -> str:
    return "#" + bytes(colour).hex()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
