"""Tables of results as in papers: a row per segmentor, a column per data set, averages, and footnotes that qualify numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..datasets.config import facts_of
from ..datasets.suites import Average, Suite, mean_of
from ..errors import OvssError, unknown
from ..evaluation.metrics import RULES
from ..runs.fairness import class_of, mark_of, mixed, order_of
from ..runs.published import stand_ins, unconfirmed
from ..runs.store import read_counts, read_result
from .results import seen_notes
from .table import Cell, Column, Figure, Row, Table, Text

Results = Mapping[Path, Mapping[str, Any]]
TAGS = ("supervision", "target_images_seen", "target_names_seen")  # fairness tags that select results


def select(results: Results, chosen: Mapping[str, Sequence[str]], partial: bool) -> dict[Path, Mapping[str, Any]]:
    """The results with the `chosen` segmentors, CLIPs, fairness tags, ... Raises OvssError for a name that no result has, and
    if no result is left."""

    def value(result: Mapping[str, Any], key: str) -> str:
        return result["fairness"][key] if key in TAGS else result[key]

    for key, names in chosen.items():
        for name in names:
            known = {value(result, key) for result in results.values()}
            if name not in known:
                raise unknown(f"{key} among the results", name, known)
    if not results:
        raise OvssError("none of the results can be read.")
    left = {path: r for path, r in results.items() if all(not names or value(r, key) in names for key, names in chosen.items())}
    if not left:
        raise OvssError("no result matches all filters.")
    if complete := {path: result for path, result in left.items() if partial or not result["partial"]}:
        return complete
    raise OvssError(f"all {len(left)} matching results are partial. partial=true shows them, marked.")


def interval_of(path: Path, metric: str) -> tuple[float, float] | None:
    """The 95 % interval of a result's metric in percent, from the counts beside it; None for metrics that are not computed from
    the confusion matrix of all images. Raises OvssError if the counts are missing or damaged."""
    if metric not in RULES:
        return None
    from ..evaluation import bootstrap

    result = read_result(path)
    records, *_ = read_counts(path.with_suffix(".npz"), result["fingerprint"], len(result["per_class"]))
    found = bootstrap.interval(records.values(), len(result["per_class"]), metric, facts_of(result["dataset"]))
    ours = result["metrics"].get(metric)
    same = ours is not None and abs(100 * found.value - ours) < 1e-4  # else the facts of the data set have changed
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
) -> Table:
    """The table of the results on the data sets of a suite, or on `datasets`, or on all.

    `metric`: of all columns; by default mIoU, or the metric that the suite's averages use for a data set. `interval`: returns
    the interval of a result file and a metric. Raises OvssError if nothing is left.
    """
    known = {name for result in results.values() for name in result["metrics"]}
    if metric is not None and metric not in known:
        raise unknown("metric", metric, known)
    averages = [Average(a.name, a.members, metric or a.metric) for a in suite.averages] if suite else []
    metric_of = {member: average.metric for average in reversed(averages) for member in average.members}
    names = suite.datasets if suite else datasets or sorted({result["dataset"] for result in results.values()})
    columns = [Column(name, metric_of.get(name, metric or "mIoU"), right=True) for name in names]
    chosen, older = _newest(results, names)
    if not chosen:
        raise OvssError(f"none of the {len(results)} results is on {', '.join(names)}.")
    shown = {path: results[path] for cells in chosen.values() for path in cells.values()}
    notes, doubts = provenance_notes(shown), {doubt for result in shown.values() for doubt in unconfirmed(result)}
    rows = []
    for (clip, protocol, supervision, segmentor, *qualifiers), paths in chosen.items():
        figures = []
        for column in columns:
            path = paths.get(column.name)
            figure = _figure(results[path], column.metric, notes[path], published) if path else Figure()
            if interval and path and figure.value is not None:
                figure.interval = interval(path, column.metric)
            figures.append(figure)
        label = Text(segmentor, [*filter(None, qualifiers), *_lifted_notes(figures)])
        figures += _averages(averages, columns, figures, doubts)
        rows.append(Row([label, Text(clip), Text(protocol), Text(supervision), *figures], group=(clip, protocol, supervision)))
    columns += [Column(average.name, average.metric, right=True, average=True) for average in averages]
    labels = [Column("segmentor"), Column("clip", common=True), Column("protocol", common=True)]
    labels.append(Column("supervision", common=True, hidden=not any(row.group[2] for row in rows)))
    table = Table([*labels, *columns], rows, digits=digits, noted=True)
    measured = table.metrics[0] if len(table.metrics) == 1 else "the metric of each column"
    title = f"{suite.full_name if suite else 'Results'}: {measured} in percent"
    remarks = _remarks([figure for row in rows for figure in row.cells[len(labels) :]], _rank(table), published, older)
    return replace(table, title=title, remarks=remarks).collapsed()


def _remarks(figures: Sequence[Figure], ranked: bool, published: bool, older: int) -> tuple[str, ...]:
    remarks = ["Best bold, second underlined, among the rows of the same CLIP, protocol and supervision."] if ranked else []
    if any(figure.published is not None for figure in figures):
        remarks.append("In parentheses: the published figure, and the difference of ours from it.")
    elif published:
        remarks.append("No figure is published for any of these runs.")
    if any(figure.interval for figure in figures):
        remarks.append("In brackets: 95 % confidence intervals over the sampling of images (evaluation/bootstrap.py).")
    if older:
        remarks.append(f"Left out: older results with the same settings ({older}).")
    return tuple(remarks)


def _newest(results: Results, datasets: Sequence[str]) -> tuple[dict[tuple[str, ...], dict[str, Path]], int]:
    """The newest complete file of each row and data set, or else the newest partial one; and the number of other files."""
    cells: dict[tuple[str, ...], dict[str, list[Path]]] = {}
    for path, result in results.items():
        if result["dataset"] in datasets:
            cells.setdefault(_key(result), {}).setdefault(result["dataset"], []).append(path)

    def age(path: Path) -> tuple:
        result = results[path]
        return not result["partial"], result["timing"]["started"], result["fingerprint"]

    def in_order(key: tuple[str, ...]) -> tuple:
        clip, protocol, supervision, *others = key
        return clip, protocol, order_of(supervision), *others

    chosen = {key: {name: max(paths, key=age) for name, paths in cells[key].items()} for key in sorted(cells, key=in_order)}
    return chosen, sum(len(paths) - 1 for row in cells.values() for paths in row.values())


def _key(result: Mapping[str, Any]) -> tuple[str, ...]:
    """The key of a row. Overrides and stand-ins become its footnotes."""
    overridden = ", ".join(f"{name}={value}" for name, value in result["overridden"].items())
    kinds = ", ".join(stand_ins(result))
    notes = (f"overridden: {overridden}" if overridden else "", f"stand-in {kinds}" if kinds else "")
    return result["clip"], result["protocol"], mark_of(result), result["segmentor"], *notes


def provenance_notes(results: Results) -> dict[Path, list[str]]:
    """How the provenance of each result differs from that of most: packages, source, precision, weights, data files."""
    facts = {path: _facts(result) for path, result in results.items()}
    values: dict[tuple[str, str], Counter] = {}
    for of_result in facts.values():
        for fact, value in of_result.items():
            values.setdefault(fact, Counter())[value] += 1
    usual = {fact: min(counts, key=lambda value, counts=counts: (-counts[value], value)) for fact, counts in values.items()}
    notes = {}
    for path, of_result in facts.items():
        differing: dict[str, list[str]] = {}
        for (kind, name), value in of_result.items():
            if value != usual[kind, name]:
                differing.setdefault(kind, []).append(f"{name} {value} instead of {usual[kind, name]}".strip())
        notes[path] = [f"{kind} {', '.join(texts)}" for kind, texts in differing.items()]
    return notes


def _facts(result: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """The compared provenance: (kind, name) -> value."""
    provenance = result["provenance"]
    code = provenance.get("code") or {"core": provenance["source_digest"]}  # older results have one digest for all files
    return {
        ("precision", ""): result["precision"],
        **{("source digest", f"of {name}"): digest[:12] for name, digest in sorted(code.items())},
        ("weights digest", f"of {result['clip']}"): result["weights_digest"][:12],
        ("fingerprint of the data set", result["dataset"]): result["dataset_fingerprint"][:12],
        **{("packages", name): str(version) for name, version in sorted(provenance["packages"].items())},
    }


def _figure(result: Mapping[str, Any], metric: str, notes: Sequence[str], published: bool) -> Figure:
    cell = Figure(result["metrics"].get(metric), partial=result["partial"], notes=list(notes), kind=class_of(result))
    if cell.partial:
        images = result["images"]
        cell.notes.insert(0, f"partial: {images['evaluated']} of {images['expected']} images")
    cell.notes += [*seen_notes(result), *unconfirmed(result)]
    if figures := result["published"]["figures"] if published else []:
        figure = next((figure for figure in figures if figure["metric"] == metric), figures[0])
        cell.published, cell.difference = figure["miou"], figure["difference"]
        if figure["metric"] != metric:
            cell.notes.append(f"published as {figure['metric']}; the difference is in that metric")
        if figure["second_hand"]:
            cell.notes.append(f"published by others: {figure['source']}")
    return cell


def _lifted_notes(figures: Sequence[Figure]) -> list[str]:
    """Moves the notes that all figures of a row share to the row."""
    present = [figure for figure in figures if figure.value is not None]
    lifted = [note for note in (present[0].notes if present else ()) if all(note in figure.notes for figure in present)]
    for figure in present:
        figure.notes = [note for note in figure.notes if note not in lifted]
    return lifted


def _averages(
    averages: Sequence[Average], columns: Sequence[Column], figures: Sequence[Figure], doubts: Collection[str]
) -> list[Figure]:
    """The averages of a row. An average is empty if a member is missing, and has a comparison only if all members have one.
    It repeats those notes of its members that are `doubts`."""
    by_column = {column.name: (column.metric, figure) for column, figure in zip(columns, figures, strict=True)}

    def means(name: str) -> list[float | None]:
        values = {(dataset, metric): getattr(figure, name) for dataset, (metric, figure) in by_column.items()}
        return [mean for mean, _ in mean_of(averages, values).values()]

    def members(average: Average) -> set[str]:
        inner = {other.name: other for other in averages}
        return {name for member in average.members for name in (members(inner[member]) if member in inner else [member])}

    result = []
    for average, value, *compared in zip(averages, *map(means, ("value", "published", "difference")), strict=True):
        inside = {name: by_column[name][1] for name in by_column if value is not None and name in members(average)}
        partial, kinds = any(figure.partial for figure in inside.values()), {name: f.kind for name, f in inside.items()}
        notes = ["average of partial results"] * partial + [note for note in [mixed(kinds)] if note]
        notes += dict.fromkeys(note for figure in inside.values() for note in figure.notes if note in doubts)
        result.append(Figure(value, None, *compared, partial, notes=notes, kind=" + ".join(sorted(set(kinds.values())))))
    return result


def _rank(table: Table) -> bool:
    """Ranks the rounded, complete figures of each column within their group and kind. Returns whether any were ranked."""
    found = False
    for group in table.groups():
        for ranked in (kind for cells in zip(*(row.cells for row in group), strict=True) for kind in _kinds(cells)):
            best = sorted({cell.rounded(table.digits) for cell in ranked}, reverse=True)[:2]
            if len(ranked) < 2:
                continue
            found = True
            for cell in ranked:
                value = cell.rounded(table.digits)
                cell.rank = best.index(value) + 1 if value in best else None
    return found


def _kinds(cells: Sequence[Cell]) -> list[list[Figure]]:
    """The complete figures of a column, grouped by kind."""
    kinds: dict[str, list[Figure]] = {}
    for cell in cells:
        if isinstance(cell, Figure) and cell.value is not None and not cell.partial:
            kinds.setdefault(cell.kind, []).append(cell)
    return list(kinds.values())
