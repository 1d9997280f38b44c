"""What is measured for a case of configs/bench: whole runs from image files, beside the bare encoder and the official style."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..inference.engine import predict
from ..runs.evaluate import run_jobs
from ..runs.jobs import Job, Runtime
from .cases import Case, bare_encoder, in_memory, jobs_of, windows_of
from .official import official_label_map, official_miou

BARE, OFFICIAL = "bare encoders", "official style"


@dataclass
class Ways:
    """The ways to measure by name, the unit BARE first; the seconds of our stages, which the ways add to; by method, how far
    the labels agree with the official style; the device."""

    ways: dict[str, Callable[[], Any]]
    stages: MutableMapping[str, Any]
    agreement: dict[str, Any]
    device: torch.device


def run_ways(case: Case, folder: Path) -> Ways:
    """The ways to measure for the case's segmentors in one run."""
    jobs = jobs_of(case, folder)
    dataset, segmentor = jobs[0].dataset, jobs[0].segmentor
    memory = in_memory(dataset, case.images)
    samples = dataset.select(case.images)
    windows = torch.cat([windows_of(segmentor, memory.image(sample)) for sample in samples])
    height, width = (side // segmentor.clip.patch_size for side in windows.shape[2:])
    encode, stages = bare_encoder(segmentor.clip, (height, width)), Counter[Any]()

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
    return Ways(ways, stages, _agreement(case, jobs) if case.official else {}, segmentor.clip.device)


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
