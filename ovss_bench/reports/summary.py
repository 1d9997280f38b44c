"""What tools/eval.py prints and writes at its end: the table of its rows, the averages of suites, and a paper's table."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from ..datasets.suites import Suite
from ..errors import print_error
from ..runs.grid import Grid
from ..runs.result import EvalResult
from ..runs.world import World
from .averages import terminal_averages, write_averages
from .paper_view import terminal_paper, write_paper
from .papers import PaperTable
from .tables import differences, frame, terminal, without_labels, write_tables


def summarize(
    console: Console,
    results: list[EvalResult],
    suites: list[Suite],
    paper: PaperTable | None,
    options: dict[str, Any],
    world: World,
    grid: Grid | None,
) -> int:
    """Prints and writes the tables; the exit status, by `expect`, to which only the run's own rows matter."""
    folder, own = Path(options["output"]), [result.data for result in results]
    with grid.together(results, folder) if grid else nullcontext(own) as shown:
        console.print(terminal(write_tables(shown, folder)))
        for suite in suites:
            console.print(terminal_averages(suite, write_averages(suite, shown, folder)))
        if paper:
            console.print(terminal_paper(paper, write_paper(paper, shown, folder)))
    console.print(
        f"Results: {folder}/ (table.md, table.csv; one JSON and one npz per row). Again: "
        f"{shlex.join([*world.launcher, *sys.argv])}",
    )
    if options["expect"]:
        wrong = differences(frame(own), options["expect"], options["tolerance"])
        for line in wrong:
            console.print(f"different: {line}")
        if wrong:
            return 1
        console.print(f"All {len(own)} rows agree with {options['expect']} within {options['tolerance']} points of mIoU.")
        return 0
    for line in (unlabelled := without_labels(own)):
        print_error(line)
    return 2 if unlabelled else 0
