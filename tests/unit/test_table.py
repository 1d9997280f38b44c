"""The one model of tables: every table that a command shows is built with it, and every renderer shows every table."""

import csv
import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from end_to_end.tools import ROOT
from ovss_bench import progress
from ovss_bench.bench import view as bench
from ovss_bench.bench.ways import OFFICIAL
from ovss_bench.datasets.suites import load_suite
from ovss_bench.reports.compare_view import methods_table
from ovss_bench.reports.csv import csv as to_csv
from ovss_bench.reports.datasets import overview
from ovss_bench.reports.html import html
from ovss_bench.reports.latex import escape_latex, latex
from ovss_bench.reports.markdown import escape_markdown, markdown
from ovss_bench.reports.papers import load_table, paper_view, side_by_side
from ovss_bench.reports.report import make_report
from ovss_bench.reports.results import averages_table, results_table, write_averages
from ovss_bench.reports.table import Column, Figure, Row, Table, Text
from ovss_bench.reports.terminal import lines, terminal

NASTY = r"a|b & 5% _c_ <script>d</script> > *e* [/red] {f} \g"
RENDERERS = ("terminal", "lines", "markdown", "latex", "csv", "html")


def result(segmentor, dataset, miou, partial=False, **others):
    plain = {"clip": "vit_b16", "protocol": "paper", "overridden": {NASTY: NASTY}, "sources": {}, "precision": "fp32"}
    provenance = {"code": {"core": "0"}, "packages": {}}
    return plain | {
        "segmentor": segmentor, "dataset": dataset, "partial": partial, "metrics": {"mIoU": miou}, "provenance": provenance,
        "images": {"evaluated": 1, "expected": 2}, "weights_digest": "1", "dataset_fingerprint": "2", "fingerprint": segmentor,
        "published": {"figures": [], "why_not": ""}, "timing": {"started": "2026"},
    } | others  # fmt: skip


RESULTS = [result(NASTY, "voc21", 12.5), result("sclip", "voc21", 50.25), result("clip", NASTY, None, partial=True)]


def compared(dataset):
    run = {"segmentor": NASTY, "clip": NASTY, "dataset": dataset, "overridden": {NASTY: 1}, "partial": True, "mIoU": 40.0}
    return {"level": "different", "a": run, "b": run | {"mIoU": 41.5}, "difference": {"value": 1.5, "low": -2.0, "high": 3.0}}


def paper():
    """With a row of ours that stands in for something, and a name that no format may take for its own."""
    table = load_table("sclip")
    cells = side_by_side(table, []).replace({table.rows[0].name: NASTY})
    return paper_view(table, cells.assign(ours=41.0, stood_in=NASTY))


MEASURED = {
    "ratios": {OFFICIAL: {"median": 1.0, "least": 0.9, "most": 1.1}}, "seconds": {OFFICIAL: [2.0]}, "case": {"images": 2},
    "peak_memory_mib": {OFFICIAL: 3}, "agreement": {}, "stages": {"trunk": 1.0},
}  # fmt: skip
TABLES = {
    "results of an evaluation": lambda: results_table(RESULTS),
    "averages of a suite": lambda: averages_table(load_suite("sclip8"), RESULTS),
    "report": lambda: make_report(dict(enumerate(RESULTS)), load_suite("sclip8"), published=True),
    "report with intervals": lambda: make_report(dict(enumerate(RESULTS)), interval=lambda *_: (1.0, 2.0)),
    "paper": paper,
    "cells of a paper": lambda: Table.of(side_by_side(load_table("sclip"), []).to_dict("records")),
    "comparison of methods": lambda: methods_table([compared(NASTY), compared("voc21")]),
    "list of data sets": lambda: overview(None),
}


@pytest.fixture(scope="module", params=TABLES)
def table(request):
    return TABLES[request.param]()


def rendered(table, capsys=None):
    progress.console().print(terminal(table))
    return {
        "terminal": capsys.readouterr().out if capsys else "", "lines": "\n".join(lines(table)), "markdown": markdown(table),
        "latex": latex(table, "x"), "csv": to_csv(table), "html": html(table),
    }  # fmt: skip


