"""Measures the time and memory of every registered method, of cases of configs/bench, or of a case described by options, and
compares the time with that of the bare encoder passes and of a loop in the style of the official code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints

from ..bench.names import measured_methods
from ..config.registry import SEGMENTORS
from ..config.validation import Count, Expected, Images, Number
from ..errors import OvssError, unknown
from ..files import config_names, load_config, read_json, write_atomic, write_text
from ..progress import Progress
from .eval_options import EVAL
from .options import Command, Option, Text, Texts

Counts = Annotated[list[Annotated[str, StringConstraints(pattern=r"^[1-9]\d{0,4}$")]], Expected("numbers of windows")]
CASE = (
    Option("clip", Text, "ViT-B-16", "an entry of configs/clip, or an architecture of open_clip with random weights"),
    Option("dataset", Text | None, None, "data set; default: drawn images"),
    Option("segmentor", Texts, ["sclip"], "methods: one, a list, or clip_alone for all that need only CLIP"),
    Option("classes", Count, 150, "number of classes"),
    Option("queries", Count, 150, "number of queries: one or more per class"),
    Option("threshold", Number, 0.0, "background threshold"),
    Option("height", Count, 512, "height of the images, in pixels"),
    Option("width", Count, 683, "width of the images, in pixels"),
    Option("images", Images, 4, "number of images"),
    Option("short_side", Count, 336, "short side of the resized images, in pixels"),
    Option("window", Count, 224, "side of the windows, in pixels"),
    Option("stride", Count, 112, "stride of the windows, in pixels"),
    Option("precision", Text | None, None, "precision of the encoder; default: depends on the device"),
    Option("batch", Count | None, None, "windows per forward pass; default: chosen from the number of tokens"),
    Option("official", bool, True, "also measure the loop in the style of the official code"),
    Option("trunk_cache", bool, False, "also measure with a trunk cache"),
    Option("one_by_one", bool, False, "also measure each method in a separate run"),
    Option("shape", Text | None, None, "measure each method separately with its recipe for this data set, on drawn images"),
    Option("workers", Count, 2, "reader threads"),
    Option("batches", Counts, [], "also measure runs and the bare encoder with these numbers of windows per forward pass"),
    Option("graph", bool, False, "also measure the bare encoder as CUDA graphs of batches=; needs device=cuda"),
    Option("compile", bool, False, "also measure runs with torch.compile"),
    Option("precisions", Texts, [], "also measure runs in these precisions of the encoder, and compare their labels"),
    Option("concepts", Text, "demo", "concept segmenter, for methods that use one: an entry of configs/concepts or a folder"),
)
MEASURING = (
    Option("rounds", Count, 5, "maximum number of rounds; every round repeats all measurements"),
    Option("seconds", Number, 15.0, "time per case after which no further round begins; 0: no limit"),
    Option(
        "again",
        bool,
        False,
        "also repeat measurements with the same code and options, which are skipped in groups and without names",
    ),
    Option("threads", Count | None, None, "threads of torch; default: all cores"),
    Option("device", Text, "cpu", "cpu or cuda"),
    Option("out", Text, "results/speed", "folder of the results"),
    Option("machine", Text | None, None, "name of the results; default: the processor or GPU, and the threads"),
    EVAL["plugins"],
)
# Options that the case of a method lacks; any of them describes a run.
OF_RUNS = {"segmentor", "dataset", "images", "trunk_cache", "one_by_one", "shape", "workers"}
OF_RUNS |= {"batches", "graph", "compile", "precisions"}
RUN = ("rounds", "seconds", "again", "out", "machine", "plugins")  # options that describe no case
RECIPE = ("short_side", "window", "stride", "threshold")  # options that replace values of a method's own recipe


def run(words: list[str]) -> None:
    names, options = COMMAND.parse(words)
    chosen = {word.partition("=")[0] for word in words if "=" in word}

    methods = sorted({*SEGMENTORS.names, *config_names("segmentor")})
    known = [*methods, *(f"{method}:given" for method in methods), "case", *config_names("bench")]
    for name in names:  # before torch is imported
        if name not in known and "+" not in name and name not in grouped(name.partition("/")[0]):
            raise unknown("case", name, [*known, *grouped(name.partition("/")[0])])

    from ..bench.measure import machine, measure_apart, threads_of
    from ..bench.methods import method_cases
    from ..bench.view import plot, rates_view, stages, table
    from ..runs.world import World

    options["device"] = World().device(options["device"])
    rounds, seconds, again, out, stem, plugins = (options.pop(name) for name in RUN)
    resumed = not names and not chosen & OF_RUNS
    if not names:
        names = (
            ["case"] if chosen & OF_RUNS else [*method_cases(), *(name for name in config_names("bench") if not grouped(name))]
        )
    names = [each for name in names for each in (grouped(name) or [name])]
    cases, progress = {name: case_of(name, options, chosen) for name in names}, Progress()
    facts = machine(options["device"])
    threads = threads_of(options["threads"])
    path = Path(out) / f"{stem or _slug(facts['device'], threads)}.json"
    results: dict[str, Any] = read_json(path)["cases"] if path.is_file() else {}  # of earlier calls
    failed: dict[str, OvssError] = {}
    for name, case in cases.items():
        if not again and (resumed or "/" in name) and name in results and is_same(case, results[name]):
            progress.say(f"{name}: already in {path}; again=true repeats it")
            continue
        progress.say(f"{name}: {case}")
        try:
            results[name] = measure_apart(case, rounds, seconds or None, plugins or ())
        except OvssError as error:
            failed[name] = error
            continue
        write_text(path, json.dumps({"machine": facts, "cases": results}, indent=1) + "\n")
    if shown := {name: results[name] for name in names if name not in failed}:
        print(f"{table(shown)}\n{stages(shown)}\n{rates_view(shown)}".rstrip())
        write_atomic(path.with_suffix(".png"), lambda temporary: plot(shown, temporary))
        print(f"Results: {path}, and the ratios in {path.with_suffix('.png').name}")
    if failed:
        raise OvssError(" ".join(f"{name} was not measured: {error}" for name, error in failed.items()))


def grouped(name: str) -> list[str]:
    """GROUP/CASE for each case in a file of configs/bench; empty if the file describes a single case."""
    cases = load_config("bench", name).get("cases", {}) if name in config_names("bench") else {}
    return [f"{name}/{case}" for case in cases]


def is_same(case: Any, result: dict[str, Any]) -> bool:
    """Whether a result belongs to the case and to the current code."""
    from ..bench.measure import code_digest

    return result["case"] == json.loads(json.dumps(vars(case))) and result.get("code") == code_digest()


def case_of(name: str, options: dict[str, Any], chosen: set[str]) -> Any:
    """The case of a METHOD, a METHOD:given (with given outputs of auxiliary models), another recipe, a METHOD+STEP, an entry of
    configs/bench, or the options alone."""
    from ..bench.cases import Case
    from ..bench.methods import GIVEN, method_cases

    segmentor = name.removesuffix(GIVEN)
    if name in method_cases() or (name == segmentor and ("+" in name or name in config_names("segmentor"))):
        values = {"segmentor": [segmentor], "images": 1, "given": name != segmentor, "method": True}
        return Case(**options | values, recipe={key: options[key] for key in RECIPE if key in chosen})
    group, _, _ = name.partition("/")
    if name not in ("case", *config_names("bench"), *grouped(group)):
        raise unknown("case", name, [*method_cases(), *config_names("bench"), *grouped(group)])
    config = load_config("bench", group) if name != "case" else {}
    if name in grouped(group):
        config |= config.pop("cases")[name.removeprefix(f"{group}/")]
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
        f"Methods: {', '.join(measured_methods())}; other recipes, such as floss; METHOD+STEP; and METHOD:given, with features "
        "or attention maps that cost nothing.",
        f"Cases: {', '.join(config_names('bench'))}.",
    ),
)
