"""Evaluates jobs: skips finished ones, resumes interrupted ones, and writes a result for each."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config.plugin_errors import plugin_errors
from ..config.recipe import own_recipe, segmentor_config
from ..datasets.base import Sample, SegDataset
from ..encoders.clip import DenseCLIP
from ..encoders.no_clip import NoCLIP
from ..errors import OvssError
from ..files import below, user_path
from ..process import terminate_cleanly
from ..progress import Progress
from ..segmentors.base import Segmentor
from ..stages import Stages
from ..torch_defaults import ordinary_torch
from .counting import counted
from .exports import manifest_of, refuse_maps, tags_of
from .jobs import Job, Runtime, fingerprint, in_groups, job_of, make_job, split_evenly
from .merge import added_up, make_result
from .provenance import provenance
from .published import recipe_doubt
from .result import EvalResult
from .schema import VERSION
from .spill import Spill
from .store import RunStore
from .world import Shard, World

MOST_NAMES = 3  # names of methods in the title of a pass


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
    """`evaluate("sclip", clip, dataset)` is `ovss eval` for that segmentor. `evaluate(segmentor, dataset)` takes the segmentor
    that `build_segmentor` returns, with its vocabulary, and applies the recipe for this data set and protocol.

    Segmentors that use no CLIP take none: `evaluate("labels", dataset, recipe={"path": DIR})`.

    `recipe` overrides values, as do the keywords of `build_segmentor`, a vocabulary other than the recipe's, and attributes set
    on the segmentor. The result states all of them; OvssError is raised for changes that it cannot state. Without `output`,
    nothing is written. `progress` shows the progress."""
    if not isinstance(runtime, Runtime | None):
        raise OvssError(f"runtime={runtime!r}: expected ob.Runtime(NAME=VALUE, ...).")
    match (segmentor, *on):
        case str() as name, SegDataset() as dataset if not segmentor_config(name)[1].uses_clip:
            job = make_job(name, NoCLIP(), dataset, protocol, recipe, origin="argument")
        case str() as name, DenseCLIP() as clip, SegDataset() as dataset:
            job = make_job(name, clip, dataset, protocol, recipe, origin="argument")
        case Segmentor() as built, SegDataset() as dataset:
            job = job_of(built, dataset, protocol, recipe or {}, kept=output is not None)
        case arguments:
            kinds = ", ".join(type(each).__name__ for each in arguments)
            raise OvssError(f"evaluate({kinds}): expected evaluate(NAME, clip, dataset) or evaluate(segmentor, dataset).")
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
    """Runs jobs and returns their results in the same order. Jobs on the same images with equal trunk recipes share a pass. The
    cheapest pass (methods times images) comes first, and each row is printed when its pass is done.

    A job with a finished result is skipped unless `rerun`; an interrupted one is resumed. If a list of `failures` is given,
    errors are appended to it, and the remaining passes run. A `shard` evaluates its part of the images for runs/merge.py and
    returns no results. In a `world` of several processes, all call this with the same arguments; rank 0 returns the results."""
    began = time.monotonic()
    run = _Run(limit, ids, output, rerun, runtime or Runtime(), Progress(quiet), shard, world or World())
    refuse_maps(jobs, run.runtime.save_label_maps, output)
    done: dict[int, EvalResult] = {}
    for numbers in run.passes(jobs, done):
        try:
            results = _Pass(run, [jobs[i] for i in numbers]).results()
        except OvssError as error:
            if failures is None:
                raise
            failures.append(error)
            continue
        for count, result in enumerate(results if len(jobs) > 1 else (), len(done) + 1):
            run.progress.say(f"row {count} of {len(jobs)}, after {time.monotonic() - began:.0f} s: {result.line}")
        done |= zip(numbers, results, strict=False)  # only rank 0 has results
    return [done[i] for i in sorted(done)]


@dataclass(frozen=True)
class _Run:
    """The arguments of `run_jobs`, for all passes."""

    limit: int | None
    ids: Sequence[str] | None
    output: str | Path | None
    rerun: bool
    runtime: Runtime
    progress: Progress
    shard: Shard | None
    world: World

    def passes(self, jobs: Sequence[Job], done: dict[int, EvalResult]) -> Iterator[list[int]]:
        """Yields the numbers of the jobs of each pass. Jobs with a finished result need no pass; they are added to `done`.

        The fingerprints need the auxiliary models, which are loaded before the first pass: a missing one is reported before
        hours of work. Only jobs marked `first` run earlier."""
        for first in (True, False):
            chosen = {i: job for i, job in enumerate(jobs) if job.first == first}
            if not chosen:
                continue
            with self.world.together():
                for job in chosen.values():
                    job.fingerprint = fingerprint(job, self.selected(job), self.runtime.boundary)
                finished = {i: result for i, job in chosen.items() if (result := self.finished(job))}
            gathered = self.world.gather((set(finished), [job.fingerprint for job in chosen.values()]))
            if any(fingerprints != gathered[0][1] for _, fingerprints in gathered):
                raise OvssError("the processes of this run differ in data, weights or code. Give all of them the same.")
            done |= finished
            passes: dict[tuple, list[int]] = {}
            for i in sorted(chosen.keys() - gathered[0][0]):
                passes.setdefault(chosen[i].pass_key, []).append(i)
            yield from sorted(passes.values(), key=lambda numbers: len(numbers) * len(self.selected(jobs[numbers[0]])))

    def selected(self, job: Job) -> Sequence[Sample]:
        return job.dataset.select(self.limit, self.ids)

    def finished(self, job: Job) -> EvalResult | None:
        """The result of a job that is already finished; only rank 0 looks for it."""
        if self.output is None or self.rerun or self.world.rank:
            return None
        store = self.store(job)
        result = store.finished()
        if not result or (result["images"]["failed"] and not self.runtime.skip_bad_images):
            return None
        if self.runtime.save_label_maps:
            images = {sample.id for sample in self.selected(job)} - result["images"]["failed"].keys()
            if not all(map(store.has_maps, images)):
                return None
        self.progress.say(f"{job.name} on {job.dataset.name}: already done, {store.result_path} (rerun=true repeats it)")
        return EvalResult(result, store.result_path)

    def store(self, job: Job, shard: Shard | None = None, spill: Spill | None = None) -> RunStore | _Memory:
        if self.output is None:
            return _Memory()
        clip, helper, maps = job.segmentor.clip.name, self.world.rank > 0, self.runtime.save_label_maps
        store = RunStore(self.output, job.dataset.name, clip, job.name, job.fingerprint, shard, helper, spill)
        if maps:
            folder = below(user_path(maps), str(store.base.relative_to(user_path(self.output))), links=True)
            store.map_folders = [*(store.map_folders if self.runtime.maps else []), folder]
        return store


class _Pass:
    """One pass over the images for jobs that share images and trunk: `plan`, `evaluate`, and on rank 0 `finish`. `images` are
    all selected images, `part` those of the shard."""

    def __init__(self, run: _Run, jobs: Sequence[Job]) -> None:
        self.run, self.jobs = run, jobs
        spill = None if run.output is None else Spill(user_path(run.output))
        self.stores = [run.store(job, run.shard, spill) for job in jobs]
        self.datasets = {job.dataset.name: job.dataset for job in jobs}
        samples = [dataset.select(run.limit, run.ids) for dataset in self.datasets.values()]
        self.images = list(zip(*samples, strict=True))  # for each image, its sample in every data set
        shard = run.shard
        self.part = split_evenly(self.images, shard.count, jobs)[shard.number - 1] if shard else self.images
        names = list(dict.fromkeys(job.name for job in jobs))
        names[MOST_NAMES:] = [f"{len(names) - MOST_NAMES} others"] if len(names) > MOST_NAMES + 1 else names[MOST_NAMES:]
        self.title = f"{', '.join(names)} on {', '.join(self.datasets)}"
        self.clip = jobs[0].segmentor.clip
        self.stages = Stages(self.clip.device, run.runtime.profile and run.world.rank == 0)
        self.tags = [{"fairness": tags_of(job, [image.id for image, *_ in self.images])} for job in jobs]
        self.failed: dict[str, str] = {}  # image -> reason

    def results(self) -> list[EvalResult]:
        began, started = time.monotonic(), datetime.now(UTC)
        with ExitStack() as stack:
            stack.enter_context(terminate_cleanly(lambda: [store.flush() for store in self.stores]))
            left = self.plan(stack)
            observed = self.evaluate(left)
            return [] if self.run.world.rank else self.finish(len(left), observed, time.monotonic() - began, started)

    def plan(self, stack: ExitStack) -> list[tuple[Sample, ...]]:
        """Opens the stores. Returns the images that remain to be evaluated."""
        run = self.run
        with run.world.together():
            for store in self.stores:
                stack.enter_context(store)
                for damage in store.damaged:
                    run.progress.say(damage)
                if run.rerun:
                    store.discard()
        if run.runtime.save_label_maps and run.world.rank == 0:
            for job, store in zip(self.jobs, self.stores, strict=True):
                manifest_of(job).write(store.map_folders[-1])
        keeps = run.runtime.keeps_maps
        stored = {image.id for image, *_ in self.part if all(store.has(image.id, keeps) for store in self.stores)}
        done, *_ = run.world.gather(stored)
        if done:
            run.progress.say(f"{self.title}: resumed, {len(done)} of {len(self.part)} images are done")
        groups = [group for group in in_groups(self.part, self.jobs) if any(image.id not in done for image, *_ in group)]
        return [image for group in groups for image in group]  # one unfinished image: the whole group is evaluated

    def evaluate(self, left: Sequence[tuple[Sample, ...]]) -> list[list[dict[str, int]]]:
        """Stores the counts of this process's share of the images. Returns the methods' `observed` counters by process and job.
        Raises OvssError if images cannot be evaluated, unless these may be skipped."""
        run, world = self.run, self.run.world
        mine = split_evenly(left, world.size, self.jobs)[world.rank]
        for first in (True, False):  # rank 0 encodes the texts first; the others then find them in the cache
            with world.together(), self.stages("text"):
                for job in self.jobs if left and (world.rank == 0) == first else ():
                    job.segmentor.encode_text(run.progress)
                    number = list(self.datasets).index(job.dataset.name)
                    samples = [image[number] for image in (left if first else mine)]
                    with plugin_errors(f"begin of '{job.name}'", type(job.segmentor)):
                        job.segmentor.begin(job.dataset, samples, run.progress)
        task = run.progress.start(self.title + (f", process 1 of {world.size}" if world.size > 1 else ""), len(mine))
        if run.runtime.compile:
            self.clip.compile()
        for job in self.jobs:
            job.segmentor.observed = Counter()
        failed = {}
        with world.together():
            for image, outcome in counted(self.jobs, self.datasets, mine, run.runtime, self.stages):
                if isinstance(outcome, OvssError):
                    failed[image] = str(outcome)
                else:
                    with self.stages("store"):
                        for store, records in zip(self.stores, outcome, strict=True):
                            store.add(image, *records)
                task.advance()
            for store in self.stores:
                store.flush()
        task.stop()
        self.failed = {image: reason for part in world.gather(failed) for image, reason in part.items()}
        if self.failed and not run.runtime.skip_bad_images:
            shown = "\n".join(f"  {name}: {reason}" for name, reason in list(self.failed.items())[:10])
            count = f"{len(self.failed)} of {len(self.images)} images"
            hint = "Repair them, or leave them out with runtime.skip_bad_images=true (the result is then marked as partial)."
            raise OvssError(f"{count} could not be evaluated; the others are kept for the next start:\n{shown}\n{hint}")
        return world.gather([{name: int(n) for name, n in job.segmentor.observed.items()} for job in self.jobs])

    def finish(
        self, evaluated_now: int, observed: list[list[dict[str, int]]], seconds: float, started: datetime
    ) -> list[EvalResult]:
        """Collects the counts, and writes the results, or the part of a shard."""
        run = self.run
        timing = {"seconds": round(seconds, 2), "images": evaluated_now, "segmentors_in_pass": len(self.jobs)}
        timing["stages"] = {stage: round(value, 3) for stage, value in self.stages.seconds.items()}
        if run.runtime.profile:
            run.progress.say(self.stages.table(seconds))
            if isinstance(store := self.stores[0], RunStore):
                self.stages.write_trace(store.trace_path)
                run.progress.say(f"trace, for ui.perfetto.dev or chrome://tracing: {store.trace_path}")
        evaluated = [image.id for image, *_ in self.part if image.id not in self.failed]
        results = []
        for job, store, tags, *seen in zip(self.jobs, self.stores, self.tags, *observed, strict=True):
            store.collect(evaluated)
            head, facts = _head(job, timing, started, run.world) | tags | added_up(seen), job.dataset.facts
            if run.shard:
                if evaluated_now or not store.part_path.is_file():
                    images = [image.id for image, *_ in self.images]
                    part = {"head": head, "facts": asdict(facts), "images": images, "own": evaluated, "failed": self.failed}
                    store.write_part(part)
                title = f"{job.name} on {job.dataset.name}: shard {run.shard}"
                run.progress.say(f"{title} is done; python tools/merge.py {run.output}")
            else:
                data = make_result(head, facts, store.counts, store.edges, evaluated, self.failed)
                store.finish(data, evaluated)
                for kind, share in data["timing"].get("skipped", {}).items():
                    where = f"{job.name} on {job.dataset.name}"
                    run.progress.say(f"{where}: {100 * share:.1f} % of the {kind} skipped, as no label depends on them")
                results.append(EvalResult(data, store.result_path))
        return results


def _head(job: Job, timing: dict[str, Any], started: datetime, world: World) -> dict[str, Any]:
    """A result without the values that runs/merge.py computes from counts."""
    dataset, segmentor, clip, recipe = job.dataset, job.segmentor, job.segmentor.clip, job.segmentor.recipe
    origin = {"recipe": own_recipe(job.name), "world_size": world.size}
    origin |= {"weights_known": clip.weights_known} if clip.weights_known else {}
    origin |= {"unconfirmed": doubt} if (doubt := recipe_doubt(job.name, dataset.name)) else {}
    if clip.device.type == "cuda":
        timing = timing | {"peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20)}
    return {
        "schema_version": VERSION,
        "segmentor": job.name,
        "clip": clip.name,
        "dataset": dataset.name,
        "protocol": job.protocol,
        "metrics": {},
        "images": {"expected": dataset.expected_images or len(dataset.samples)},
        "partial": False,
        "overridden": dict(sorted(recipe.overrides.items())),
        "recipe": {name: {"value": value, "origin": recipe.origins[name]} for name, value in recipe.values().items()},
        "per_class": [{"class": name} for name in dataset.classes],
        "fingerprint": job.fingerprint,
        "weights_digest": clip.weights_digest,
        "sources": job.sources,
        "names_digest": segmentor.vocabulary.digest,
        "dataset_fingerprint": dataset.fingerprint,
        "precision": clip.precision,
        "timing": timing | {"images_per_second": 0, "started": started.isoformat(timespec="seconds")},
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "provenance": provenance(clip.device, *job.code) | origin,
    }


class _Memory(nullcontext):
    """The interface of RunStore for a run that writes nothing."""

    result_path, damaged = None, ()
    map_folders: Sequence[Path] = ()

    def __init__(self) -> None:
        super().__init__(self)
        self.counts: dict[str, np.ndarray] = {}
        self.edges: dict[str, np.ndarray] = {}

    def add(self, image: str, counts: np.ndarray, label_hash: str, edges: np.ndarray | None, label_map: object) -> None:
        self.counts[image] = counts
        self.edges |= {} if edges is None else {image: edges}

    def has(self, *_: object) -> None:
        """No image is stored."""

    has_maps = discard = flush = collect = finish = finished = has