class Parsed(HTMLParser):
    """The texts of the cells of an HTML table, and all tags."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.tags = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def test_every_table_is_of_the_model_and_every_renderer_renders_it(table, capsys):
    assert isinstance(table, Table)
    texts = rendered(table, capsys)
    assert tuple(texts) == RENDERERS
    values = {f"{abs(cell.value):.2f}" for row in table.rows for cell in row.cells if isinstance(cell, Figure) and cell.value}
    for name, text in texts.items():
        assert all(value in text for value in values), name
    widths = {re.sub(r"\\\\|\\\|", "", line).count("|") for line in texts["markdown"].splitlines() if line.startswith("|")}
    assert widths == {len(table.shown) + 1}
    (body,) = re.findall(r"\\toprule\n(.*)\\bottomrule", texts["latex"], re.DOTALL)
    assert {line.replace(r"\&", "").count("&") for line in body.splitlines() if line.endswith(r" \\")} == {len(table.shown) - 1}
    written = list(csv.reader(io.StringIO(texts["csv"])))
    assert len(written) == len(table.rows) + 1
    assert len({len(line) for line in written}) == 1
    page = Parsed(texts["html"])
    assert len(page.cells) == len(table.collapsed().shown) * (len(table.rows) + 1)
    assert page.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "strong", "u", "small", "sup", "p"}


@pytest.mark.parametrize("name", [name for name in TABLES if name not in ("list of data sets", "cells of a paper")])
def test_names_stay_text_in_every_format(name, capsys):
    table = TABLES[name]()
    assert any(NASTY in cell.text for row in table.rows for cell in row.cells if isinstance(cell, Text))
    texts = rendered(table, capsys)
    assert NASTY in texts["lines"]
    assert NASTY in texts["terminal"].replace("\n", "")
    assert escape_markdown(NASTY) in texts["markdown"]
    assert escape_latex(NASTY) in texts["latex"]
    assert any(NASTY in cell for line in csv.reader(io.StringIO(texts["csv"])) for cell in line)
    assert any(NASTY in cell for cell in Parsed(texts["html"]).cells)
    assert not any("<script>" in texts[each] for each in ("markdown", "html", "latex"))


@pytest.mark.parametrize("write", [bench.table, bench.stages])
def test_the_tables_of_the_benchmark_are_of_the_model(write, monkeypatch):
    seen = []
    monkeypatch.setattr(bench, "markdown", lambda table: seen.append(table) or markdown(table))
    assert escape_markdown(NASTY) in write({NASTY: MEASURED})
    assert isinstance(seen[0], Table)


def test_nothing_else_draws_tables():
    """Rich's tables and markdown's rules are in the renderers only. A check's findings and the recipe of a dry run hold no
    figures of results: they are lists of facts."""
    drawing = re.compile(r"rich\.table|\.to_markdown\(|---:|\\begin\{tabular")
    facts = {"ovss_bench/datasets/check/manifest.py", "ovss_bench/cli/evaluation.py"}
    files = [path for folder in ("ovss_bench", "tools") for path in (ROOT / folder).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix() for path in files if drawing.search(path.read_text())}
    assert found - facts == {"ovss_bench/reports/terminal.py", "ovss_bench/reports/markdown.py"}


def test_parts_of_a_figure():
    figure = Figure(-1.5, (-2.0, 1.0), 3.5, -5.0, rank=2, notes=["x"])
    table = Table([Column("run"), Column("change", right=True, signed=True)], [Row([Text("a", ["y"]), figure])], remarks=("z",))
    _, line, *notes = lines(table)
    assert line == "a (a)  -1.50 [-2.00, +1.00] (3.5, -5.00) (b)"
    assert notes == ["z", "(a) y", "(b) x"]
    assert "<ins>−1.50</ins> [−2.00, +1.00] (3.5, −5.00)<sup>b</sup> |" in markdown(table)
    assert r"\underline{$-$1.50} {\scriptsize [$-$2.00, +1.00] (3.5, $-$5.00)}\textsuperscript{b} \\" in latex(table, "x")
    assert to_csv(table).splitlines()[1] == "a,-1.50,-2.00,1.00,3.50,-5.00,y; change: x"


def test_a_suite_averages_the_rows_of_each_segmentor(tmp_path):
    suite = load_suite("sclip8")

    def result(segmentor, dataset, miou, partial=False):
        return {
            "segmentor": segmentor, "clip": "vit_b16", "protocol": "paper", "dataset": dataset, "partial": partial,
            "overridden": {}, "sources": {}, "metrics": {"mIoU": miou},
        }  # fmt: skip

    values = np.arange(8) + 30.125
    results = [result("sclip", name, value) for name, value in zip(suite.datasets, values, strict=True)]
    results += [result("naclip", name, 50.0, partial=name == "voc21") for name in suite.datasets[:3]]
    table = write_averages(suite, results, tmp_path)
    assert [cell.text for cell in table.cells("segmentor")] == ["sclip", "naclip (partial)"]
    assert [figure.value for figure in table.cells("all eight")] == [values.mean(), None]
    assert [figure.value for figure in table.cells("with background")] == [values[:3].mean(), 50.0]
    assert [cell.text for cell in table.cells("missing")] == ["", ", ".join(suite.datasets[3:])]
    written = pd.read_csv(tmp_path / "sclip8.csv").set_index("segmentor")
    assert written.loc["sclip", "all eight"] == round(values.mean(), 2)
    assert "–" in (tmp_path / "sclip8.md").read_text()


def test_marks_of_a_cell_are_in_the_order_of_the_footnotes():
    notes = [f"note {number}" for number in range(28)]  # a to z, aa, ab
    rows = [Row([Text("first", notes)]), Row([Text("second", [notes[27], notes[3], notes[25], notes[0]])])]
    table = Table([Column("run")], rows)
    assert lines(table)[2] == "second (a,d,z,ab)"
    assert "second<sup>a,d,z,ab</sup>" in markdown(table)
