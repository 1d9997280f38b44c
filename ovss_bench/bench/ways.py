"""What is measured for a case of configs/bench: whole runs from image files, the bare encoder and the official style."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..inference.engine import predict
from ..runs.evaluate import run_jobs
from ..runs.jobs import Job, Runtime
from .cases import Case, bare_encoder, clip_of, graphed, in_memory, jobs_of, windows_of, with_clip
from .official import official_label_map, official_miou

BARE, OFFICIAL, METHOD = "bare encoders", "official style", "method"
FILES, MEMORY, ALONE = "ours, from files", "ours, in memory", " by itself"
MEMORY_SIZE = (448, 598)  # pixels of the image for which a method's peak memory is measured


@dataclass
class Ways:
    """The `ways` to measure by name, the unit BARE first; the seconds of our `stages`, to which the ways add; by method, the
    `agreement` of its labels with the official style; the device. For a single method also its `memory` (`peak_memory`), its
    `counts` of passes or prompts, and the `operations` outside the encoders (`own_operations`). `warm`: every way has run."""

    ways: dict[str, Callable[[], Any]]
    stages: MutableMapping[str, Any]
    agreement: dict[str, Any]
    device: torch.device
    memory: dict[str, int] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    operations: Callable[[], dict[str, float]] = dict
    warm: bool = False
    precisions: Mapping[str, Any] = field(default_factory=dict)  # like `agreement`, of our labels in another precision


def run_ways(case: Case, folder: Path) -> Ways:
    """The ways to measure for the case's segmentors in one run."""
    jobs = jobs_of(case, folder)
    dataset, segmentor = jobs[0].dataset, jobs[0].segmentor
    memory = in_memory(dataset, case.images)
    samples = dataset.select(case.images)
    windows = torch.cat([windows_of(segmentor, memory.image(sample)) for sample in samples])
    windows = windows.to(segmentor.clip.device, segmentor.clip.dtype)  # the unit excludes the copy to the GPU
    height, width = (side // segmentor.clip.patch_size for side in windows.shape[2:])
    encode, stages = bare_encoder(segmentor.clip, (height, width)), Counter[Any]()

    def ours(source: Any, chosen: Sequence[Job] = jobs, **options: Any) -> None:
        runtime = Runtime(**{"batch": case.batch, "workers": case.workers} | options)
        sourced = [replace(job, dataset=source) for job in chosen]
        output = tempfile.mkdtemp(dir=folder)
        first, *_ = run_jobs(sourced, limit=case.images, output=output, runtime=runtime, quiet=True)
        if source is dataset and not options and chosen[0] is jobs[0] and (case.shape or chosen is jobs):
            stages.update(first.data["timing"]["stages"])

    def official() -> None:
        for job in jobs:
            official_miou(dataset, samples, (official_label_map(job.segmentor, dataset.image(sample)) for sample in samples))

    ways: dict[str, Callable[[], Any]] = {BARE: lambda: encode(windows)}
    if not case.shape:  # with a shape, the windows of methods differ
        ways |= {MEMORY: lambda: ours(memory), FILES: lambda: ours(dataset)}
    if case.trunk_cache:
        ways["ours, trunk cache"] = lambda: ours(dataset, trunk_cache=str(folder / "trunk"))
    for size in map(int, case.batches):
        ways |= _in_batches(case, encode, windows, size)
        ways[f"ours, batches of {size}"] = partial(ours, memory, batch=size)
    if case.compile:
        ways["ours, compiled"] = partial(ours, memory, [with_clip(job, job.segmentor.clip) for job in jobs], compile=True)
    others = {precision: _in_precision(case, jobs, precision) for precision in case.precisions}
    ways |= {f"ours, {precision}": partial(ours, memory, chosen) for precision, chosen in others.items()}
    for job in jobs if case.one_by_one or case.shape else ():
        ways[f"{job.name}{ALONE}"] = partial(ours, dataset, [job])
    if case.official:
        ways[OFFICIAL] = official
    mine = _label_maps(case, jobs) if others or case.official else []
    lower = {precision: _equal_pixels(mine, _label_maps(case, other)) for precision, other in others.items()}
    agreement = _agreement(case, jobs, mine) if case.official else {}
    return Ways(ways, stages, agreement, segmentor.clip.device, precisions=lower)


def _in_batches(case: Case, encode: Callable[[Tensor], Any], windows: Tensor, size: int) -> dict[str, Callable[[], Any]]:
    """The bare encoder with `size` windows per forward pass and, with `graph`, as a CUDA graph of the first such pass."""
    parts = windows.split(size)
    ways: dict[str, Callable[[], Any]] = {f"{BARE}, batches of {size}": lambda: [encode(part) for part in parts]}
    if case.graph:
        replay = graphed(encode, parts[0])
        ways[f"{BARE}, CUDA graphs of {size}"] = lambda: [replay() for _ in parts]
    return ways


def _in_precision(case: Case, jobs: list[Job], precision: str) -> list[Job]:
    clip = clip_of(Case(**vars(case) | {"precision": precision}))
    return [with_clip(job, clip) for job in jobs]


def _label_maps(case: Case, jobs: list[Job]) -> list[list[Tensor]]:
    """Our label maps of the case's images for each job."""
    dataset = jobs[0].dataset
    images = enumerate(dataset.image(sample) for sample in dataset.select(case.images))
    predictions: list[Any] = [each for _, each in predict([job.segmentor for job in jobs], images, batch=case.batch)]
    return [[each[place].label_map for each in predictions] for place in range(len(jobs))]


def _equal_pixels(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> float:
    """The percentage of pixels with equal labels, for the method with the smallest one."""
    shares = []
    for pairs in (list(zip(*maps, strict=True)) for maps in zip(ours, theirs, strict=True)):
        shares.append(sum(int((a == b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs))
    return 100 * min(shares)


def _agreement(case: Case, jobs: list[Job], mine: list[list[Tensor]]) -> dict[str, Any]:
    """For each segmentor, the percentage of pixels with equal labels in our maps (`mine`), and the mIoU of both ways."""
    dataset = jobs[0].dataset
    samples = dataset.select(case.images)
    found = {}
    for job, ours in zip(jobs, mine, strict=True):
        theirs = [official_label_map(job.segmentor, dataset.image(sample)).cpu() for sample in samples]
        found[job.name] = {
            "equal_pixels": _equal_pixels([ours], [theirs]),
            "official_miou": round(official_miou(dataset, samples, theirs), 4),
            "our_miou": round(official_miou(dataset, samples, ours), 4),
        }
    return found
