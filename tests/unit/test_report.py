"""Tables in the layout of the papers: which results are in them, where, and what is said about them."""

import copy
import random
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

import ovss_bench as ob
from ovss_bench import progress
from ovss_bench.datasets.suites import load_suite
from ovss_bench.files import digest
from ovss_bench.reports import report as module
from ovss_bench.reports.csv import csv
from ovss_bench.reports.latex import escape_latex, latex
from ovss_bench.reports.markdown import markdown
from ovss_bench.reports.report import interval_of, make_report, select
from ovss_bench.reports.results import write_results
from ovss_bench.reports.terminal import terminal
from ovss_bench.runs import load
from ovss_bench.runs.evaluate import make_job, run_jobs
from ovss_bench.runs.load import LARGE, read_results, result_paths
from ovss_bench.runs.store import dump, read_result

FAST = {"resize": "none", "window": 48, "stride": 48}
SCLIP8 = load_suite("sclip8")
NASTY = r"a|b<script>alert(1)</script> `x` *y* [z](w) _u_ $5 10% #1 {c} \d & ~^ --- “é” 中"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The results of two segmentors on five scenes."""
    folder, clip, dataset = tmp_path_factory.mktemp("results"), ob.load_clip("demo"), ob.load_dataset("demo")
    run_jobs([make_job(name, clip, dataset, overrides=FAST) for name in ("clip", "sclip")], limit=5, output=folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def real(folder):
    return read_result(result_paths(folder)[0])


@pytest.fixture
def made(real):
    """`made(segmentor, dataset, mIoU, ...)` makes a complete result out of the real one; `made.results` are all of them."""

    class Made:
        def __init__(self):
            self.results = {}

        def __call__(self, segmentor, dataset, value, **changes):
            result = copy.deepcopy(real) | {
                "segmentor": segmentor,
                "dataset": dataset,
                "partial": False,
                "overridden": {},
                "metrics": {"mIoU": value},
                "dataset_fingerprint": digest(dataset),
                "published": {"figures": [], "why_not": "a test"},
            }
            number = len(self.results)
            path = Path(f"{dataset}/{segmentor}-{number:012x}.json")
            self.results[path] = result | {"fingerprint": f"{number:064x}"} | changes
            return self.results[path]

    return Made()


def cells(text):
    """The rows of a markdown table as lists, and what stands below it."""
    lines = text.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [rows[0], *rows[2:]], [line for line in lines[1:] if line and not line.startswith("|")]


def figure(value, difference, **changes):
    known = {"method": "m", "variant": "", "source": "a paper", "table": "1", "second_hand": False, "metric": "mIoU"}
    return {"miou": value, "difference": difference} | known | changes


def test_columns_are_those_of_the_suite_and_averages_need_all_of_them(made):
    for number, name in enumerate(reversed(SCLIP8.datasets)):
        made("naclip", name, 10.0 + number)
        if name != "voc21":
            made("sclip", name, 20.0 + number)
    made("sclip", "loveda", 99.0)  # of another suite
    (head, naclip, sclip), _ = cells(markdown(make_report(made.results, SCLIP8)))
    assert head == ["segmentor", *SCLIP8.datasets, "with background", "without background", "all eight"]
    assert naclip[0] == "naclip"
    assert naclip[1:9] == ["17.00"] + [f"<ins>{10 + n:.2f}</ins>" for n in reversed(range(7))]
    assert naclip[9:] == ["16.00", "<ins>12.00</ins>", "13.50"]
    assert sclip == ["sclip", "–", *(f"**{20 + n:.2f}**" for n in reversed(range(7))), "–", "**22.00**", "–"]


def test_without_a_suite_all_data_sets_are_columns(made):
    made("sclip", "voc21", 1.0)
    made("sclip", "ade20k", 2.0)
    assert cells(markdown(make_report(made.results)))[0][0] == ["segmentor", "ade20k", "voc21"]
    assert cells(markdown(make_report(made.results, datasets=["voc21"])))[0] == [["segmentor", "voc21"], ["sclip", "1.00"]]
    with pytest.raises(ob.OvssError, match="none of the 2 results is on loveda"):
        make_report(made.results, datasets=["loveda"])


def test_averages_of_averages_and_of_other_metrics(made):
    for name in load_suite("mess").datasets:
        made("sclip", name, 40.0 if name.startswith("paxray") else 10.0)
    report = make_report(made.results, load_suite("mess"))
    averages = {c.name: cell.value for c, cell in zip(report.columns, report.rows[0].cells, strict=True) if c.average}
    assert averages["Medical"] == 17.5  # the four of PAXRay are one of four
    made.results.clear()
    for name in load_suite("remote_sensing").datasets:
        made("sclip", name, 10.0)["metrics"]["IoU_object"] = 50.0
    report = make_report(made.results, load_suite("remote_sensing"))
    pairs = zip(report.columns, report.rows[0].cells, strict=True)
    shown = {report.head(column): cell.value for column, cell in pairs if column.metric}
    assert shown["potsdam (mIoU)"] == shown["several classes (mIoU)"] == 10
    assert shown["xbd (IoU_object)"] == shown["water (IoU_object)"] == 50
    assert make_report(made.results, load_suite("remote_sensing"), metric="mIoU").metrics == ["mIoU"]
    with pytest.raises(ob.OvssError, match="mIuO"):
        make_report(made.results, metric="mIuO")


def test_the_best_are_those_as_they_are_shown_with_the_same_clip(made):
    for name, value in {"a": 30.001, "b": 30.004, "c": 29.99, "d": 12.0}.items():
        made(name, "voc21", value)
    made("a", "voc21", 80.0, clip="vit_l14")
    made("b", "voc21", 70.0, clip="vit_l14", protocol="unified")
    made("e", "voc21", 99.0, partial=True)
    rows, notes = cells(markdown(make_report(made.results)))
    assert rows[0] == ["segmentor", "clip", "protocol", "voc21"]
    assert [row[-1] for row in rows[1:5]] == ["**30.00**", "**30.00**", "<ins>29.99</ins>", "12.00"]
    assert rows[5] == ["e<sup>a</sup>", "demo", "paper", "99.00"]  # never the best of anything
    assert [row[-1] for row in rows[6:]] == ["80.00", "70.00"]  # the only ones of their kind
    assert notes[-1] == "<sup>a</sup> partial: 5 of 100 images"
    assert cells(markdown(make_report(made.results, digits=1)))[0][3][-1] == "**30.0**"


def test_partial_results_enter_only_if_asked_for(made):
    made("a", "voc21", 1.0)
    made("b", "voc21", 2.0, partial=True)
    assert [r["segmentor"] for r in select(made.results, {}, partial=False).values()] == ["a"]
    assert len(select(made.results, {}, partial=True)) == 2
    with pytest.raises(ob.OvssError, match="all 1 matching results are partial"):
        select(made.results, {"segmentor": ["b"]}, partial=False)
    with pytest.raises(ob.OvssError, match="segmentor among the results"):
        select(made.results, {"segmentor": ["c"]}, partial=False)


def test_averages_of_partial_results_are_marked_and_not_ranked(made):
    for name in SCLIP8.datasets:
        made("a", name, 10.0)
        made("b", name, 20.0, partial=name == "voc21")
    report = make_report(made.results, SCLIP8)
    (_, _, b), notes = cells(markdown(report))
    assert b[9] == "20.00<sup>b</sup>"
    assert b[10] == "**20.00**"
    assert notes[-1] == "<sup>b</sup> average of partial results"


def test_settings_and_stand_ins_make_rows_of_their_own_with_footnotes(made):
    made("corrclip", "voc21", 10.0)
    made("corrclip", "voc21", 11.0, overridden={"logit_scale": 50, "templates": "photo"})
    made("corrclip", "voc21", 12.0, sources={"regions": {"name": "felzenszwalb", "digest": None, "stand_in": True}})
    rows, notes = cells(markdown(make_report(made.results)))
    assert [row[0] for row in rows[1:]] == ["corrclip", "corrclip<sup>a</sup>", "corrclip<sup>b</sup>"]
    assert notes[-2:] == ["<sup>a</sup> stand-in regions", "<sup>b</sup> overridden: logit_scale=50, templates=photo"]


def test_of_results_of_the_same_settings_the_newest_complete_one_counts(made):
    timing = made("sclip", "voc21", 10.0)["timing"]
    for year, value, partial in ((2024, 5.0, False), (2099, 11.0, False), (2199, 99.0, True)):
        started = timing | {"started": f"{year}-01-01T00:00:00+00:00"}
        made("sclip", "voc21", value, partial=partial, timing=started)
    rows, notes = cells(markdown(make_report(made.results)))
    assert rows[1:] == [["sclip", "11.00"]]
    assert notes == ["Left out: older results with the same settings (3)."]


def test_what_was_made_otherwise_is_told(made):
    for name in ("a", "b", "c"):
        for dataset in ("voc21", "ade20k"):
            made(name, dataset, 10.0)
    other = made("d", "voc21", 10.0, precision="fp16")
    other["provenance"]["packages"]["torch"] = "1.0"
    made("d", "ade20k", 10.0, dataset_fingerprint="f" * 64)
    made("e", "voc21", 10.0, clip="vit_l14", weights_digest="e" * 64)
    made("e", "ade20k", 10.0, clip="vit_l14", weights_digest="e" * 64)["provenance"]["code"] = {"core": "0" * 64}
    report = make_report(made.results)
    used = {row.cells[0].text: (row.cells[0].notes, [cell.notes for cell in row.cells[4:]]) for row in report.rows}
    assert used["a"] == used["b"] == ([], [[], []])
    torch = made.results[next(iter(made.results))]["provenance"]["packages"]["torch"]
    fingerprint = f"fingerprint of the data set ade20k {'f' * 12} instead of {digest('ade20k')[:12]}"
    assert used["d"] == ([], [[fingerprint], ["precision fp16 instead of fp32", f"packages torch 1.0 instead of {torch}"]])
    source = made.results[next(iter(made.results))]["provenance"]["code"]["core"][:12]
    assert used["e"] == (
        [],
        [[f"source digest of core 000000000000 instead of {source}"], []],
    )  # its weights are those of its CLIP


def test_what_is_told_of_all_figures_of_a_row_stands_at_its_name(made):
    for dataset in ("voc21", "ade20k"):
        for name in "abc":
            made(name, dataset, 10.0, precision="fp16" if name == "c" else "fp32")
    rows, notes = cells(markdown(make_report(made.results)))
    assert rows[3] == ["c<sup>a</sup>", "**10.00**", "**10.00**"]
    assert notes[-1] == "<sup>a</sup> precision fp16 instead of fp32"


def test_published_figures_stand_beside_ours(made):
    for name in SCLIP8.datasets:
        made("sclip", name, 40.0, published={"figures": [figure(41.5, -1.5)], "why_not": None})
        published = {"figures": [figure(40.5, 1.25, metric="mIoU_cliper", second_hand=True)], "why_not": None}
        made("cliper", name, 41.0, published={"figures": [], "why_not": "none"} if name == "voc21" else published)
    (_, cliper, sclip), notes = cells(markdown(make_report(made.results, SCLIP8, published=True)))
    assert sclip[1] == "<ins>40.00</ins> (41.5, −1.50)"
    assert sclip[-1] == "<ins>40.00</ins> (41.50, −1.50)"
    assert cliper[1] == "**41.00**"
    assert cliper[2] == "**41.00** (40.5, +1.25)<sup>a,b</sup>"
    assert cliper[-2] == "**41.00** (40.50, +1.25)"
    assert cliper[-1] == "**41.00**"  # voc21 has no figure
    assert "published as mIoU_cliper; the difference is in that metric" in notes[-2]
    assert "published by others: a paper" in notes[-1]
    assert "(41.5" not in markdown(make_report(made.results, SCLIP8))
    only = {path: result for path, result in made.results.items() if not result["published"]["figures"]}
    assert cells(markdown(make_report(only, published=True)))[1] == ["No figure is published for any of these runs."]


def test_the_same_results_give_the_same_bytes_in_whatever_order(made):
    for name in SCLIP8.datasets:
        for segmentor in "abc":
            made(segmentor, name, random.Random(name + segmentor).random() * 100, precision=random.choice(["fp32", "fp16"]))
    for write in (markdown, csv, lambda report: latex(report, "x")):
        texts = set()
        for _ in range(5):
            shuffled = random.sample(list(made.results.items()), len(made.results))
            texts.add(write(make_report(dict(shuffled), SCLIP8)))
        assert len(texts) == 1


def test_the_csv_has_numbers_and_words(made):
    made("a", "voc21", 12.345, published={"figures": [figure(12, 0.345)], "why_not": None})
    made("b", "ade20k", 10.0, overridden={"sigma": 3}, partial=True)
    lines = csv(make_report(made.results, published=True, interval=lambda path, metric: (1.0, 2.0))).splitlines()
    names = "ade20k,ade20k low,ade20k high,voc21,voc21 low,voc21 high,voc21 published,voc21 difference"
    assert lines == [
        f"segmentor,clip,protocol,supervision,{names},notes",
        "a,demo,paper,none,,,,12.35,1.00,2.00,12.00,0.34,",
        "b,demo,paper,none,10.00,1.00,2.00,,,,,,overridden: sigma=3; partial: 5 of 100 images",
    ]


def test_names_stay_text_in_markdown(made):
    made(NASTY, "voc21", 1.0)
    text = markdown(make_report(made.results))
    (line,) = [line for line in text.splitlines() if line.startswith("| a")]
    assert line.count("|") == 4
    assert r"| a\|b&lt;script&gt;alert(1)&lt;/script&gt; \`x\` \*y\* \[z\](w) \_u\_ \$5" in line


@pytest.mark.parametrize("name", [NASTY, "[/red]", "[bold]x[/bold]", ":smile:", "[link=x]y"])
def test_names_stay_text_on_a_screen_and_in_the_table_of_a_run(name, made, tmp_path, capsys):
    made(name, "voc21", 1.0)
    made("clip", "voc21", 2.0)
    results = list(made.results.values())
    table = terminal(write_results(results, tmp_path))
    progress.console().print(table)
    progress.Progress().say(name)
    printed = capsys.readouterr()
    assert name in printed.out
    assert printed.err.strip() == name
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert {line.replace(r"\|", "").count("|") for line in lines} == {7}
    assert "<script>" not in "".join(lines)
    assert pd.read_csv(tmp_path / "table.csv").iloc[0, 0] == name


@pytest.mark.parametrize(
    ("text", "written"), [("a_b", r"a\_b"), ("a--b-c", "a-{}-b-c"), ("x\ny", "x y"), ("中é", r"\texttt{U+4E2D}é")]
)
def test_names_stay_text_in_latex(text, written):
    assert escape_latex(text) == written


def compiled(folder, name):
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", name],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed (Debian: texlive-latex-recommended)")
def test_the_latex_compiles_by_itself_and_as_a_part(made, tmp_path):
    for name in SCLIP8.datasets:
        for clip in ("demo", "vit_l14"):
            made("sclip", name, 40.0, clip=clip, published={"figures": [figure(41.5, -1.5)], "why_not": None})
            made(NASTY, name, 50.0, clip=clip, overridden={NASTY: NASTY}, partial=True)
    report = make_report(made.results, SCLIP8, published=True, interval=lambda path, metric: (1.0, 99.0))
    (tmp_path / "table.tex").write_text(latex(report, "sclip8"))
    log = compiled(tmp_path, "table.tex")
    assert "Overfull \\hbox" not in log
    page = (
        r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\ref{tab:sclip8}\input{table}End.\end{document}"
    )
    (tmp_path / "paper.tex").write_text(page)
    compiled(tmp_path, "paper.tex")
    assert (tmp_path / "table.pdf").exists()
    assert (tmp_path / "paper.pdf").exists()


def test_intervals_are_those_of_the_counts_beside_the_result(folder):
    path = result_paths(folder)[0]
    value = read_result(path)["metrics"]["mIoU"]
    low, high = interval_of(path, "mIoU")
    assert low < value < high
    assert interval_of(path, "mIoU_per_image") is None
    rows, notes = cells(markdown(make_report({path: read_result(path)}, interval=interval_of)))
    assert rows[1][1] == f"{value:.2f} [{low:.2f}, {high:.2f}]"
    assert any("95 %" in note for note in notes)


def test_of_many_results_each_is_read_once_and_what_is_large_is_dropped(made, tmp_path, monkeypatch):
    result = made("sclip", "voc21", 1.0)
    for number in range(200):
        fingerprint = f"{number:064x}"
        path = tmp_path / f"m{number % 25}-{number:012x}.json"
        path.write_text(
            dump(result | {"segmentor": f"m{number % 25}", "dataset": f"d{number // 25}", "fingerprint": fingerprint})
        )
    opened = []
    for reader in (module, load):
        monkeypatch.setattr(reader, "read_result", lambda path: opened.append(path) or read_result(path))
    monkeypatch.setattr(module, "read_counts", lambda *_: pytest.fail("no counts are needed"))
    results, damaged = read_results(tmp_path, leave_out=LARGE)
    assert damaged == []
    report = make_report(results)
    assert (len(opened), len(set(opened))) == (200, 200)
    assert (len(report.rows), [column.name for column in report.columns[4:]]) == (25, [f"d{number}" for number in range(8)])
    assert not any({"recipe", "per_class"} & set(result) for result in results.values())


def test_what_cannot_be_read_is_told(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "results")
    (tmp_path / "results" / "naclip-0123456789ab.json").write_text("{")
    results, (error,) = read_results(tmp_path, leave_out=LARGE)
    assert len(results) == 2
    assert "naclip-0123456789ab.json" in str(error)
