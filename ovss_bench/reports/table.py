"""Tables of results in the layout of the papers: a row per segmentor, a column per data set, the averages of a suite, and
footnotes for whatever makes a number another one than it seems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from ..datasets.config import facts_of
from ..datasets.suites import Average, Suite, mean_of
from ..errors import OvssError, unknown
from ..evaluation.metrics import RULES
from ..runs.published import stand_ins, unconfirmed
from ..runs.store import read_counts, read_result

Results = Mapping[Path, Mapping[str, Any]]


@dataclass(frozen=True)
class Column:
    """A data set, or an average of some; its figures are of `metric`."""

    name: str
    metric: str
    average: bool = False


@dataclass
class Cell:
    """A figure in percent, None if there is none, and what it is held against; `rank` 1 is the best of its group, 2 the
    second."""

    value: float | None = None
    interval: tuple[float, float] | None = None
    published: float | None = None
    difference: float | None = None
    partial: bool = False
    rank: int | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Row:
    """What was run, as it can be told from other rows, and its cells in the order of the columns."""

    segmentor: str
    clip: str
    protocol: str
    notes: list[str]
    cells: list[Cell]


@dataclass(frozen=True)
class Report:
    """A table; `marks` are the footnotes of rows and cells with their letters, `remarks` are said about all of it."""

    title: str
    columns: list[Column]
    rows: list[Row]
    marks: dict[str, str]
    remarks: list[str]
    digits: int

    @property
    def labels(self) -> list[str]:
        """What heads the rows: what all of them have in common is in the caption instead."""
        return ["segmentor", *(name for name in ("clip", "protocol") if len({getattr(row, name) for row in self.rows}) > 1)]

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(column.metric for column in self.columns))

    def head(self, column: Column) -> str:
        """The name of a column, with its metric if the table has several."""
        return column.name if len(self.metrics) == 1 else f"{column.name} ({column.metric})"

    def groups(self) -> Iterator[list[Row]]:
        """Rows that compare: of the same CLIP and protocol."""
        for _, rows in groupby(self.rows, lambda row: (row.clip, row.protocol)):
            yield list(rows)

    @property
    def caption(self) -> str:
        metric = self.metrics[0] if len(self.metrics) == 1 else "the metric of each column"
        common = [f"{name} {getattr(self.rows[0], name)}" for name in ("clip", "protocol") if name not in self.labels]
        return "; ".join([f"{self.title}: {metric} in percent", *common]) + "."


def select(results: Results, chosen: Mapping[str, Sequence[str]], partial: bool) -> dict[Path, Mapping[str, Any]]:
    """The results with these segmentors, clips, ..., where any are given. Raises OvssError for names that no result has, and if
    nothing is left."""
    for key, names in chosen.items():
        for name in names:
            known = {result[key] for result in results.values()}
            if name not in known:
                raise unknown(f"{key} among the results", name, known)
    left = {path: r for path, r in results.items() if all(not names or r[key] in names for key, names in chosen.items())}
    complete = {path: result for path, result in left.items() if partial or not result["partial"]}
    if not complete:
        raise OvssError(
            f"{len(left)} results are chosen, but all are partial. partial=true shows them, marked."
            if left
            else ("no result can be read." if not results else "no result has all that is asked for.")
        )
    return complete


def interval_of(path: Path, metric: str) -> tuple[float, float] | None:
    """The 95 % interval of a result's metric in percent, from the counts beside it; None for metrics that are no rule of whole
    matrices. Raises OvssError if the counts are missing or damaged."""
    if metric not in RULES:
        return None
    from ..evaluation import bootstrap

    result = read_result(path)
    records, *_ = read_counts(path.with_suffix(".npz"), result["fingerprint"], len(result["per_class"]))
    found = bootstrap.interval(records.values(), len(result["per_class"]), metric, facts_of(result["dataset"]))
    ours = result["metrics"].get(metric)
    same = ours is not None and abs(100 * found.value - ours) < 1e-4  # else the facts are not those of the run
    return (100 * found.low, 100 * found.high) if same and found.low == found.low else None


def make_report(
    results: Results,
    suite: Suite | None = None,
    *,
    datasets: Sequence[str] = (),
    metric: str | None = None,
    digits: int = 2,
    published: bool = False,
    interval: Callable[[Path, str], tuple[float, float] | None] | None = None,
) -> Report:
    """The table of the results on the data sets of a suite, or on `datasets`, or on all.

    `metric`: of all columns; else mIoU, or what the averages of the suite take of a data set. `interval`: gives that of a
    result file and a metric. Raises OvssError if nothing is left.
    """
    known = {name for result in results.values() for name in result["metrics"]}
    if metric is not None and metric not in known:
        raise unknown("metric", metric, known)
    averages = [Average(a.name, a.members, metric or a.metric) for a in suite.averages] if suite else []
    of = {member: average.metric for average in reversed(averages) for member in average.members}
    names = suite.datasets if suite else datasets or sorted({result["dataset"] for result in results.values()})
    columns = [Column(name, of.get(name, metric or "mIoU")) for name in names]
    chosen, older = _newest(results, names)
    if not chosen:
        raise OvssError(f"none of {len(results)} results is on {', '.join(names)}.")
    notes = provenance_notes({path: results[path] for cells in chosen.values() for path in cells.values()})
    rows = []
    for key, cells in chosen.items():
        clip, protocol, segmentor, *own = key
        row = Row(segmentor, clip, protocol, [note for note in own if note], [])
        for column in columns:
            path = cells.get(column.name)
            cell = _cell(results[path], column.metric, notes[path], published) if path else Cell()
            if interval and path and cell.value is not None:
                cell.interval = interval(path, column.metric)
            row.cells.append(cell)
        _lift_notes(row)
        row.cells += _averages(averages, columns, row.cells)
        rows.append(row)
    columns += [Column(average.name, average.metric, average=True) for average in averages]
    remarks = _remarks([cell for row in rows for cell in row.cells], _rank(rows, digits), published, older)
    noted = (notes for row in rows for notes in (row.notes, *(cell.notes for cell in row.cells)))
    used = dict.fromkeys(note for notes in noted for note in notes)
    marks = {note: _letters(number) for number, note in enumerate(used)}
    return Report(suite.full_name if suite else "Results", columns, rows, marks, remarks, digits)


def _remarks(cells: Sequence[Cell], ranked: bool, published: bool, older: int) -> list[str]:
    """How the table is to be read."""
    remarks = ["Best bold, second underlined, among the rows of the same CLIP and protocol."] if ranked else []
    if any(cell.published is not None for cell in cells):
        remarks.append("In parentheses: the published figure, and what ours is above it.")
    elif published:
        remarks.append("No figure is published for any of these runs.")
    if any(cell.interval for cell in cells):
        remarks.append("In brackets: 95 % intervals, what other samples of images could have given (evaluation/bootstrap.py).")
    if older:
        remarks.append(f"Left out: older results of what is shown ({older}).")
    return remarks


def _newest(results: Results, datasets: Sequence[str]) -> tuple[dict[tuple[str, ...], dict[str, Path]], int]:
    """Of each row and data set the file that counts, the last one that is not partial; and how many others there were."""
    cells: dict[tuple[str, ...], dict[str, list[Path]]] = {}
    for path, result in results.items():
        if result["dataset"] in datasets:
            cells.setdefault(_key(result), {}).setdefault(result["dataset"], []).append(path)

    def age(path: Path) -> tuple:
        result = results[path]
        return not result["partial"], result["timing"]["started"], result["fingerprint"]

    chosen = {key: {name: max(paths, key=age) for name, paths in cells[key].items()} for key in sorted(cells)}
    return chosen, sum(len(paths) - 1 for row in cells.values() for paths in row.values())


def _key(result: Mapping[str, Any]) -> tuple[str, ...]:
    """What makes a row: also settings and stand-ins, which become its footnotes."""
    overridden = ", ".join(f"{name}={value}" for name, value in result["overridden"].items())
    kinds = ", ".join(stand_ins(result))
    notes = (f"overridden: {overridden}" if overridden else "", f"stand-in {kinds}" if kinds else "")
    return result["clip"], result["protocol"], result["segmentor"], *notes


def provenance_notes(results: Results) -> dict[Path, list[str]]:
    """For each result in what its provenance is another than that of most: packages, source, precision, the weights of a
    CLIP, the files of a data set."""
    facts = {path: _facts(result) for path, result in results.items()}
    values: dict[tuple[str, str], Counter] = {}
    for own in facts.values():
        for fact, value in own.items():
            values.setdefault(fact, Counter())[value] += 1
    usual = {fact: min(counts, key=lambda value, counts=counts: (-counts[value], value)) for fact, counts in values.items()}
    notes = {}
    for path, own in facts.items():
        different: dict[str, list[str]] = {}
        for fact, value in own.items():
            if value != usual[fact]:
                different.setdefault(fact[0], []).append(f"{fact[1]} {value} instead of {usual[fact]}".strip())
        notes[path] = [f"{kind} {', '.join(texts)}" for kind, texts in different.items()]
    return notes


def _facts(result: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Kind and name of what is compared -> value."""
    provenance = result["provenance"]
    code = provenance.get("code") or {"core": provenance["source_digest"]}  # before there was one by file
    return {
        ("precision", ""): result["precision"],
        **{("source digest", f"of {name}"): digest[:12] for name, digest in sorted(code.items())},
        ("weights digest", f"of {result['clip']}"): result["weights_digest"][:12],
        ("fingerprint of the data set", result["dataset"]): result["dataset_fingerprint"][:12],
        **{("packages", name): str(version) for name, version in sorted(provenance["packages"].items())},
    }


