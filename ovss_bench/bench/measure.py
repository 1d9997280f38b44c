"""Measures the bare encoders, our code and an official-style loop on the same images, interleaved over several rounds."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..config.registry import load_plugin
from ..errors import OvssError
from ..files import code
from ..progress import Progress
from ..runs.provenance import provenance
from .cases import Case
from .concepts import concept_ways
from .memory import timed
from .methods import method_ways
from .names import on_concepts
from .ways import BARE, Ways, run_ways


def measure(case: Case, rounds: int, progress: Progress, budget: float | None = None) -> dict[str, Any]:
    """Measures a case: seconds and processor seconds of every way in every round, their ratios to the bare encoders in the same
    round, stages, peak memory, and the agreement of our labels with the official-style loop. Round 0 warms up ways that have
    not run yet, and is not counted. Only the first round may begin later than `budget` seconds after the call."""
    if case.threads:
        torch.set_num_threads(case.threads)
    began, load, clock = datetime.now(UTC), os.getloadavg(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        measured = ways_of(case)(case, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in measured.ways}
        processor: dict[str, list[float]] = {name: [] for name in measured.ways}
        peaks: dict[str, float] = {}
        for number in range(1 if measured.warm else 0, rounds + 1):
            if number > 1 and budget is not None and time.monotonic() - clock > budget:
                break
            for name, way in measured.ways.items():
                spent, busy, before, peak = timed(way, measured.device)
                # Including round 0: later rounds reuse memory that was not returned.
                peaks[name] = max(peaks.get(name, 0), peak - before)
                if number:
                    seconds[name].append(spent)
                    processor[name].append(busy)
            if number:
                shown = ", ".join(f"{name} {each[-1]:.2f} s" for name, each in seconds.items())
                progress.say(f"round {number} of at most {rounds}: {shown}")
            else:
                measured.stages.clear()
        counted = len(seconds[BARE])
    return {
        "case": vars(case),
        "seconds": _rounded(seconds),
        "processor_seconds": _rounded(processor),
        "ratios": _ratios(seconds),
        "processor_ratios": _ratios(processor),
        "stages": {name: round(value / counted, 4) for name, value in measured.stages.items()},
        "peak_memory_mib": {name: round(value) for name, value in peaks.items()},
        "memory_mib": measured.memory,
        "operations": measured.operations(),
        "counts": measured.counts,
        "agreement": measured.agreement,
        "precisions": measured.precisions,
        "threads": torch.get_num_threads(),
        "code": code_digest(),
        "measured": began.isoformat(timespec="seconds"),
        "load": [round(each, 2) for each in (load[0], os.getloadavg()[0])],
    }


def ways_of(case: Case) -> Callable[[Case, Path], Ways]:
    """The function that prepares what is measured for a case."""
    if not case.method:
        return run_ways
    return concept_ways if on_concepts(case.segmentor[0]) else method_ways


def measure_apart(case: Case, rounds: int, budget: float | None, plugins: Collection[str]) -> dict[str, Any]:
    """`measure` in a separate process, so that cases share neither memory nor caches."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, context) as pool:
            return pool.submit(_measure_with, case, rounds, budget, list(plugins)).result()
    except BrokenProcessPool as error:
        what = f"the process of the case {', '.join(case.segmentor)} was killed, perhaps out of memory"
        raise OvssError(f"{what}. Use a smaller image (height=, width=), or leave the case out.") from error


def _measure_with(case: Case, rounds: int, budget: float | None, plugins: list[str]) -> dict[str, Any]:
    for plugin in plugins:
        load_plugin(plugin)
    return measure(case, rounds, Progress(), budget)


@cache
def code_digest() -> str:
    """The digest of all code that a measurement depends on."""
    return code("auxiliary", "bench", "encoders", "inference", "ops", "segmentors", "image.py")[:16]


def threads_of(chosen: int | None) -> int:
    """The threads that torch will use."""
    return chosen or torch.get_num_threads()


def machine(device: str) -> dict[str, Any]:
    """The processor or GPU, system, and versions of Python and libraries."""
    facts = provenance(torch.device(device))
    return {name: facts[name] for name in ("device", "platform", "python", "packages")} | {"processors": os.cpu_count()}


def _rounded(times: Mapping[str, list[float]]) -> dict[str, list[float]]:
    return {name: [round(value, 4) for value in each] for name, each in times.items()}


def _ratios(times: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """The ratio of each way to the bare encoders in the same round: median, minimum and maximum over the rounds."""
    return {name: _spread([a / b for a, b in zip(each, times[BARE], strict=True)]) for name, each in times.items()}


def _spread(values: list[float]) -> dict[str, float]:
    spread = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, 4) for name, value in spread.items()}
