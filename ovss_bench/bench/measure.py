"""Measures the bare encoders, our code and an official-style loop on the same images, interleaved over several rounds."""

from __future__ import annotations

import gc
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..progress import Progress
from ..runs.provenance import provenance
from .cases import Case
from .methods import method_ways
from .ways import BARE, run_ways

MIB = 2**20


def measure(case: Case, rounds: int, progress: Progress) -> dict[str, Any]:
    """Seconds and processor seconds of every way in every round, their ratios to the bare encoders in the same round, stages,
    peak memory, and the agreement of our labels with the official-style loop. Round 0 warms up and is not counted."""
    if case.threads:
        torch.set_num_threads(case.threads)
    began, load = datetime.now(UTC), os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        measured = (method_ways if case.method else run_ways)(case, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in measured.ways}
        processor: dict[str, list[float]] = {name: [] for name in measured.ways}
        peaks: dict[str, float] = {}
        for number in range(rounds + 1):
            for name, way in measured.ways.items():
                spent, busy, peak = _timed(way, measured.device)
                peaks[name] = max(peaks.get(name, 0), peak)  # also of round 0: later ones reuse memory that was not returned
                if number:
                    seconds[name].append(spent)
                    processor[name].append(busy)
            if number:
                shown = ", ".join(f"{name} {each[-1]:.2f} s" for name, each in seconds.items())
                progress.say(f"round {number} of {rounds}: {shown}")
            else:
                measured.stages.clear()
    return {
        "case": vars(case),
        "seconds": _rounded(seconds),
        "processor_seconds": _rounded(processor),
        "ratios": _ratios(seconds),
        "processor_ratios": _ratios(processor),
        "stages": {name: round(value / rounds, 4) for name, value in measured.stages.items()},
        "peak_memory_mib": {name: round(value) for name, value in peaks.items()},
        "agreement": measured.agreement,
        "threads": torch.get_num_threads(),
        "measured": began.isoformat(timespec="seconds"),
        "load": [round(each, 2) for each in (load[0], os.getloadavg()[0])],
    }


def machine(device: str) -> dict[str, Any]:
    """The processor or GPU, system, and versions of Python and libraries."""
    facts = provenance(torch.device(device))
    return {name: facts[name] for name in ("device", "platform", "python", "packages")} | {"processors": os.cpu_count()}


def _rounded(times: Mapping[str, list[float]]) -> dict[str, list[float]]:
    return {name: [round(value, 4) for value in each] for name, each in times.items()}


def _ratios(times: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """The ratio of each way to the bare encoders, taken in each round: its median, minimum and maximum."""
    return {name: _spread([a / b for a, b in zip(each, times[BARE], strict=True)]) for name, each in times.items()}


def _timed(way: Callable[[], Any], device: torch.device) -> tuple[float, float, float]:
    """Seconds, processor seconds of all threads, and the rise of peak memory in MiB."""
    gc.collect()
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / MIB
    else:
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", "utf-8")  # resets VmHWM
    began, busy = time.perf_counter(), time.process_time()
    way()
    if gpu:
        torch.cuda.synchronize()
    spent, busy = time.perf_counter() - began, time.process_time() - busy
    return spent, busy, (torch.cuda.max_memory_allocated() / MIB if gpu else _resident("VmHWM")) - before


def _resident(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text("utf-8"), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def _spread(values: list[float]) -> dict[str, float]:
    spread = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, 4) for name, value in spread.items()}
