"""Measures time and memory of our run, of the bare encoder, and of a loop in the style of the official code: for all cases of
configs/bench, some of them, or one described by options."""

from __future__ import annotations

import json
from pathlib import Path

from ..config.validation import Count, Images, Number
from ..files import config_names, load_config, write_atomic, write_text
from ..progress import Progress
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
)


def run(words: list[str]) -> None:
    from ..bench.cases import Case
    from ..bench.measure import measure
    from ..bench.view import plot, stages, table
    from ..runs.world import World

    cases, options = COMMAND.parse(words)
    chosen = {word.partition("=")[0] for word in words if "=" in word}
    if not cases and chosen <= {option.name for option in MEASURING}:
        cases = config_names("bench")
    options["device"] = World().device(options["device"])
    rounds, out, progress = options.pop("rounds"), Path(options.pop("out")), Progress()
    results = {}
    for name in cases or ["case"]:
        config = load_config("bench", name) if cases else {}
        case = Case(**options | {key: value for key, value in config.items() if key not in chosen})
        progress.say(f"{name}: {case}")
        results[name] = measure(case, rounds, progress)
        write_text(out / f"{name}.json", json.dumps(results[name], indent=1))
    print(f"{table(results)}\n{stages(results)}")
    write_atomic(out / "ratios.png", lambda path: plot(results, path))
    print(f"Results: {out}/ (a JSON for each case, ratios.png)")


COMMAND = Command(
    __doc__,
    ("[CASE ...] [NAME=VALUE ...]",),
    {"The case": CASE, "The measurement": MEASURING},
    ("ade150 rounds=9", "demo images=1 rounds=1 threads=1", "clip=ViT-L-14 segmentor=naclip classes=60 queries=60"),
    run,
    (f"Cases: {', '.join(config_names('bench'))}.",),
)
