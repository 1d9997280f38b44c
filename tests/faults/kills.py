"""SIGKILL at random moments: `python tests/faults/kills.py times=100 [seed=0]`. Every run is killed once or
several times, then resumed, and must end with the counts, label maps and metrics of an undisturbed run.

Runs are forked from a process that has imported everything, so that most kills hit the evaluation, not the start.
"""

import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from end_to_end.tools import evaluate_here
from ovss_bench.cli.options import Option, parse_options
from ovss_bench.config.validation import Count, Whole
from ovss_bench.runs import store
from ovss_bench.runs.code import known_code
from ovss_bench.runs.load import result_paths
from ovss_bench.runs.store import read_counts, read_result

ARGUMENTS = ["segmentor=[clip,sclip]", "limit=20", "runtime.batch=8", "runtime.maps=true", "runtime.boundary=true"]
ARGUMENTS += ["recipe.resize=none", "recipe.window=48", "recipe.stride=48"]
LONG = 600  # seconds after which a run counts as hanging
TIMES = ("timing", "peak_memory_mib", "provenance")  # what may differ between two runs


def run(output: Path, images_per_shard: int) -> None:
    """The work of a child. With small shards, kills hit more half-written files."""
    store.IMAGES_PER_SHARD = images_per_shard
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    evaluate_here(f"output={output}", *ARGUMENTS)


def start(output: Path, images_per_shard: int) -> multiprocessing.Process:
    child = multiprocessing.get_context("fork").Process(target=run, args=(output, images_per_shard))
    child.start()
    return child


def kill(child: multiprocessing.Process, output: Path, files: int, delay: float) -> bool:
    """Kills a run some seconds after it has written a number of files. Returns whether it was still running."""
    before = len(list(output.rglob("*")))
    while child.is_alive() and len(list(output.rglob("*"))) < before + files:
        child.join(0.005)
    child.join(delay)
    alive = child.is_alive()
    child.kill()
    child.join()
    return alive


def finish(output: Path, images_per_shard: int = 16) -> None:
    child = start(output, images_per_shard)
    child.join(LONG)
    if child.is_alive():
        child.kill()
        raise AssertionError(f"the run hangs: {output}")
    assert child.exitcode == 0, f"the run has ended with status {child.exitcode}: {output}"


def outcome(output: Path) -> dict[str, tuple]:
    """For each segmentor everything that must not depend on kills."""
    found = {}
    for path in result_paths(output):
        result = read_result(path)
        counts, hashes, edges = read_counts(path.with_suffix(".npz"))
        arrays = {f"{kind} {image}": part for kind, parts in (("c", counts), ("e", edges)) for image, part in parts.items()}
        maps = {file.name: file.read_bytes() for file in path.with_suffix(".maps").glob("[!.]*")}
        found[result["segmentor"]] = ({k: v for k, v in result.items() if k not in TIMES}, hashes, maps, arrays)
    return found


def compare(found: dict[str, tuple], expected: dict[str, tuple]) -> None:
    assert found.keys() == expected.keys()
    for name, (result, hashes, maps, arrays) in expected.items():
        other = found[name][0]
        assert other == result, [key for key in result if other.get(key) != result[key]]
        assert found[name][1:3] == (hashes, maps), name
        assert found[name][-1].keys() == arrays.keys()
        assert all(np.array_equal(found[name][-1][key], array) for key, array in arrays.items()), name


def kill_and_resume(times: int, seed: int, folder: Path) -> tuple[int, int]:
    """Kills runs `times` times in all. Returns the number of kills before the end of a run, and the number of runs."""
    chance, met, runs, given = random.Random(seed), 0, 0, 0
    for name in ("clip", "sclip"):  # read once, for all children: an edit meanwhile would make other runs of them
        known_code(name, "demo", [])
    finish(folder / "quiet")
    files = len(list((folder / "quiet").rglob("*")))
    expected = outcome(folder / "quiet")
    assert set(expected) == {"clip", "sclip"}
    while given < times:
        output, per_shard = folder / f"run{runs}", chance.choice([1, 3, 16])
        for _ in range(min(chance.randint(1, 3), times - given)):
            met += kill(start(output, per_shard), output, chance.randrange(files), chance.uniform(0, 0.03))
            given += 1
        finish(output, per_shard)
        compare(outcome(output), expected)
        assert not list(output.rglob("*.shards"))
        shutil.rmtree(output)
        runs += 1
    return met, runs


def main() -> None:
    options = parse_options(sys.argv[1:], [Option("times", Count, 100), Option("seed", Whole, 0)])
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        met, runs = kill_and_resume(int(options["times"]), int(options["seed"]), Path(folder))
    print(
        f"{options['times']} kills in {runs} runs, {met} of them before the run had ended; all resumed runs are identical "
        f"to an undisturbed one ({time.monotonic() - began:.0f} s)"
    )


if __name__ == "__main__":
    main()
