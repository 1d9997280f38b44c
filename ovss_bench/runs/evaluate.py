"""Evaluating segmentors on a data set: what is done already, what is left, and the result of each."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datasets.base import SegDataset
from .world import Shard, World
from ..encoders.clip import DenseCLIP
from ..errors import OvssError
from ..torch_defaults import ordinary_torch
from ..process import terminate_cleanly
from ..progress import Progress
from ..config.recipe import own_recipe
from ..segmentors.base import Segmentor
from ..stages import Stages
from .counting import counted
from .result import EvalResult
from .schema import VERSION
from .jobs import Job, Runtime, fingerprint, in_groups, job_of, make_job, split_evenly
from .merge import added_up, complete, part_of
from .provenance import provenance
from .store import RunStore


@ordinary_torch()
def evaluate(
    segmentor: Segmentor | str,
    *on: DenseCLIP | SegDataset,
    protocol: str = "paper",
    recipe: Mapping[str, Any] | None = None,
    limit: int | None = None,
    ids: str | Iterable[str] | None = None,
    output: str | Path | None = None,
    runtime: Runtime | None = None,
    progress: bool = False,
) -> EvalResult:
    """`evaluate("sclip", clip, dataset)` does what tools/eval.py does with that name; `evaluate(segmentor, dataset)` takes a
    segmentor of `build_segmentor`, with its vocabulary, under the recipe for this data set and protocol.

    `recipe` overrides values; so did the keywords of `build_segmentor`, a vocabulary that is not the recipe's, and attributes
    set since; the result states what ran. Nothing is written unless `output` is given; `progress` prints how far it is. Raises
    OvssError for what cannot be stated.
    """
    kinds = (DenseCLIP, SegDataset) if isinstance(segmentor, str) else (SegDataset,)
    if len(on) != len(kinds) or not all(map(isinstance, on, kinds)):
        given = ", ".join(type(each).__name__ for each in (segmentor, *on))
        raise OvssError(f"evaluate({given}): expected evaluate(NAME, clip, dataset) or evaluate(segmentor, dataset).")
    if not isinstance(runtime, Runtime | None):
        raise OvssError(f"runtime={runtime!r}: expected ob.Runtime(NAME=VALUE, ...).")
    if isinstance(segmentor, str):
        job = make_job(segmentor, *on, protocol, recipe, origin="argument")
    else:
        job = job_of(segmentor, *on, protocol, recipe or {}, kept=output is not None)
    for doubt in job.dataset.doubts:
        Progress(not progress).say(f"note: {job.dataset.name}: {doubt}")
    ids = ids if ids is None or isinstance(ids, str) else list(ids)
    (result,) = run_jobs([job], limit=limit, ids=ids, output=output, runtime=runtime, quiet=not progress)
    return result


@ordinary_torch()
def run_jobs(
    jobs: Sequence[Job],
    *,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
    output: str | Path | None = None,
    rerun: bool = False,
    runtime: Runtime | None = None,
    quiet: bool = False,
    failures: list[OvssError] | None = None,
    shard: Shard | None = None,
    world: World | None = None,
) -> list[EvalResult]:
    """Runs jobs, those on the same images with equal trunk recipes in one pass, and returns their results in the order given.

    A job whose result is there already is not repeated unless `rerun`; one that was interrupted goes on where it stopped. If a
    list of `failures` is given, the error of a pass goes there, and the other passes go on; their results are returned.

    A `shard` evaluates its part of the images and leaves it for runs/merge.py; it has no results. With a `world` of several
    processes, all call this with the same arguments; rank 0 makes and returns the results.
    """
    world = world or World()
    runtime = runtime or Runtime()
    done: dict[int, EvalResult] = {}
    passes: dict[tuple, list[int]] = {}
    progress = Progress(quiet)
    with world.together():
        for i, job in enumerate(jobs):
            job.fingerprint = fingerprint(job, job.dataset.select(limit, ids), runtime.boundary)
            store = _store(output, job)
            result = store.finished() if store and not rerun and not world.rank else None
            if result and (runtime.skip_bad_images or not result["images"]["failed"]):
                progress.say(f"{job.name} on {job.dataset.name}: already done, {store.result_path} (rerun=true repeats it)")
                done[i] = EvalResult(result, store.result_path)
    finished, fingerprints = zip(*world.gather((set(done), [job.fingerprint for job in jobs])), strict=True)
    if any(other != fingerprints[0] for other in fingerprints):
        raise OvssError("the processes of this run differ in data, weights or code. Start all of them with the same.")
    for i, job in enumerate(jobs):
        if i not in finished[0]:
            passes.setdefault(job.pass_key, []).append(i)
    for numbers in passes.values():
        try:
            results = _run_pass([jobs[i] for i in numbers], limit, ids, output, rerun, runtime, progress, shard, world)
        except OvssError as error:
            if failures is None:
                raise
            failures.append(error)
            continue
        done |= dict(zip(numbers, results, strict=False))
    return [done[i] for i in sorted(done)]


def _store(output: str | Path | None, job: Job, shard: Shard | None = None, helper: bool = False) -> RunStore | None:
    clip = job.segmentor.clip.name
    return None if output is None else RunStore(output, job.dataset.name, clip, job.name, job.fingerprint, shard, helper)


def _run_pass(
    jobs: Sequence[Job],
    limit: int | None,
    ids: Sequence[str] | None,
    output: str | Path | None,
    rerun: bool,
    runtime: Runtime,
    progress: Progress,
    shard: Shard | None,
    world: World,
) -> list[EvalResult]:
    """One pass over the images for all jobs, which share images and trunk. Of several processes rank 0 plans and finishes."""
    stores = [_store(output, job, shard, helper=world.rank > 0) or _Memory() for job in jobs]
    datasets = {job.dataset.name: job.dataset for job in jobs}
    samples = {name: dataset.select(limit, ids) for name, dataset in datasets.items()}
    images = list(zip(*samples.values(), strict=True))  # of each image its sample in every data set
    own = split_evenly(images, shard.count, jobs)[shard.number - 1] if shard else images
    title = f"{', '.join(dict.fromkeys(job.name for job in jobs))} on {', '.join(datasets)}"
    began, started = time.monotonic(), datetime.now(UTC)
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        stack.enter_context(terminate_cleanly(lambda: [store.flush() for store in stores]))
        with world.together():
            for store in stores:
                stack.enter_context(store)
                for damage in store.damaged:
                    progress.say(damage)
                if rerun:
                    store.discard()
        done, *_ = world.gather({image.id for image, *_ in own if all(store.has(image.id, runtime.maps) for store in stores)})
        groups = [group for group in in_groups(own, jobs) if any(image.id not in done for image, *_ in group)]
        left = [image for group in groups for image in group]  # of a group with an unfinished image also those that are done
        if done:
            progress.say(f"{title}: going on, {len(done)} of {len(own)} images are done")
        mine = split_evenly(left, world.size, jobs)[world.rank]
        stages = Stages(jobs[0].segmentor.clip.device, runtime.profile and world.rank == 0)
        for first in (True, False):  # rank 0 encodes the texts, the others then find them in the cache
            with world.together(), stages("text"):
                for job in jobs if left and (world.rank == 0) == first else ():
                    job.segmentor.encode_text(progress)
        task = progress.start(title + (f", process 1 of {world.size}" if world.size > 1 else ""), len(mine))
        if runtime.compile:
            jobs[0].segmentor.clip.compile()
        for job in jobs:
            job.segmentor.observed = Counter()
        with world.together():
            for image, outcome in counted(jobs, datasets, mine, runtime, stages):
                if isinstance(outcome, OvssError):
                    failed[image] = str(outcome)
                else:
                    with stages("store"):
                        for store, records in zip(stores, outcome, strict=True):
                            store.add(image, *records)
                task.advance()
            for store in stores:
                store.flush()
        task.stop()
        failed = {image: reason for part in world.gather(failed) for image, reason in part.items()}
        observed = world.gather([{name: int(n) for name, n in job.segmentor.observed.items()} for job in jobs])
        if failed and not runtime.skip_bad_images:
            shown = "\n".join(f"  {name}: {reason}" for name, reason in list(failed.items())[:10])
            raise OvssError(
                f"{len(failed)} of {len(images)} images could not be evaluated; the others are kept "
                f"for the next start:\n{shown}\n"
                "Repair them, or leave them out with runtime.skip_bad_images=true (the result is then marked as partial)."
            )
        if world.rank:
            return []
        seconds = time.monotonic() - began
        timing = {"seconds": round(seconds, 2), "images": len(left), "segmentors_in_pass": len(jobs)}
        timing["stages"] = {stage: round(value, 3) for stage, value in stages.seconds.items()}
        if runtime.profile:
            progress.say(stages.table(seconds))
            if output is not None:
                stages.write_trace(stores[0].trace_path)
                progress.say(f"trace, for ui.perfetto.dev or chrome://tracing: {stores[0].trace_path}")
        evaluated = [image.id for image, *_ in own if image.id not in failed]
        results = []
        for job, store, *seen in zip(jobs, stores, *observed, strict=True):
            store.collect(evaluated)
            head, facts = _head(job, timing, started, world) | added_up(seen), job.dataset.facts
            if shard:
                if left or not store.part_path.is_file():
                    store.write_part(part_of(head, facts, [image.id for image, *_ in images], evaluated, failed))
                progress.say(f"{job.name} on {job.dataset.name}: shard {shard} is done; python tools/merge.py {output}")
                continue
            data = complete(head, facts, store.counts, store.edges, evaluated, failed)
            store.finish(data, evaluated)
            results.append(EvalResult(data, store.result_path))
    return results


def _head(job: Job, timing: dict[str, Any], started: datetime, world: World) -> dict[str, Any]:
    """A result without what comes from counts (runs/merge.py fills that in)."""
    dataset = job.dataset
    segmentor, recipe = job.segmentor, job.segmentor.recipe
    known = {"weights_known": segmentor.clip.weights_known} if segmentor.clip.weights_known else {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if segmentor.clip.device.type == "cuda":
        timing = timing | {"peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20)}
    return {
        "schema_version": VERSION,
        "segmentor": job.name,
        "clip": segmentor.clip.name,
        "dataset": dataset.name,
        "protocol": job.protocol,
        "metrics": {},
        "images": {"expected": dataset.expected_images or len(dataset.samples)},
        "partial": False,
        "overridden": dict(sorted(recipe.overrides.items())),
        "recipe": {name: {"value": value, "origin": recipe.origins[name]} for name, value in recipe.values().items()},
        "per_class": [{"class": name} for name in dataset.classes],
        "fingerprint": job.fingerprint,
        "weights_digest": segmentor.clip.weights_digest,
        "sources": job.sources,
        "names_digest": segmentor.vocabulary.digest,
        "dataset_fingerprint": dataset.fingerprint,
        "precision": segmentor.clip.precision,
        "timing": timing | {"images_per_second": 0, "started": started.isoformat(timespec="seconds")},
        "peak_memory_mib": round(peak),
        "provenance": provenance(segmentor.clip.device, *job.code)
        | {"recipe": own_recipe(job.name), "world_size": world.size}
        | known,
    }


class _Memory:
    """Stands in for a RunStore where nothing shall be written."""

    result_path = None

    def __init__(self) -> None:
        self.counts: dict[str, np.ndarray] = {}
        self.edges: dict[str, np.ndarray] = {}
        self.damaged: list[str] = []

    def __enter__(self) -> _Memory:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def discard(self) -> None:
        pass

    def has(self, image: str, with_map: bool) -> bool:
        return False

    def flush(self) -> None:
        pass

    def collect(self, images: list[str]) -> None:
        pass

    def add(self, image: str, counts: np.ndarray, hash: str, edges: np.ndarray | None, label_map: object) -> None:
        self.counts[image] = counts
        if edges is not None:
            self.edges[image] = edges

    def finish(self, result: dict[str, Any], images: list[str]) -> None:
        pass
