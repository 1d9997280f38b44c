"""Measures time and memory against the bare encoder passes, and against a loop in the style of the official code: of every
registered method, of cases of configs/bench, or of a case described by options."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..config.registry import SEGMENTORS
from ..config.validation import Count, Images, Number
from ..errors import unknown
from ..files import config_names, load_config, read_json, write_atomic, write_text
from ..progress import Progress
from .eval_options import EVAL
from .options import Command, Option, Text, Texts

CASE = (
    Option("clip", Text, "ViT-B-16", "an entry of configs/clip, or an architecture of open_clip with random weights"),
    Option("dataset", Text | None, None, "data set; default: drawn images"),
    Option("segmentor", Texts, ["sclip"], "methods: one or a list"),
    Option("classes", Count, 150, "number of classes"),
    Option("queries", Count, 150, "number of queries: one or more per class"),
    Option("threshold", Number, 0.0, "background threshold"),
    Option("height", Count, 512, "of the images, in pixels"),
    Option("width", Count, 683, "of the images, in pixels"),
    Option("images", Images, 4, "number of images"),
    Option("short_side", Count, 336, "of the resized images, in pixels"),
    Option("window", Count, 224, "in pixels"),
    Option("stride", Count, 112, "in pixels"),
    Option("precision", Text | None, None, "of the encoder; default: that of the device"),
    Option("batch", Count | None, None, "windows per forward pass; default: chosen from the number of tokens"),
    Option("official", bool, True, "also measure the loop in the style of the official code"),
    Option("trunk_cache", bool, False, "also measure with a trunk cache"),
)
MEASURING = (
    Option("rounds", Count, 5, "repetitions of all measurements, interleaved"),
    Option("threads", Count | None, None, "of torch; default: all cores"),
    Option("device", Text, "cpu", "cpu or cuda"),
    Option("out", Text, "results/speed", "folder of the results"),
    Option("machine", Text | None, None, "name of the results; default: the processor or GPU, and the threads"),
    EVAL["plugins"],
)
OF_RUNS = {"segmentor", "dataset", "images", "trunk_cache"}  # options that no method's case has; one of them describes a run
RECIPE = ("short_side", "window", "stride", "threshold")  # options that replace values of a method's own recipe


def run(words: list[str]) -> None:
    names, options = COMMAND.parse(words)
    chosen = {word.partition("=")[0] for word in words if "=" in word}

    from ..bench.measure import machine, measure
    from ..bench.methods import method_cases
    from ..bench.view import plot, stages, table
    from ..runs.world import World

    options["device"] = World().device(options["device"])
    rounds, out, given_name, _ = (options.pop(name) for name in ("rounds", "out", "machine", "plugins"))
    if not names:
        names = ["case"] if chosen & OF_RUNS else method_cases()
    cases, progress = {name: case_of(name, options, chosen) for name in names}, Progress()
    facts = machine(options["device"])
    results: dict[str, Any] = {}
    for name, case in cases.items():
        progress.say(f"{name}: {case}")
        results[name] = measure(case, rounds, progress)
        threads = results[name]["threads"]
        path = Path(out) / f"{given_name or _slug(facts['device'], threads)}.json"
        known = read_json(path)["cases"] if path.is_file() else {}  # of earlier calls
        write_text(path, json.dumps({"machine": facts, "cases": known | {name: results[name]}}, indent=1) + "\n")
    print(f"{table(results)}\n{stages(results)}")
    write_atomic(path.with_suffix(".png"), lambda temporary: plot(results, temporary))
    print(f"Results: {path}, and the ratios in {path.with_suffix('.png').name}")


def case_of(name: str, options: dict[str, Any], chosen: set[str]) -> Any:
    """A method's case, with GIVEN at the end of its name for outputs that are given; an entry of configs/bench; or the options
    alone."""
    from ..bench.cases import Case
    from ..bench.methods import GIVEN, method_cases

    if name in method_cases():
        own = {"segmentor": [name.removesuffix(GIVEN)], "images": 1, "given": name.endswith(GIVEN), "method": True}
        return Case(**options | own, recipe={key: options[key] for key in RECIPE if key in chosen})
    if name not in ("case", *config_names("bench")):
        raise unknown("case", name, [*method_cases(), *config_names("bench")])
    config = load_config("bench", name) if name != "case" else {}
    return Case(**options | {key: value for key, value in config.items() if key not in chosen}, given=False, method=False)


def _slug(device: str, threads: int) -> str:
    return f"{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}-{threads}-threads"


COMMAND = Command(
    __doc__,
    ("[METHOD|CASE ...] [NAME=VALUE ...]",),
    {"The case": CASE, "The measurement": MEASURING},
    ("naclip proxyclip:given threads=2", "ade150 demo rounds=9", "clip=ViT-L-14 segmentor=naclip classes=60 queries=60"),
    run,
    (
        f"Methods: {', '.join(sorted(SEGMENTORS.names))}; METHOD:given with features or attention maps that cost nothing.",
        f"Cases: {', '.join(config_names('bench'))}.",
    ),
)
