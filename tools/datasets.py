"""Data sets: what there is, preparing them from the official archives, and finding what is wrong with them.

python tools/datasets.py list [NAME]  data_root=/data          what is here, what is missing; with NAME all about one
python tools/datasets.py prepare NAME data_root=/data [source=/downloads yes=true rerun=true images=original workers=8]
python tools/datasets.py check NAME   data_root=/data [workers=8 out=FILE against=FILE]
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ovss_bench.cli.startup  # noqa: F401

# isort: split

from rich.console import RenderableType

from ovss_bench.cli.options import is_place, parse_options, run_tool
from ovss_bench.errors import OvssError, unknown
from ovss_bench.files import environment
from ovss_bench.progress import console

COMMON = {"data_root": environment("OVSS_DATA"), "plugins": []}
PREPARE = COMMON | {"source": None, "yes": False, "rerun": False, "images": None, "workers": os.cpu_count() or 1}
CHECK = COMMON | {"workers": os.cpu_count() or 1, "out": None, "against": None}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", help="list, prepare or check")
    parser.add_argument("words", nargs="*", help="the name of a data set, and options NAME=VALUE")
    arguments = parser.parse_args()
    if arguments.command not in COMMANDS:
        raise unknown("command", arguments.command, COMMANDS)
    names = [word for word in arguments.words if is_place(word)]
    return COMMANDS[arguments.command](names, [word for word in arguments.words if word not in names])


def list_datasets(names: list[str], words: list[str]) -> int:
    from ovss_bench.reports.datasets import card, overview
    from ovss_bench.reports.terminal import terminal

    root = parse_options(words, COMMON)["data_root"]
    for part in map(card, names, [root] * len(names)) if names else [terminal(overview(root))]:
        _print(part)
    return 0


def prepare_datasets(names: list[str], words: list[str]) -> int:
    from ovss_bench.datasets.prepare.run import prepare

    options = parse_options(words, PREPARE)
    for name in _named(names):
        prepare(name, options["data_root"], **{key: options[key] for key in ("source", "yes", "rerun", "images", "workers")})
    return 0


def check_datasets(names: list[str], words: list[str]) -> int:
    from ovss_bench.datasets.check.manifest import view
    from ovss_bench.datasets.check.run import check

    options, names = parse_options(words, CHECK), _named(names)
    if len(names) > 1 and (options["out"] or options["against"]):
        raise OvssError("out=FILE and against=FILE are for one data set at a time.")
    wrong = False
    for name in names:
        report = check(name, options["data_root"], **{key: options[key] for key in ("workers", "out", "against")})
        _print(view(report))
        wrong |= bool(report.findings)
    return int(wrong)


def _print(part: RenderableType) -> None:
    console().print(part)


def _named(names: list[str]) -> list[str]:
    if not names:
        raise OvssError("name a data set; python tools/datasets.py list shows them.")
    return names


COMMANDS = {"list": list_datasets, "prepare": prepare_datasets, "check": check_datasets}


if __name__ == "__main__":
    run_tool(main)
