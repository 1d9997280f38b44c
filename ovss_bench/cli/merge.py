"""Merges the results of eval with shard=I/N; needs neither data nor GPU. FOLDER (default: results/runs) is the output folder of
the runs, or a folder that contains the output folders of several machines."""

from __future__ import annotations

from .. import progress
from ..errors import OvssError, print_error
from ..files import user_path
from ..reports.results import results_table, without_labels
from ..reports.terminal import terminal
from ..runs.merge import merge, part_folders
from .options import Command


def run(words: list[str]) -> int:
    """Merges the complete runs; reports the others, and then returns exit status 2."""
    positional, _ = COMMAND.parse(words)
    if len(positional) > 1:
        raise OvssError(f"expected one folder; got {' '.join(positional)}.")
    folder = user_path(positional[0] if positional else "results/runs")
    console = progress.console()
    results, errors = [], []
    for parts in part_folders(folder):
        try:
            result, notes = merge(parts)
        except OvssError as error:
            errors.append(error)
            continue
        results.append(result)
        for note in notes:
            console.print(f"note: {result['segmentor']} on {result['dataset']}: {note}")
    if results:
        console.print(terminal(results_table(results)))
        console.print(f"Results: {folder}/")
    wrong = [*without_labels(results), *errors]
    for error in wrong:
        print_error(error)
    return 2 if wrong else 0


COMMAND = Command(__doc__, ("[FOLDER]",), {"Options": ()}, ("", "results/parts", "results/parts debug=true"), run)
