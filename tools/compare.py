"""Compares runs: `python tools/compare.py A B [tolerance=0.1 out=FILE]`, A and B result files, or folders of results that are
matched by segmentor, CLIP and data set; or `python tools/compare.py RUN --published` with what the method's authors published.

Ends with 0 if all are identical or equivalent, 1 if one is different, 3 if one is inconclusive, 2 for an error.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ovss_bench.errors import OvssError
from ovss_bench.files import user_path, write_text
from ovss_bench.options import is_place, parse_options, run_tool
from ovss_bench.results.compare_view import lines_of, summary
from ovss_bench.results.store import dump

OPTIONS = {"tolerance": 0.1, "out": None, "plugins": []}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "words", nargs="*", help="A B or RUN, and options NAME=VALUE: tolerance= points of mIoU, out= a JSON file"
    )
    parser.add_argument("--published", action="store_true", help="compare RUN with the published figure, with a checklist")
    arguments = parser.parse_intermixed_args()
    paths = [word for word in arguments.words if is_place(word)]
    options = parse_options([word for word in arguments.words if word not in paths], OPTIONS)
    paths = [user_path(path) for path in paths]
    tolerance = options["tolerance"]
    wanted = "RUN --published" if arguments.published else "A B"
    if len(paths) != (1 if arguments.published else 2):
        raise OvssError(f"expected {wanted}, result files or folders of results; got {' '.join(map(str, paths)) or 'none'}.")
    for path in paths:
        if not path.exists():
            raise OvssError(f"{path} does not exist. Expected a result file or a folder of results.")
    from ovss_bench.results.compare import compare_paths, status  # and SciPy, after all that can be wrong with the options

    if arguments.published:
        from ovss_bench.results.reproduced import compare_with_published

        comparisons, without = compare_with_published(*paths, tolerance)
    else:
        comparisons, without = compare_paths(*paths, tolerance), []
    if options["out"]:
        text = dump({"status": status(comparisons), "comparisons": comparisons})
        write_text(Path(options["out"]), text)
    for comparison in comparisons:
        print("\n".join(lines_of(comparison)))
    for reason in without:
        print(f"not compared: {reason}")
    if len(comparisons) > 1:
        print(f"{len(comparisons)} comparisons: {summary(comparisons)}")
    return status(comparisons)


if __name__ == "__main__":
    run_tool(main)
