"""Tables of the results below folders (default: results/runs), in the layout of papers, and an HTML page."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..config.validation import Count
from ..datasets.suites import load_suite
from ..errors import OvssError, visible
from ..files import environment, user_path, write_text
from ..reports.csv import csv
from ..reports.latex import latex
from ..reports.markdown import markdown
from ..reports.report import interval_of, make_report, select
from ..runs.load import LARGE, frame_of, read_results
from .eval_options import EVAL
from .options import Command, Option, Text, Texts

Format = Literal["markdown", "latex", "csv"]
FORMATS = {"markdown": ".md", "latex": ".tex", "csv": ".csv"}
FILTERS = (
    Option("segmentor", Texts, [], "only these methods: one or a list"),
    Option("clip", Texts, [], "only these CLIP models"),
    Option("dataset", Texts, [], "only these data sets, in this order"),
    Option("protocol", Texts, [], "only these protocols"),
    Option("supervision", Texts, [], "only these kinds of supervision besides CLIP's: none, image-text pairs, masks, ..."),
    Option("target_images_seen", Texts, [], "no: only results whose training saw no images of the data set"),
    Option("target_names_seen", Texts, [], "no: only results whose training saw no class names of the data set"),
)
GROUPS = {
    "Which results": (
        *FILTERS,
        Option("suite", Text | None, None, "the data sets of a suite (configs/dataset/suite), and their average"),
        Option("partial", bool, False, "include results on some of the images, which are marked"),
        Option("published", bool, False, "add the published figures"),
    ),
    "What is shown": (
        Option("metric", Text | None, None, "metric of the table; default: mIoU, or that of the suite's averages"),
        Option("digits", Count, 2, "decimals; most papers round to 1"),
        Option("intervals", bool, False, "add 95 % confidence intervals"),
        Option("csv", bool, False, "a line per result with all its fields, instead of the table"),
    ),
    "Output": (
        Option("format", Format | None, None, "format of the table; default: markdown, or all with out="),
        Option("out", Text | None, None, "folder to write to, instead of printing"),
        Option("html", bool, False, "also write report.html, an interactive page; needs out="),
        Option("images", Count, 12, "images of each run shown on the page"),
        Option("own", Texts, [], "YAML files of your own data sets, to show their images on the page"),
        EVAL["data_root"],
        EVAL["plugins"],
    ),
}


def run(words: list[str]) -> None:
    positional, options = COMMAND.parse(words)
    if options["suite"] and options["dataset"]:
        raise OvssError("suite= and dataset= both choose the columns. Give one of them.")
    if options["html"] and not options["out"]:
        raise OvssError("html=true needs a folder for the page: out=DIR.")
    found, damaged = read_results(*(map(user_path, positional) if positional else ["results/runs"]), leave_out=LARGE)
    _say_left_out(*damaged)
    matching = select(found, {option.name: options[option.name] for option in FILTERS}, partial=True)
    results = select(matching, {}, options["partial"])
    if len(results) < len(matching):
        _say_left_out(f"partial results ({len(matching) - len(results)}); partial=true shows them")
    if options["csv"]:
        texts = {"results.csv": frame_of(results).to_csv(index=False, lineterminator="\n")}
    else:
        texts = _tables(results, options)
    if options["out"] is None:
        text = "\n".join(texts.values())
        print(visible(text) if sys.stdout.isatty() else text, end="")
        return
    folder = Path(options["out"])
    for name, text in texts.items():
        write_text(folder / name, text)
        print(folder / name)
    if options["html"]:
        from ..reports.html import write_html

        intervals = {path: interval_of(path, "mIoU") for path in results} if options["intervals"] else None
        given = {name: options[name] for name in ("images", "partial")}
        given |= {"data_root": options["data_root"] or environment("OVSS_DATA"), "datasets": options["own"]}
        print(write_html(results, folder / "report.html", intervals=intervals, **given))


def _tables(results: Mapping[Path, Any], options: dict[str, Any]) -> dict[str, str]:
    """The table by file name, in the chosen format; by default all formats for files, Markdown for the terminal."""
    suite = load_suite(options["suite"]) if options["suite"] else None
    given = {name: options[name] for name in ("metric", "digits", "published")}
    interval = interval_of if options["intervals"] else None
    report = make_report(results, suite, datasets=options["dataset"], interval=interval, **given)
    name = suite.name if suite else "table"
    write = {"markdown": markdown, "latex": lambda report: latex(report, name), "csv": csv}
    chosen = [options["format"]] if options["format"] else FORMATS if options["out"] else ["markdown"]
    return {name + FORMATS[each]: write[each](report) for each in chosen}


def _say_left_out(*reasons: object) -> None:
    for reason in reasons:
        print(visible(f"left out: {reason}"), file=sys.stderr)


COMMAND = Command(
    __doc__,
    ("[FOLDER ...] [NAME=VALUE ...]",),
    GROUPS,
    ("suite=sclip8 published=true", "results/runs format=latex digits=1", "results/runs html=true out=page data_root=/data"),
    run,
)
