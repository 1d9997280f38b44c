"""Evaluations at the scale of the large benchmarks, with an encoder that costs next to nothing:
`python tests/scale/simulated.py images=5000 height=480 width=640 classes=171 queries=171`.

Prints the milliseconds per image outside of the encoder, the memory over time, and the number of files. A second run is killed
halfway and resumed, and must end with the same counts.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ovss_bench as ob
from ovss_bench.cli.options import Option, parse_options
from ovss_bench.config.validation import Count
from ovss_bench.runs.evaluate import make_job, run_jobs
from ovss_bench.runs.load import result_paths
from ovss_bench.runs.store import read_counts, read_result
from parity.seeded import clip_state_dict

KINDS = 20  # different pictures; every file is a copy of one of them
OPTIONS = [Option(name, Count, value) for name, value in
           {"images": 5000, "height": 480, "width": 640, "classes": 171, "queries": 171}.items()]  # fmt: skip


def draw(folder: Path, images: int, size: tuple[int, int], classes: int, queries: int) -> Path:
    """Writes images, label maps and the configuration of a data set; returns its path."""
    random, pairs = np.random.RandomState(0), []
    for folder_name in ("images", "labels"):
        (folder / folder_name).mkdir(parents=True)
    for _ in range(min(KINDS, images)):
        coarse = random.randint(0, 256, (12, 16, 3), np.uint8)
        picture = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
        labels = Image.fromarray(random.randint(0, classes, (9, 12)).astype(np.uint16)).resize(
            size[::-1], Image.Resampling.NEAREST
        )
        picture.save(folder / "one.jpg", quality=90)
        labels.save(folder / "one.png")
        pairs.append([(folder / f"one.{suffix}").read_bytes() for suffix in ("jpg", "png")])
    for number in range(images):
        for kind, suffix, content in zip(("images", "labels"), ("jpg", "png"), pairs[number % KINDS], strict=True):
            (folder / kind / f"{number:06}.{suffix}").write_bytes(content)
    synonyms = np.array_split([f"thing {q}" for q in range(queries)], classes)
    config = {"images": "images", "labels": "labels", "image_suffix": ".jpg", "label_suffix": ".png"}
    config |= {"classes": [names.tolist() for names in synonyms], "ignore_index": 65535, "expected_images": images}
    (folder / "simulated.yaml").write_text(yaml.safe_dump(config))
    return folder / "simulated.yaml"


def evaluate(dataset: Path, output: Path) -> None:
    """The work of a child."""
    torch.set_num_threads(1)
    clip = ob.load_clip(state_dict=clip_state_dict(1, width=64, layers=2))
    job = make_job("sclip", clip, ob.load_dataset(dataset), overrides={"templates": "notebook7"})
    run_jobs([job], output=output, quiet=True)


def start(dataset: Path, output: Path) -> multiprocessing.Process:
    child = multiprocessing.get_context("fork").Process(target=evaluate, args=(dataset, output))
    child.start()
    return child


def watched(child: multiprocessing.Process) -> list[float]:
    """The resident memory in MiB, once a second, until the child ends."""
    seen = []
    while child.is_alive():
        seen.append(int(Path(f"/proc/{child.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
        child.join(1)
    assert child.exitcode == 0
    return [mib for mib in seen if mib]  # 0: it has just ended


def killed_halfway(dataset: Path, output: Path, images: int) -> int:
    """Kills a run once shards hold half of the images. Returns the number of images that are kept."""
    child = start(dataset, output)
    kept: list[Path] = []
    while child.is_alive() and sum(len(read_counts(path)[0]) for path in kept) < images / 2:
        child.join(0.2)
        kept = list(output.rglob("*.shards/[0-9]*.npz"))
    child.kill()
    child.join()
    return sum(len(read_counts(path)[0]) for path in kept)


def outcome(output: Path) -> tuple[dict, dict]:
    (path,) = result_paths(output)
    return read_result(path), read_counts(path.with_suffix(".npz"))[0]


def simulate(folder: Path, images: int, height: int, width: int, classes: int, queries: int) -> dict:
    dataset = draw(folder / "data", images, (height, width), classes, queries)
    memory = watched(start(dataset, folder / "quiet"))
    result, counts = outcome(folder / "quiet")
    kept = killed_halfway(dataset, folder / "killed", images)
    watched(start(dataset, folder / "killed"))
    resumed, again = outcome(folder / "killed")
    assert resumed["metrics"] == result["metrics"]
    assert counts.keys() == again.keys()
    assert all(np.array_equal(counts[image], again[image]) for image in counts)
    timing, files = result["timing"], [path for path in (folder / "quiet").rglob("*") if path.is_file()]
    late = memory[len(memory) // 2 :]
    return {
        "images": len(counts),
        "ms_per_image": round(1000 * timing["seconds"] / images, 2),
        "stages_ms": {name: round(1000 * seconds / images, 2) for name, seconds in timing["stages"].items()},
        "memory_mib": {"halfway": round(late[0]), "end": round(late[-1]), "peak": round(max(memory))},
        "files": len(files),
        "files_mib": round(sum(path.stat().st_size for path in files) / 2**20, 1),
        "kept_after_the_kill": kept,
    }


def main() -> None:
    options = {name: int(value) for name, value in parse_options(sys.argv[1:], OPTIONS).items()}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        facts = simulate(Path(folder), **options)
    print(json.dumps(facts, indent=1))
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
