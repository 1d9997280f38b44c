"""A paper's table as a grid (configs/table/*.yaml): its rows as runs of ours, its figures beside ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.recipe import segmentor_names
from ..errors import OvssError, unknown
from ..files import CONFIGS, config_names, read_yaml
from ..runs.published import figures_of, listed, meant, published_figures, settings, stand_ins, unconfirmed

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("title", "source", "datasets", "rows", "averages")
PRINTED = ("method", "variant", "backbone", "pretrained", "extra_model")


@dataclass(frozen=True)
class PaperRow:
    """A line of a table: a run of ours (`segmentor`, `clip`, overrides in `recipe` and for single data sets in `per_dataset`),
    or a line that was printed (`method` and what else tells it from others, as in results/published), or both."""

    name: str
    segmentor: str | None = None
    clip: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    per_dataset: dict[str, dict[str, Any]] = field(default_factory=dict)
    method: str | None = None
    variant: str | None = None
    backbone: str | None = None
    pretrained: str | None = None
    extra_model: str | None = None

    def overrides(self, dataset: str) -> dict[str, Any]:
        """What the run on a data set overrides in the segmentor's recipe."""
        return self.recipe | self.per_dataset.get(dataset, {})

    def printed(self) -> pd.DataFrame:
        """The published figures of the line on all data sets; none if the row names no method."""
        figures = published_figures()
        if self.method is None:
            return figures[:0]
        for column in PRINTED:
            if getattr(self, column) is not None:
                figures = figures[figures[column] == getattr(self, column)]
        return figures


@dataclass(frozen=True)
class PaperTable:
    """A grid of `rows` and `datasets`, and the `averages` that the paper takes: name -> columns."""

    name: str
    title: str
    source: str
    datasets: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    averages: dict[str, tuple[str, ...]]

    def figures(self, row: PaperRow, dataset: str) -> list[dict[str, Any]]:
        """Every figure of a cell: what is printed in the row's own line, then what is published elsewhere for the same run.
        `comparable` marks those that the run reproduces; of others the settings differ, or are not known."""
        same = figures_of(row.segmentor, row.clip, dataset, row.overrides(dataset)) if row.segmentor else []
        printed = row.printed()
        own = listed(printed[printed["dataset"] == dataset])
        figures = own + [figure for figure in same if figure not in own]
        return [figure | {"comparable": figure in same} for figure in figures]


def load_table(name: str | Path) -> PaperTable:
    """A table of configs/table by name, or a file in the same form. Raises OvssError for what is not in order in it."""
    path = CONFIGS / "table" / f"{name}.yaml"
    if str(name) not in config_names("table"):
        path = Path(name)
        if not path.is_file():
            raise unknown("table (neither an entry of configs/table nor a file)", name, config_names("table"))
    content = read_yaml(path, "table")
    try:
        return _table(path.stem, content)
    except OvssError as error:
        raise OvssError(f"table {path}: {error}") from error


