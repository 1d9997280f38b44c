"""Lists data sets and whether they are present, prepares them from official archives, and checks every image and label. NAME is
an entry of configs/dataset, or a YAML file of your own data."""

from __future__ import annotations

import os
from typing import Any

from ..config.validation import Count
from ..errors import OvssError, unknown
from ..files import environment
from ..progress import console
from .eval_options import EVAL
from .options import Command, Option, Text, is_positional, parse_options

WORKERS = Option("workers", Count, os.cpu_count() or 1, "processes")
COMMON = (EVAL["data_root"], EVAL["plugins"])
PREPARE = (
    Option("source", Text | None, None, "folder of the archives; default: the data root"),
    Option("yes", bool, False, "accept the licence and download"),
    Option("rerun", bool, False, "convert again from the archives"),
    Option("images", Text | None, None, "original: the photos as published, where the archives have smaller copies"),
    WORKERS,
)
CHECK = (
    Option("out", Text | None, None, "file for the manifest (JSON): counts, sizes and digests of all files"),
    Option("against", Text | None, None, "manifest of another copy to compare with"),
    WORKERS,
)


def run(words: list[str]) -> int | None:
    action, *words = words or [""]
    if not action:
        raise OvssError("name a command: list, prepare or check, e.g. list data_root=DIR.")
    if action not in ACTIONS:
        raise unknown("command", action, ACTIONS)
    names = [word for word in words if is_positional(word)]
    if not names and action != "list":
        raise OvssError("name a data set; python tools/datasets.py list shows all of them.")
    work, accepted = ACTIONS[action]
    options = parse_options([word for word in words if word not in names], COMMON + accepted)
    del options["plugins"]  # already loaded
    return work(names, options.pop("data_root") or environment("OVSS_DATA"), **options)


def _list(names: list[str], root: str | None) -> None:
    from ..reports.datasets import card, overview
    from ..reports.terminal import terminal

    for part in [card(name, root) for name in names] or [terminal(overview(root))]:
        console().print(part)


def _prepare(names: list[str], root: str | None, **options: Any) -> None:
    from ..datasets.prepare.run import prepare

    for name in names:
        prepare(name, root, **options)


def _check(names: list[str], root: str | None, **options: Any) -> int:
    from ..datasets.check.manifest import view
    from ..datasets.check.run import check

    if len(names) > 1 and (options["out"] or options["against"]):
        raise OvssError("out=FILE and against=FILE take one data set at a time.")
    status = 0
    for name in names:
        report = check(name, root, **options)
        console().print(view(report))
        status |= bool(report.findings)
    return status


ACTIONS = {"list": (_list, ()), "prepare": (_prepare, PREPARE), "check": (_check, CHECK)}
COMMAND = Command(
    __doc__,
    ("list [NAME ...] [NAME=VALUE ...]", "prepare NAME ... [NAME=VALUE ...]", "check NAME ... [NAME=VALUE ...]"),
    {"All": COMMON, "prepare": PREPARE, "check": CHECK},
    ("list data_root=/data", "prepare voc21 data_root=/data yes=true", "check voc21 data_root=/data out=voc21.json"),
    run,
    ("Exit status of check: 0 if nothing is wrong, 1 with findings, 2 for an error.",),
)
