"""Measures what our run costs beside the bare encoder, and beside a loop in the style of the official codes:
`python tools/bench.py` for the cases of configs/bench, `python tools/bench.py ade150 rounds=9` for one, or any other:
`python tools/bench.py clip=ViT-L-14 segmentor=[naclip] classes=60 queries=60 images=2 threads=2 out=DIR`.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ovss_bench.cli.startup  # noqa: F401

# isort: split

from ovss_bench.bench.cases import Case
from ovss_bench.bench.measure import measure
from ovss_bench.bench.view import plot, stages, table
from ovss_bench.cli.options import parse_options, run_tool
from ovss_bench.files import config_names, load_config, write_atomic, write_text
from ovss_bench.progress import Progress
from ovss_bench.runs.world import World

OPTIONS = {
    "clip": "ViT-B-16",
    "dataset": None,
    "segmentor": ["sclip"],
    "classes": 150,
    "queries": 150,
    "threshold": 0.0,
    "height": 512,
    "width": 683,
    "images": 4,
    "short_side": 336,
    "window": 224,
    "stride": 112,
    "device": "cpu",
    "precision": None,
    "threads": None,
    "batch": None,
    "official": True,
    "trunk_cache": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = " ".join(f"{key}=" for key in OPTIONS)
    parser.add_argument(
        "words", nargs="*", help=f"cases of configs/bench ({', '.join(config_names('bench'))}); rounds= out= {names}"
    )
    words = parser.parse_args().words
    cases = [word for word in words if "=" not in word]
    given = [word for word in words if "=" in word]
    options = parse_options(given, OPTIONS | {"rounds": 5, "out": "results/speed"})
    chosen = {word.partition("=")[0] for word in given}
    if not cases and not chosen - {"rounds", "out", "threads", "device"}:
        cases = config_names("bench")
    options["device"] = World().device(options["device"])
    rounds, out, progress = options.pop("rounds"), Path(options.pop("out")), Progress()
    results = {}
    for name in cases or ["case"]:
        own = load_config("bench", name) if cases else {}
        both = chosen & own.keys()
        case = Case(**{**options, **own, **{key: options[key] for key in both}})
        progress.say(f"{name}: {case}")
        results[name] = measure(case, rounds, progress)
        text = json.dumps(results[name], indent=1)
        write_text(out / f"{name}.json", text)
    print(f"{table(results)}\n{stages(results)}")
    write_atomic(out / "ratios.png", lambda path: plot(results, path))
    print(f"Results: {out}/ (a JSON for each case, ratios.png)")


if __name__ == "__main__":
    run_tool(main)