def side_by_side(table: PaperTable, results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A line per row and column of the table: `ours` (NaN without a complete result of that run), for what something untrained
    `stood_in`, which settings are `unconfirmed`, `published` (the first figure of the cell), their `difference` in points where
    they are comparable and nothing stood in or is unconfirmed,
    `second_hand`, `source`, and `also`, what others state for the same cell.

    Averages follow the columns of each row. They are NaN unless all their columns are there.
    """
    import pandas as pd

    lines = []
    for row in table.rows:
        cells = {dataset: _cell(table, row, dataset, results) for dataset in table.datasets}
        lines += [{"row": row.name, "column": dataset, "average": False, **cell} for dataset, cell in cells.items()]
        for name, columns in table.averages.items():
            values = pd.DataFrame([cells[column] for column in columns])[["ours", "published", "difference"]]
            mean = values.astype(float).mean(skipna=False).to_dict()
            lines.append({"row": row.name, "column": name, "average": True, **mean, "also": ""})
    frame = pd.DataFrame(lines, columns=["row", "column", "average", *_cell(table, table.rows[0], table.datasets[0], [])])
    frame["difference"] = frame["difference"].astype(float).round(2)
    return frame


def _cell(table: PaperTable, row: PaperRow, dataset: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    figures = table.figures(row, dataset)
    first = figures[0] if figures else {"miou": math.nan, "metric": "mIoU", "comparable": False}
    result = _result(row, dataset, results)
    stood_in = ", ".join(stand_ins(result)) if result else ""
    doubts = "; ".join(unconfirmed(result)) if result else ""
    ours = result["metrics"].get(first["metric"] if first["comparable"] else "mIoU") if result else None
    ours = math.nan if ours is None else float(ours)
    return {
        "ours": ours,
        "stood_in": stood_in,
        "unconfirmed": doubts,
        "published": first["miou"],
        "difference": ours - first["miou"] if first["comparable"] and not (stood_in or doubts) else math.nan,
        "second_hand": first.get("second_hand"),
        "source": first.get("source"),
        "also": "; ".join(
            f"{figure['miou']:g} ({figure['source']})" for figure in figures[1:] if figure["miou"] != first["miou"]
        ),
    }


def _result(row: PaperRow, dataset: str, results: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The result of the run that a cell stands for, if there is one on all images."""
    for result in results:
        if (result["segmentor"], result["clip"], result["dataset"]) != (row.segmentor, row.clip, dataset):
            continue
        if result["protocol"] != "paper" or result["partial"]:
            continue
        run = (row.segmentor, row.clip, dataset)
        if settings(*run, meant(result)) == settings(*run, row.overrides(dataset)):
            return result
    return None


def _table(name: str, content: Any) -> PaperTable:
    """What a file says, checked."""
    if not isinstance(content, dict):
        raise OvssError(f"expected {', '.join(KEYS)}.")
    for key in content:
        if key not in KEYS:
            raise unknown("key", key, KEYS)
    for key in KEYS[:4]:
        if not content.get(key):
            raise OvssError(f"{key} is missing.")
    datasets, averages = content["datasets"], content.get("averages") or {}
    if not (isinstance(datasets, list) and isinstance(content["rows"], list) and isinstance(averages, dict)):
        raise OvssError("expected lists of datasets and of rows, and averages as name: [columns].")
    for dataset in datasets:
        if dataset not in config_names("dataset"):
            raise unknown("dataset", dataset, config_names("dataset"))
    for average, columns in averages.items():
        if not isinstance(columns, list) or not columns:
            raise OvssError(f"average '{average}': expected a list of columns.")
        for column in columns:
            if column not in datasets:
                raise unknown(f"column of the average '{average}'", column, datasets)
    rows = tuple(_row(number, row, datasets) for number, row in enumerate(content["rows"], 1))
    for what, names in {"row": [row.name for row in rows], "dataset": datasets, "average": [*averages, *datasets]}.items():
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise OvssError(f"{what} '{twice[0]}' is there twice.")
    averages = {average: tuple(columns) for average, columns in averages.items()}
    return PaperTable(name, content["title"], content["source"], tuple(datasets), rows, averages)


def _row(number: int, content: Any, datasets: Sequence[str]) -> PaperRow:
    if not isinstance(content, dict) or not content.get("name"):
        raise OvssError(f"row {number}: name is missing.")
    where, known = f"row '{content['name']}'", [f.name for f in fields(PaperRow)]
    for key in content:
        if key not in known:
            raise unknown(f"key of {where}", key, known)
    row = PaperRow(**content)
    if not all(isinstance(overrides, dict) for overrides in (row.recipe, row.per_dataset, *row.per_dataset.values())):
        raise OvssError(f"{where}: expected overrides as {{name: value}} in recipe, and those of each data set in per_dataset.")
    if row.segmentor is None and row.method is None:
        raise OvssError(f"{where} names neither a segmentor with its clip nor a method.")
    for dataset in row.per_dataset:
        if dataset not in datasets:
            raise unknown(f"per_dataset of {where}", dataset, datasets)
    if row.segmentor is None:
        if row.clip or row.recipe or row.per_dataset:
            raise OvssError(f"{where}: clip, recipe and per_dataset need a segmentor.")
    else:
        if row.segmentor not in segmentor_names():
            raise unknown(f"segmentor of {where}", row.segmentor, segmentor_names())
        if row.clip not in config_names("clip"):
            raise unknown(f"clip of {where}", row.clip, config_names("clip"))
        for dataset in datasets:
            try:
                settings(row.segmentor, row.clip, dataset, row.overrides(dataset))
            except OvssError as error:
                raise OvssError(f"{where}: {error}") from error
    if row.method is None and any(getattr(row, column) is not None for column in PRINTED):
        raise OvssError(f"{where}: {', '.join(PRINTED[1:])} need a method.")
    if row.method is not None and not row.printed()["dataset"].isin(datasets).any():
        raise OvssError(f"{where}: results/published has no such figure. Check {', '.join(PRINTED)}.")
    return row
