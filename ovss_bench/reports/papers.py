"""A paper's table (configs/table/*.yaml): its rows as our runs, its figures next to ours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from annotated_types import MinLen

from ..config.recipe import segmentor_names
from ..config.validation import Expected, validate, validate_all
from ..errors import OvssError, unknown
from ..files import CONFIGS, config_names, read_yaml, write_text
from ..runs.fairness import class_of, mixed
from ..runs.published import Filled, as_records, figures_of, figures_with, located, meant, settings, stand_ins, unconfirmed
from .csv import csv
from .markdown import markdown
from .table import Column, Figure, Row, Table, Text

if TYPE_CHECKING:
    import pandas as pd

PRINTED = ("method", "variant", "backbone", "pretrained", "extra_model")
Overrides = Annotated[dict[str, Any], Expected("overrides as {NAME: VALUE}")]


@dataclass(frozen=True)
class PaperRow:
    """A row of a table: our run (`segmentor`, `clip`, overrides in `recipe`, and overrides for single data sets in
    `per_dataset`), a row of the paper (`method` and the columns of results/published that identify it), or both. Runs with
    `first` precede the others and do not share their forward pass, so that a long table shows something early."""

    name: Filled
    segmentor: str | None = None
    clip: str | None = None
    recipe: Overrides = field(default_factory=dict)
    per_dataset: Annotated[dict[str, Overrides], Expected("{DATASET: {NAME: VALUE}}")] = field(default_factory=dict)
    first: bool = False
    method: str | None = None
    variant: str | None = None
    backbone: str | None = None
    pretrained: str | None = None
    extra_model: str | None = None

    def overrides(self, dataset: str) -> dict[str, Any]:
        """The recipe overrides of the run on a data set."""
        return self.recipe | self.per_dataset.get(dataset, {})

    def printed(self) -> pd.DataFrame:
        """The published figures of the row on all data sets; empty if the row names no method."""
        columns = {column: getattr(self, column) for column in PRINTED}
        return figures_with(**{"method": ""} | {column: value for column, value in columns.items() if value is not None})


@dataclass(frozen=True)
class PaperTable:
    """`rows` by `datasets`, and the `averages` that the paper reports: name -> data sets."""

    name: str
    title: str
    source: str
    datasets: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    averages: dict[str, list[str]]

    def figures(self, row: PaperRow, dataset: str) -> list[dict[str, Any]]:
        """All published figures for a cell: first those of the paper's row, then those published elsewhere for the same run.
        `comparable`: our run should reproduce the figure; otherwise its settings differ or are unknown."""
        same = figures_of(row.segmentor, row.clip, dataset, row.overrides(dataset)) if row.segmentor else []
        printed = row.printed()
        figures = as_records(printed[printed["dataset"] == dataset])
        figures += [figure for figure in same if figure not in figures]
        return [figure | {"comparable": figure in same} for figure in figures]


def load_table(name: str | Path) -> PaperTable:
    """Loads a table of configs/table by name, or a YAML file in the same layout. Raises OvssError if the table is invalid."""
    path = CONFIGS / "table" / f"{name}.yaml"
    if str(name) not in config_names("table"):
        path = Path(name)
        if not path.is_file():
            raise unknown("table (neither an entry of configs/table nor a file)", name, config_names("table"))
    content = read_yaml(path, "table")
    with located(f"table {path}"):
        return _table(path.stem, content)


def side_by_side(table: PaperTable, results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A line per row and column of the table: `ours` (NaN without a complete result of the run), the sources that a stand-in
    replaced (`stood_in`), which settings are `unconfirmed`, the `supervision` of our run, `published` (the first figure of
    the cell), the `difference` in points if the two are comparable, `second_hand`, `source`, and `also`: other figures
    published for the cell.

    The averages of each row follow its data sets. They are NaN if a member is missing.
    """
    import pandas as pd

    lines = []
    for row in table.rows:
        cells = {dataset: _cell(table, row, dataset, results) for dataset in table.datasets}
        lines += [{"row": row.name, "column": dataset, "average": False, **cell} for dataset, cell in cells.items()]
        for name, columns in table.averages.items():
            values = pd.DataFrame([cells[column] for column in columns])[["ours", "published", "difference"]]
            mean = values.astype(float).mean(skipna=False).to_dict()
            kinds = {column: cells[column]["supervision"] for column in columns if cells[column]["supervision"]}
            mixture = (mixed(kinds) or next(iter(kinds.values()), "")) if mean["ours"] == mean["ours"] else ""
            doubts = "; ".join(dict.fromkeys(filter(None, (cells[c]["unconfirmed"] for c in columns)))) if mixture else ""
            marks = {"supervision": mixture, "unconfirmed": doubts}
            lines.append({"row": row.name, "column": name, "average": True, **mean, **marks, "also": ""})
    frame = pd.DataFrame(lines, columns=["row", "column", "average", *_cell(table, table.rows[0], table.datasets[0], [])])
    frame["difference"] = frame["difference"].astype(float).round(2)
    return frame


def write_paper(table: PaperTable, results: Sequence[Mapping[str, Any]], folder: Path) -> Table:
    """Writes table_<name>.csv, a line per cell with sources, and table_<name>.md in the layout of the paper. Returns the
    latter's table."""
    cells = side_by_side(table, results)
    view = paper_view(table, cells)
    write_text(folder / f"table_{table.name}.csv", csv(Table.of(cells.to_dict("records"))))
    write_text(folder / f"table_{table.name}.md", markdown(view))
    return view


