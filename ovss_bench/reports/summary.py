"""The tables printed and written at the end of an evaluation: its results, the averages of suites, and a paper's table."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ..datasets.suites import Suite
from ..errors import print_error
from ..runs.grid import Grid
from ..runs.result import EvalResult
from ..runs.world import World
from .papers import PaperTable, write_paper
from .results import differences, without_labels, write_averages, write_results
from .terminal import terminal


def summarize(
    console: Console,
    results: list[EvalResult],
    suites: list[Suite],
    paper: PaperTable | None,
    options: dict[str, Any],
    world: World,
    grid: Grid | None,
) -> int:
    """Prints and writes the tables. Returns the exit status; `expect` checks only the results of this evaluation."""
    folder, evaluated = Path(options["output"]), [result.data for result in results]
    with grid.together(results, folder) if grid else nullcontext(evaluated) as shown:
        tables = [write_results(shown, folder), *(write_averages(suite, shown, folder) for suite in suites)]
        if paper:
            tables.append(replace(write_paper(paper, shown, folder), remarks=()))  # its sources are in the file
    for table in tables:
        console.print(terminal(table))
    command = shlex.join([*world.launcher, *sys.argv])
    console.print(f"Results: {folder}/ (table.md, table.csv; one JSON and one npz per row). Again: {command}")
    if options["expect"]:
        wrong = differences(evaluated, options["expect"], options["tolerance"])
        for line in wrong:
            console.print(f"different: {line}")
        if wrong:
            return 1
        console.print(f"All {len(evaluated)} rows agree with {options['expect']} within {options['tolerance']} points of mIoU.")
        return 0
    for line in (unlabelled := without_labels(evaluated)):
        print_error(line)
    return 2 if unlabelled else 0
