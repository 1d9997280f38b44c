"""Evaluating segmentors on a data set: what is done already, what is left, and the result of each."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..datasets.base import Sample, SegDataset
from ..distributed import Shard, World, split
from ..encoders.clip import DenseCLIP
from ..encoders.sources import NamedSource
from ..errors import OvssError
from ..files import digest
from ..image import resize
from ..inference.windows import SlidingWindow
from ..ordinary import ordinary_torch
from ..process import terminate_cleanly
from ..progress import Progress
from ..recipe import compose_recipe, segmentor_config
from ..segmentors.base import Segmentor
from ..segmentors.build import instantiate
from ..stages import Stages
from .counting import counted
from .form import VERSION
from .merge import complete, part_of
from .provenance import provenance, source_digest
from .store import RunStore


@dataclass(frozen=True)
class Runtime:
    """How a run is carried out; none of it changes a number by more than rounding."""

    batch: int | None = None  # windows per forward pass; None: by the number of tokens
    workers: int = 2  # reader threads
    skip_bad_images: bool = False
    boundary: bool = False  # measure mBoundaryIoU, too
    maps: bool = False  # keep the label maps, for the pictures of a report
    feature_cache: str | None = None  # folder for region maps and the like, to be used again by other runs
    trunk_cache: str | None = None  # folder for the tokens that enter the last block
    trunk_cache_gb: float = 20  # how large it may become
    compile: bool = False  # blocks by torch.compile: a minute at the start, then faster
    profile: bool = False  # print where the time goes, and write a trace


@dataclass(frozen=True, repr=False)
class EvalResult:
    """What a run found out; `data` is the content of its JSON file, `path` where that file is."""

    data: dict[str, Any]
    path: Path | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """In percent."""
        return self.data["metrics"]

    def __repr__(self) -> str:
        data = self.data
        return f"EvalResult({data['segmentor']} on {data['dataset']} with {data['clip']}: {self.metrics['mIoU']} mIoU)"


@dataclass
class Job:
    """One segmentor with its recipe on one data set: one row of a table."""

    name: str
    segmentor: Segmentor
    dataset: SegDataset
    protocol: str
    overrides: Mapping[str, Any]
    fingerprint: str = ""

    @property
    def pass_key(self) -> tuple:
        """What two jobs must agree on to share one pass of the trunk."""
        clip = self.segmentor.clip
        return clip.weights_digest, clip.precision, self.dataset.images_digest, self.segmentor.recipe.trunk_key


def make_job(
    name: str, clip: DenseCLIP, dataset: SegDataset, protocol: str = "paper", overrides: Mapping[str, Any] | None = None
) -> Job:
    """Composes the recipe and builds the segmentor with the data set's vocabulary. Raises OvssError for what cannot go
    together."""
    recipe = compose_recipe(name, clip=clip.name, dataset=dataset.name, protocol=protocol, overrides=overrides)
    segmentor = instantiate(segmentor_config(name)[1], clip, dataset.vocabulary(recipe.names, recipe.templates), recipe)
    return Job(name, segmentor, dataset, protocol, dict(overrides or {}))


@ordinary_torch()
def evaluate(
    segmentor: Segmentor,
    dataset: SegDataset,
    *,
    protocol: str = "paper",
    recipe: Mapping[str, Any] | None = None,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
    output: str | Path | None = None,
    runtime: Runtime | None = None,
) -> EvalResult:
    """Evaluates a segmentor made by `build_segmentor`, with its vocabulary, under the recipe for this data set and protocol.

    `recipe` overrides values; so did the keywords of `build_segmentor`. Nothing is written unless `output` is given.
    """
    if len(segmentor.vocabulary.classes) != len(dataset.classes):
        raise OvssError(
            f"the vocabulary has {len(segmentor.vocabulary.classes)} classes, data set "
            f"'{dataset.name}' has {len(dataset.classes)}. "
            f"Use dataset.vocabulary(names, templates), or list its classes in order."
        )
    own = {name: value for name, value in segmentor.recipe.values().items() if segmentor.recipe.origins.get(name) == "argument"}
    overrides = own | dict(recipe or {})
    composed = compose_recipe(
        segmentor.recipe.segmentor,
        clip=segmentor.clip.name,
        dataset=dataset.name,
        protocol=protocol,
        overrides=overrides,
    )
    given = {kind: source for kind, source in segmentor.sources.items() if not isinstance(source, NamedSource)}
    given = {kind: source for kind, source in given.items() if kind not in (recipe or {})}
    for kind, source in given.items():
        if output is not None and not getattr(source, "digest", None):
            raise OvssError(
                f"{kind} was given as an object without a `digest`: its results could be taken for those of another one. "
                "Give it an attribute `digest`, a text that changes with what it does, or leave output out."
            )
    again = instantiate(type(segmentor), segmentor.clip, segmentor.vocabulary, composed, given)
    job = Job(composed.segmentor, again, dataset, protocol, overrides)
    (result,) = run_jobs([job], limit=limit, ids=ids, output=output, runtime=runtime, quiet=True)
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

    A `shard` evaluates its part of the images and leaves it for results/merge.py; it has no results. With a `world` of several
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


def fingerprint(job: Job, samples: Sequence[Sample], boundary: bool = False) -> str:
    """What makes two runs the same: recipe, weights, names and templates, data, precision, code, and the images evaluated."""
    segmentor, dataset, clip = job.segmentor, job.dataset, job.segmentor.clip
    chosen = "" if len(samples) == len(dataset.samples) else "\n".join(sample.id for sample in samples)
    parts = [
        job.name,
        repr(sorted(segmentor.recipe.values().items())),
        clip.weights_digest,
        repr((clip.precision, clip.activation, clip.layer_norm_eps, clip.text_activation)),
        *(f"{kind} {getattr(source, 'digest', '')}" for kind, source in sorted(segmentor.sources.items())),
        *(["boundary"] if boundary else []),
    ]
    return digest(*parts, segmentor.vocabulary.digest, dataset.fingerprint, source_digest(), chosen)


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
    own = _split(images, shard.count, jobs[0])[shard.number - 1] if shard else images
    title = f"{', '.join(dict.fromkeys(job.name for job in jobs))} on {', '.join(datasets)}"
    began, started = time.monotonic(), datetime.now(UTC)
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        stack.enter_context(terminate_cleanly())
        with world.together():
            for store in stores:
                stack.enter_context(store)
                for damage in store.damaged:
                    progress.say(damage)
                if rerun:
                    store.discard()
        done, *_ = world.gather({image.id for image, *_ in own if all(store.has(image.id, runtime.maps) for store in stores)})
        left = [image for image in own if image[0].id not in done]
        if done:
            progress.say(f"{title}: going on, {len(done)} of {len(own)} images are done")
        mine = _split(left, world.size, jobs[0])[world.rank]
        task = progress.start(title + (f", process 1 of {world.size}" if world.size > 1 else ""), len(mine))
        if runtime.compile:
            jobs[0].segmentor.clip.compile()
        stages = Stages(jobs[0].segmentor.clip.device, runtime.profile and world.rank == 0)
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
        for job, store in zip(jobs, stores, strict=True):
            store.collect(evaluated)
            head, facts = _head(job, timing, started, world), job.dataset.facts
            if shard:
                if left or not store.part_path.is_file():
                    store.write_part(part_of(head, facts, [image.id for image, *_ in images], evaluated, failed))
                progress.say(f"{job.name} on {job.dataset.name}: shard {shard} is done; python tools/merge.py {output}")
                continue
            data = complete(head, facts, store.counts, store.edges, evaluated, failed)
            store.finish(data, evaluated)
            results.append(EvalResult(data, store.result_path))
    return results


def _split(images: Sequence[tuple[Sample, ...]], parts: int, job: Job) -> list[list[tuple[Sample, ...]]]:
    """The images in `parts` lists with about equally many windows, or patches where windows have several sizes."""
    recipe, patch = job.segmentor.recipe, job.segmentor.clip.patch_size

    @cache
    def cost(size: tuple[int, int]) -> int:
        resized = resize(np.zeros((*size[::-1], 3), np.uint8), recipe.resize, recipe.short_side, recipe.long_side, patch)
        windows = SlidingWindow.by(recipe, *resized.shape[:2], patch)
        return len(windows.origins) * windows.rows.cells * windows.columns.cells

    def size(image: Path) -> tuple[int, int]:
        try:
            with Image.open(image) as picture:
                return picture.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # to be told by who reads it
            return 1, 1

    if parts == 1:
        return [list(images)]
    return [[images[i] for i in part] for part in split([cost(size(sample.image_path)) for sample, *_ in images], parts)]


def _head(job: Job, timing: dict[str, Any], started: datetime, world: World) -> dict[str, Any]:
    """A result without what comes from counts (results/merge.py fills that in)."""
    dataset = job.dataset
    segmentor, recipe = job.segmentor, job.segmentor.recipe
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
        "overridden": dict(sorted(job.overrides.items())),
        "recipe": {name: {"value": value, "origin": recipe.origins[name]} for name, value in recipe.values().items()},
        "per_class": [{"class": name} for name in dataset.classes],
        "fingerprint": job.fingerprint,
        "weights_digest": segmentor.clip.weights_digest,
        "sources": {
            kind: {
                "name": recipe.hyperparameters[kind],
                "digest": getattr(source, "digest", None),
                "stand_in": getattr(source, "stand_in", False),
            }
            for kind, source in sorted(segmentor.sources.items())
        },
        "names_digest": segmentor.vocabulary.digest,
        "dataset_fingerprint": dataset.fingerprint,
        "precision": segmentor.clip.precision,
        "timing": timing | {"images_per_second": 0, "started": started.isoformat(timespec="seconds")},
        "peak_memory_mib": round(peak),
        "provenance": provenance(segmentor.clip.device) | {"world_size": world.size},
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
