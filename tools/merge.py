"""Makes results of the parts that `tools/eval.py shard=I/N` has left: `python tools/merge.py FOLDER`, where FOLDER is the
output folder of those runs, or one into which the output folders of several machines were copied. Needs neither data nor GPU.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ovss_bench.cli.startup  # noqa: F401

# isort: split

from ovss_bench import progress
from ovss_bench.cli.options import run_tool
from ovss_bench.errors import OvssError, print_error
from ovss_bench.files import user_path
from ovss_bench.reports.results import results_table, without_labels
from ovss_bench.reports.terminal import terminal
from ovss_bench.runs.merge import merge, part_folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("results/runs"), help="default: results/runs")
    folder = parser.parse_args().folder
    run_tool(lambda: merged(user_path(folder)))


def merged(folder: Path) -> int:
    """Merges what is complete, and tells what is not; 0 if all is."""
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


if __name__ == "__main__":
    main()