def paper_view(table: PaperTable, cells: pd.DataFrame) -> Table:
    """The `cells` of `side_by_side` in the layout of the paper: a row per run, a column per data set and average."""
    columns = [Column("ours (published, difference)")]
    columns += [Column(dataset, right=True) for dataset in table.datasets]
    columns += [Column(average, right=True, average=True) for average in table.averages]
    rows, also, doubts = [], [], {}
    for name, of_row in cells.groupby("row", sort=False):
        figures: list[Figure] = []
        for cell in of_row.astype(object).where(of_row.notna(), None).to_dict("records"):
            figures.append(Figure(cell["ours"], published=cell["published"], difference=cell["difference"]))
            if cell["stood_in"]:
                figures[-1].notes.append(f"with a stand-in for {cell['stood_in']}")
            if cell["supervision"] not in ("", "none", None):
                figures[-1].notes.append(cell["supervision"] if cell["average"] else f"supervision: {cell['supervision']}")
            if cell["unconfirmed"]:
                figures[-1].notes.append("with unconfirmed settings")
                doubts[cell["unconfirmed"]] = None
            if cell["also"]:
                also.append(f"Also published for {name} on {cell['column']}: {cell['also']}")
        rows.append(Row([Text(str(name)), *figures]))
    return Table(columns, rows, table.title, remarks=(f"Published: {table.source}", *doubts, *also))


def _cell(table: PaperTable, row: PaperRow, dataset: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first, *others = table.figures(row, dataset) or [{"miou": math.nan, "metric": "mIoU", "comparable": False}]
    result = _result(row, dataset, results) or {"metrics": {}}
    stood_in, doubts = ", ".join(stand_ins(result)), "; ".join(unconfirmed(result) if result["metrics"] else ())
    ours = result["metrics"].get(first["metric"] if first["comparable"] else "mIoU")
    ours = math.nan if ours is None else float(ours)
    return {
        "ours": ours,
        "stood_in": stood_in,
        "unconfirmed": doubts,
        "supervision": class_of(result),
        "published": first["miou"],
        "difference": ours - first["miou"] if first["comparable"] and not (stood_in or doubts) else math.nan,
        "second_hand": first.get("second_hand"),
        "source": first.get("source"),
        "also": "; ".join(f"{other['miou']:g} ({other['source']})" for other in others if other["miou"] != first["miou"]),
    }


def _result(row: PaperRow, dataset: str, results: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The complete result of a cell's run, if there is one."""
    run = row.segmentor, row.clip, dataset
    for result in results:
        same = (result["segmentor"], result["clip"], result["dataset"]) == run and result["protocol"] == "paper"
        if same and not result["partial"] and settings(*run, meant(result)) == settings(*run, row.overrides(dataset)):
            return result
    return None


# The files

Names = Annotated[list[str], MinLen(1), Expected("a list of names")]
KEYS = {
    "title": Filled,
    "source": Filled,
    "datasets": Names,
    "rows": Annotated[list[Any], MinLen(1), Expected("a list of rows")],
    "averages": Annotated[dict[str, Names], Expected("{NAME: [DATASET, ...]}")],
}
ROW = get_type_hints(PaperRow, include_extras=True)


def _table(name: str, content: Any) -> PaperTable:
    if not isinstance(content, dict):
        raise OvssError(f"expected {', '.join(KEYS)}.")
    values = validate_all(dict.fromkeys(KEYS) | {"averages": {}} | content, KEYS, "key")
    datasets, averages = values["datasets"], values["averages"]
    _known("dataset", datasets, config_names("dataset"))
    for average, members in averages.items():
        _known(f"column of the average '{average}'", members, datasets)
    rows = tuple(_row(number, row, datasets) for number, row in enumerate(values["rows"], 1))
    for what, names in {"row": [row.name for row in rows], "dataset": datasets, "average": [*averages, *datasets]}.items():
        if repeated := [name for name in names if names.count(name) > 1]:
            raise OvssError(f"{what} '{repeated[0]}' occurs twice.")
    return PaperTable(name, values["title"], values["source"], tuple(datasets), rows, averages)


def _row(number: int, content: Any, datasets: Sequence[str]) -> PaperRow:
    content = validate(f"row {number}", content, Annotated[dict[str, Any], Expected("{name: NAME, ...}")])
    with located(f"row '{content['name']}'" if content.get("name") else f"row {number}"):
        row = PaperRow(**validate_all({"name": None} | content, ROW, "key"))
        _known("key of per_dataset", row.per_dataset, datasets)
        if row.segmentor is None:
            if row.method is None:
                raise OvssError("it names neither a segmentor with its clip nor a method.")
            if row.clip or row.recipe or row.per_dataset or row.first:
                raise OvssError("clip, recipe, per_dataset and first need a segmentor.")
        else:
            _known("segmentor", [row.segmentor.partition("+")[0]], segmentor_names())
            _known("clip", [row.clip], config_names("clip"))
            for dataset in datasets:
                settings(row.segmentor, row.clip, dataset, row.overrides(dataset))
        if row.method is None and any(getattr(row, column) is not None for column in PRINTED):
            raise OvssError(f"{', '.join(PRINTED[1:])} need a method.")
        if row.method is not None and not row.printed()["dataset"].isin(datasets).any():
            raise OvssError(f"results/published has no such figure. Check {', '.join(PRINTED)}.")
        return row


def _known(kind: str, names: Iterable[Any], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise unknown(kind, name, known)
