"""Measures the bare encoder, our run and an official-style loop on the same images, interleaved over several rounds."""

from __future__ import annotations

import gc
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..inference.engine import predict
from ..progress import Progress
from ..runs.evaluate import run_jobs
from ..runs.jobs import Job, Runtime
from ..runs.provenance import provenance
from .cases import Case, bare_encoder, in_memory, jobs_of, windows_of
from .official import official_label_map, official_miou

MIB = 2**20
BARE, OFFICIAL = "bare encoder", "official style"


def measure(case: Case, rounds: int, progress: Progress) -> dict[str, Any]:
    """Seconds of every way in every round, their ratio to the bare encoder in the same round, stages, peak memory, and the
    agreement of our run with the official-style loop."""
    if case.threads:
        torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory() as folder:
        jobs = jobs_of(case, Path(folder))
        device = jobs[0].segmentor.clip.device
        ways, stages = _ways(case, jobs, Path(folder))
        agreement = _agreement(case, jobs) if case.official else {}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        peaks: dict[str, float] = {}
        for number in range(rounds + 1):
            for name, way in ways.items():
                spent, peak = _timed(way, device)
                seconds[name].append(spent)
                peaks[name] = max(peaks.get(name, 0), peak)  # also of round 0: later ones reuse memory that was not returned
            progress.say(f"round {number} of {rounds}: " + ", ".join(f"{n} {s[-1]:.2f} s" for n, s in seconds.items()))
            if number == 0:  # it only warms up
                stages.clear()
                seconds = {name: [] for name in ways}
    bare = seconds[BARE]
    return {
        "case": vars(case),
        "seconds": seconds,
        "ratios": {name: _spread([a / b for a, b in zip(spent, bare, strict=True)]) for name, spent in seconds.items()},
        "stages": {name: round(value / rounds, 4) for name, value in stages.items()},
        "peak_memory_mib": {name: round(value) for name, value in peaks.items()},
        "agreement": agreement,
        "provenance": provenance(device),
    }


def _ways(case: Case, jobs: list[Job], folder: Path) -> tuple[dict[str, Callable[[], Any]], Counter[str]]:
    """The ways to measure by name, and the seconds of our stages, summed over the runs from files."""
    dataset, segmentor = jobs[0].dataset, jobs[0].segmentor
    memory = in_memory(dataset, case.images)
    samples = dataset.select(case.images)
    windows = torch.cat([windows_of(segmentor, memory.image(sample)) for sample in samples])
    height, width = (side // segmentor.clip.patch_size for side in windows.shape[2:])
    encode = bare_encoder(segmentor.clip, (height, width))
    stages: Counter[str] = Counter()

    def ours(source: Any, trunk_cache: Path | None = None) -> None:
        runtime = Runtime(batch=case.batch, trunk_cache=str(trunk_cache) if trunk_cache else None)
        sourced = [replace(job, dataset=source) for job in jobs]
        output = tempfile.mkdtemp(dir=folder)
        first, *_ = run_jobs(sourced, limit=case.images, output=output, runtime=runtime, quiet=True)
        if source is dataset and not trunk_cache:
            stages.update(first.data["timing"]["stages"])

    def official() -> None:
        for job in jobs:
            official_miou(dataset, samples, (official_label_map(job.segmentor, dataset.image(sample)) for sample in samples))

    ways = {BARE: lambda: encode(windows), "ours, in memory": lambda: ours(memory), "ours, from files": lambda: ours(dataset)}
    if case.trunk_cache:
        ways["ours, trunk cache"] = lambda: ours(dataset, folder / "trunk")
    if case.official:
        ways[OFFICIAL] = official
    return ways, stages


def _agreement(case: Case, jobs: list[Job]) -> dict[str, Any]:
    """For each segmentor the percentage of pixels with equal labels, and the mIoU of both ways."""
    dataset = jobs[0].dataset
    samples = dataset.select(case.images)
    images = [dataset.image(sample) for sample in samples]
    predictions: list[Any] = [each for _, each in predict([job.segmentor for job in jobs], enumerate(images), batch=case.batch)]
    found = {}
    for place, job in enumerate(jobs):
        theirs = [official_label_map(job.segmentor, image).cpu() for image in images]
        ours = [each[place].label_map for each in predictions]
        equal = sum(int((a == b).sum()) for a, b in zip(theirs, ours, strict=True))
        found[job.name] = {
            "equal_pixels": 100 * equal / sum(labels.numel() for labels in theirs),
            "official_miou": round(official_miou(dataset, samples, theirs), 4),
            "our_miou": round(official_miou(dataset, samples, ours), 4),
        }
    return found


def _timed(way: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds, and the rise of peak memory in MiB."""
    gc.collect()
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / MIB
    else:
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", "utf-8")  # resets VmHWM
    began = time.perf_counter()
    way()
    if gpu:
        torch.cuda.synchronize()
    spent = time.perf_counter() - began
    return spent, (torch.cuda.max_memory_allocated() / MIB if gpu else _resident("VmHWM")) - before


def _resident(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text("utf-8"), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def _spread(values: list[float]) -> dict[str, float]:
    spread = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, 4) for name, value in spread.items()}
