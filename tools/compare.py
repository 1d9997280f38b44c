"""Compares runs:

python tools/compare.py A B                  result files, or folders of results, matched by segmentor, CLIP and data set
python tools/compare.py FOLDER sclip naclip  two segmentors on all data sets of a folder: a line each, the details in out=FILE
python tools/compare.py RUN --published      with what the method's authors published; also runs on a part of the images

Ends with 0 if all are identical or equivalent, 1 if one is different, 3 if one is inconclusive, 2 for an error.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ovss_bench.cli.startup  # noqa: F401

# isort: split

from ovss_bench.cli.options import is_place, parse_options, run_tool
from ovss_bench.errors import OvssError, visible
from ovss_bench.files import user_path, write_text
from ovss_bench.reports.compare_view import lines_of, method_lines, summary
from ovss_bench.runs.store import dump

OPTIONS = {"tolerance": 0.1, "out": None, "plugins": []}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "words", nargs="*", help="as above, and options NAME=VALUE: tolerance= points of mIoU, out= a JSON file"
    )
    parser.add_argument("--published", action="store_true", help="compare RUN with the published figure, with a checklist")
    arguments = parser.parse_intermixed_args()
    given = [word for word in arguments.words if is_place(word)]
    options = parse_options([word for word in arguments.words if word not in given], OPTIONS)
    tolerance = options["tolerance"]
    wanted = "RUN --published" if arguments.published else "A B, or FOLDER SEGMENTOR SEGMENTOR"
    if len(given) not in ((1,) if arguments.published else (2, 3)):
        raise OvssError(f"expected {wanted}, result files or folders of results; got {' '.join(given) or 'none'}.")
    paths, methods = (given[:1], given[1:]) if len(given) == 3 else (given, [])
    paths = [user_path(path) for path in paths]
    for path in paths:
        if not path.exists():
            raise OvssError(f"{path} does not exist. Expected a result file or a folder of results.")
    # Imports SciPy, so after all that can be wrong with the options.
    from ovss_bench.reports.compare import compare_methods, compare_paths, status

    if arguments.published:
        from ovss_bench.reports.reproduced import compare_with_published

        comparisons, without = compare_with_published(*paths, tolerance)
    elif methods:
        comparisons, without = compare_methods(*paths, *methods, tolerance)
    else:
        comparisons, without = compare_paths(*paths, tolerance), []
    if options["out"]:
        text = dump({"status": status(comparisons), "comparisons": comparisons})
        write_text(Path(options["out"]), text)
    lines = method_lines(comparisons) if methods else [line for each in comparisons for line in lines_of(each)]
    print(visible("\n".join([*lines, *(f"not compared: {reason}" for reason in without)])))
    if len(comparisons) > 1:
        print(f"{len(comparisons)} comparisons: {summary(comparisons)}")
    return status(comparisons)


if __name__ == "__main__":
    run_tool(main)
