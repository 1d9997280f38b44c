"""Measuring the same images with the bare encoder, our run and an official-style loop, in turn, over several rounds."""

from __future__ import annotations

import gc
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..inference.engine import predict
from ..progress import Progress
from ..runs.evaluate import run_jobs
from ..runs.jobs import Job, Runtime
from ..runs.provenance import provenance
from .cases import Case, bare_encoder, in_memory, jobs_of, windows_of
from .official import official_counts, official_label_map, official_miou

MIB = 2**20
BARE, OFFICIAL = "bare encoder", "official style"


def measure(case: Case, rounds: int, progress: Progress) -> dict[str, Any]:
    """Seconds of every way in every round, their ratio to the bare encoder in the same round, stages, memory, and the share of
    pixels on which the official-style loop agrees."""
    if case.threads:
        torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory() as folder:
        jobs = jobs_of(case, Path(folder))
        device = jobs[0].segmentor.clip.device
        ways, stages = _ways(case, jobs, Path(folder))
        agreement = _agreement(case, jobs) if case.official else {}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        peaks: dict[str, float] = {}
        for number in range(rounds + 1):  # round 0 warms up
            for name, way in ways.items():
                spent, peak = _timed(way, device)
                peaks[name] = max(peaks.get(name, 0), peak)  # also of round 0: later ones reuse memory that was not returned
                if number:
                    seconds[name].append(spent)
            if not number:
                stages.clear()
            progress.say(f"round {number} of {rounds}: " + ", ".join(f"{n} {_last(s)}" for n, s in seconds.items()))
    bare = seconds[BARE]
    return {
        "case": asdict(case),
        "seconds": seconds,
        "ratios": {name: _spread([a / b for a, b in zip(spent, bare, strict=True)]) for name, spent in seconds.items()},
        "stages": {name: round(value / rounds, 4) for name, value in stages.items()},
        "peak_memory_mib": {name: round(value) for name, value in peaks.items()},
        "agreement": agreement,
        "provenance": provenance(device),
    }


def _ways(case: Case, jobs: list[Job], folder: Path) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """The ways to measure by name, and a dictionary that accumulates the seconds of our stages in runs from files."""
    dataset, segmentor = jobs[0].dataset, jobs[0].segmentor
    memory = in_memory(dataset, case.images)
    samples = dataset.select(case.images)
    windows = torch.cat([windows_of(segmentor, memory.image(sample)) for sample in samples])
    patch = segmentor.clip.patch_size
    encode = bare_encoder(segmentor.clip, (windows.shape[2] // patch, windows.shape[3] // patch))
    stages: dict[str, float] = {}
    numbers = itertools.count()

    def ours(source: Any, trunk_cache: Path | None = None) -> None:
        same = [Job(job.name, job.segmentor, source, job.protocol) for job in jobs]
        runtime = Runtime(batch=case.batch, trunk_cache=str(trunk_cache) if trunk_cache else None)
        output = folder / f"run{next(numbers)}"
        first, *_ = run_jobs(same, limit=case.images, output=output, runtime=runtime, quiet=True)
        if source is dataset and not trunk_cache:
            for stage, spent in first.data["timing"]["stages"].items():
                stages[stage] = stages.get(stage, 0) + spent

    def official() -> None:
        for job in jobs:
            for sample in samples:
                labels = official_label_map(job.segmentor, dataset.image(sample))
                official_counts(labels, dataset.label(sample), len(dataset.classes))

    ways = {
        BARE: lambda: encode(windows),
        "ours, in memory": lambda: ours(memory),
        "ours, from files": lambda: ours(dataset),
    }
    if case.trunk_cache:
        ways["ours, trunk cache"] = lambda: ours(dataset, folder / "trunk")
    if case.official:
        ways[OFFICIAL] = official
    return ways, stages


def _agreement(case: Case, jobs: list[Job]) -> dict[str, Any]:
    """For each segmentor the percentage of pixels with equal labels, and the mIoU of both ways."""
    dataset = jobs[0].dataset
    samples = dataset.select(case.images)
    keyed = [(number, dataset.image(sample)) for number, sample in enumerate(samples)]
    ours: dict[int, Any] = dict(predict([job.segmentor for job in jobs], keyed, batch=case.batch))
    found = {}
    for place, job in enumerate(jobs):
        equal, pixels, counts = 0, 0, ([], [])
        for number, image in keyed:
            pair = official_label_map(job.segmentor, image).cpu(), ours[number][place].label_map
            equal, pixels = equal + int((pair[0] == pair[1]).sum()), pixels + pair[0].numel()
            for kept, labels in zip(counts, pair, strict=True):
                kept.append(official_counts(labels, dataset.label(samples[number]), len(dataset.classes)))
        mious = [round(official_miou(each), 4) for each in counts]
        found[job.name] = {"equal_pixels": 100 * equal / pixels, "official_miou": mious[0], "our_miou": mious[1]}
    return found


def _timed(way: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds, and the rise of peak memory in MiB."""
    gc.collect()
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / MIB if gpu else _resident("VmRSS")
    if not gpu:
        Path("/proc/self/clear_refs").write_text("5", "utf-8")  # resets VmHWM
    began = time.perf_counter()
    way()
    if gpu:
        torch.cuda.synchronize()
    spent = time.perf_counter() - began
    return spent, (torch.cuda.max_memory_allocated() / MIB if gpu else _resident("VmHWM")) - before


def _resident(field: str) -> float:
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _spread(values: list[float]) -> dict[str, float]:
    spread = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, 4) for name, value in spread.items()}


def _last(values: list[float]) -> str:
    return f"{values[-1]:.2f} s" if values else "–"
