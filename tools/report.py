"""Tables of the results below a folder, in the layout of the papers, and a page to look around in.

python tools/report.py [FOLDER ...] [suite=sclip8] [format=markdown|latex|csv] [metric=mIoU] [published=true] [out=DIR]
python tools/report.py [FOLDER ...] html=true out=DIR [data_root=/data own=[my_data.yaml]]
python tools/report.py [FOLDER ...] --csv [out=DIR]      a line per result with everything that is known about it

Without FOLDER it takes results/runs, without `suite` all data sets; segmentor=, clip=, dataset= and protocol=[NAME,...] choose
among the results. Without `out` it prints one format, with it all of them are written. partial=true lets results in that lack
images, marked; intervals=true adds 95 % intervals; digits=1 rounds as most papers do.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ovss_bench.cli.startup  # noqa: F401

# isort: split

from ovss_bench.cli.options import is_place, parse_options, run_tool
from ovss_bench.datasets.suites import load_suite
from ovss_bench.errors import OvssError, unknown, visible
from ovss_bench.files import environment, user_path, write_text
from ovss_bench.reports.csv import csv
from ovss_bench.reports.latex import latex
from ovss_bench.reports.markdown import markdown
from ovss_bench.reports.report import interval_of, make_report, select
from ovss_bench.runs.load import LARGE, frame_of, read_results

FILTERS = ("segmentor", "clip", "dataset", "protocol")
FORMATS = {"markdown": ".md", "latex": ".tex", "csv": ".csv"}
OPTIONS = {
    **{name: [] for name in FILTERS},
    "suite": None,
    "format": None,
    "metric": None,
    "digits": 2,
    "partial": False,
    "published": False,
    "intervals": False,
    "html": False,
    "images": 12,
    "data_root": environment("OVSS_DATA"),
    "own": [],
    "plugins": [],
    "out": None,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="FOLDER or NAME=VALUE", help="where results are, and options")
    parser.add_argument("--csv", action="store_true", help="a line per result instead of a table")
    arguments = parser.parse_intermixed_args()
    folders = [word for word in arguments.words if is_place(word)]
    options = checked([word for word in arguments.words if word not in folders])
    folders = [user_path(folder) for folder in folders] or ["results/runs"]
    found, damaged = read_results(*folders, leave_out=LARGE)
    for error in damaged:
        say(f"left out: {error}")
    results = select(found, {name: options[name] for name in FILTERS}, options["partial"])
    lacking = sum(result["partial"] for result in found.values()) - sum(result["partial"] for result in results.values())
    if lacking and not options["partial"]:
        say(f"left out: {lacking} partial results (partial=true shows them)")
    if arguments.csv:
        texts = {"results.csv": frame_of(results).to_csv(index=False, lineterminator="\n")}
    else:
        texts = tables(results, options)
    if options["out"] is None:
        text = "\n".join(texts.values())
        print(visible(text) if sys.stdout.isatty() else text, end="")
        return
    folder = Path(options["out"])
    for name, text in texts.items():
        write_text(folder / name, text)
        print(folder / name)
    if options["html"]:
        from ovss_bench.reports.html import write_html

        intervals = {path: interval_of(path, "mIoU") for path in results} if options["intervals"] else None
        given = {name: options[name] for name in ("data_root", "images", "partial")}
        print(write_html(results, folder / "report.html", intervals=intervals, datasets=options["own"], **given))


def checked(words: list[str]) -> dict:
    options = parse_options(words, OPTIONS)
    if options["format"] not in (None, *FORMATS):
        raise unknown("format", options["format"], FORMATS)
    if options["suite"] and options["dataset"]:
        raise OvssError("suite= and dataset= both say what the columns are. Give one of them.")
    if options["html"] and not options["out"]:
        raise OvssError("html=true needs a folder for the page: out=DIR.")
    return options


def tables(results: dict, options: dict) -> dict[str, str]:
    """The table in the format that is asked for, by file name; in every format if that is none and files are written."""
    suite = load_suite(options["suite"]) if options["suite"] else None
    name = suite.name if suite else "table"
    report = make_report(
        results,
        suite,
        datasets=options["dataset"],
        metric=options["metric"],
        digits=options["digits"],
        published=options["published"],
        interval=interval_of if options["intervals"] else None,
    )
    write = {"markdown": markdown, "latex": lambda report: latex(report, name), "csv": csv}
    chosen = [options["format"]] if options["format"] else FORMATS if options["out"] else ["markdown"]
    return {name + FORMATS[each]: write[each](report) for each in chosen}


def say(message: str) -> None:
    print(visible(message), file=sys.stderr)


if __name__ == "__main__":
    run_tool(main)
