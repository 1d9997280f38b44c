"""Compares results: two files or folders A and B, matched by segmentor, CLIP and data set; two segmentors on all data sets of a
folder; or a run, complete or partial, with its published figure."""

from __future__ import annotations

from ..config.validation import Number
from ..errors import OvssError, visible
from ..files import user_path, write_text
from ..reports.compare_view import lines_of, method_lines, summary
from ..runs.store import dump
from .eval_options import EVAL
from .options import Command, Option, Text


def run(words: list[str]) -> int:
    positional, options = COMMAND.parse(words)
    tolerance, published = options["tolerance"], options["published"]
    if len(positional) not in ((1,) if published else (2, 3)):
        wanted = "RUN published=true" if published else "A B, or FOLDER SEGMENTOR SEGMENTOR"
        raise OvssError(f"expected {wanted}, result files or folders of results; got {' '.join(positional) or 'none'}.")
    methods = positional[1:] if len(positional) == 3 else []
    paths = [user_path(place) for place in (positional[:1] if methods else positional)]
    for path in paths:
        if not path.exists():
            raise OvssError(f"{path} does not exist. Expected a result file or a folder of results.")
    from ..reports.compare import compare_methods, compare_paths, status  # imports SciPy, after all checks of the options

    if published:
        from ..reports.reproduced import compare_with_published

        comparisons, without = compare_with_published(paths[0], tolerance)
    elif methods:
        comparisons, without = compare_methods(paths[0], *methods, tolerance)
    else:
        comparisons, without = compare_paths(*paths, tolerance), []
    if options["out"]:
        write_text(user_path(options["out"]), dump({"status": status(comparisons), "comparisons": comparisons}))
    lines = method_lines(comparisons) if methods else [line for each in comparisons for line in lines_of(each)]
    print(visible("\n".join([*lines, *(f"not compared: {reason}" for reason in without)])))
    if len(comparisons) > 1:
        print(f"{len(comparisons)} comparisons: {summary(comparisons)}")
    return status(comparisons)


COMMAND = Command(
    __doc__,
    ("A B [NAME=VALUE ...]", "FOLDER SEGMENTOR SEGMENTOR [NAME=VALUE ...]", "RUN published=true [NAME=VALUE ...]"),
    {
        "Options": (
            Option("published", bool, False, "compare with the published figure, and print a checklist of settings"),
            Option("tolerance", Number, 0.1, "points of mIoU within which two results are equivalent"),
            Option("out", Text | None, None, "JSON file for the full comparison"),
            EVAL["plugins"],
        )
    },
    ("baseline current", "results/runs sclip naclip out=comparison.json", "results/runs published=true tolerance=0.3"),
    run,
    ("Exit status: 0 if all are identical or equivalent, 1 if one is different, 3 if one is inconclusive, 2 for an error.",),
)