def _cell(result: Mapping[str, Any], metric: str, notes: Sequence[str], published: bool) -> Cell:
    cell = Cell(result["metrics"].get(metric), partial=result["partial"], notes=list(notes))
    if cell.partial:
        images = result["images"]
        cell.notes.insert(0, f"partial: {images['evaluated']} of {images['expected']} images")
    figures = result["published"]["figures"] if published else []
    if figures:
        figure = next((figure for figure in figures if figure["metric"] == metric), figures[0])
        cell.published, cell.difference = figure["miou"], figure["difference"]
        if figure["metric"] != metric:
            cell.notes.append(f"published, and held against ours, as {figure['metric']}")
        cell.notes += unconfirmed(result)
        if figure["second_hand"]:
            cell.notes.append(f"published by others: {figure['source']}")
    return cell


def _lift_notes(row: Row) -> None:
    """What is noted at every figure of a row is noted at the row."""
    cells = [cell for cell in row.cells if cell.value is not None]
    for note in [note for note in (cells[0].notes if cells else ()) if all(note in cell.notes for cell in cells)]:
        row.notes.append(note)
        for cell in cells:
            cell.notes.remove(note)


def _averages(averages: Sequence[Average], columns: Sequence[Column], cells: Sequence[Cell]) -> list[Cell]:
    """The averages of a row; none of what is not complete, and no comparison unless all members have one."""

    def means(name: str) -> list[float | None]:
        values = {(c.name, c.metric): getattr(cell, name) for c, cell in zip(columns, cells, strict=True)}
        return [mean for mean, _ in mean_of(averages, values).values()]

    def members(average: Average) -> set[str]:
        inner = {other.name: other for other in averages}
        return {name for member in average.members for name in (members(inner[member]) if member in inner else [member])}

    result = []
    for average, *values in zip(averages, means("value"), means("published"), means("difference"), strict=True):
        parts = [cell for column, cell in zip(columns, cells, strict=True) if column.name in members(average)]
        value, published, difference = values
        partial = value is not None and any(cell.partial for cell in parts)
        notes = ["average of partial results"] if partial else []
        result.append(Cell(value, None, published, difference, partial, notes=notes))
    return result


def _rank(rows: Sequence[Row], digits: int) -> bool:
    """Ranks the figures of each column as they are shown, those of partial results left out; whether there are any to rank."""
    found = False
    for _, group in groupby(rows, lambda row: (row.clip, row.protocol)):
        for column in zip(*(row.cells for row in group), strict=True):
            shown = [(round(cell.value, digits), cell) for cell in column if cell.value is not None and not cell.partial]
            if len(shown) < 2:
                continue
            best = sorted({value for value, _ in shown}, reverse=True)
            found = True
            for value, cell in shown:
                cell.rank = best.index(value) + 1 if value in best[:2] else None
    return found


def _letters(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    last = chr(ord("a") + number % 26)
    return last if number < 26 else _letters(number // 26 - 1) + last
