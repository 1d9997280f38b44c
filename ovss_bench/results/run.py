"""Evaluating segmentors on a data set: what is done already, what is left, and the result of each."""

from __future__ import annotations

import hashlib
import resource
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datasets.base import Sample, SegDataset
from ..encoders.clip import DenseCLIP
from ..encoders.sources import FeatureCache, NamedSource
from ..errors import OvssError
from ..evaluation.confusion import confusion, total
from ..evaluation.metrics import areas, class_metrics, metrics
from ..files import digest
from ..image import resize_truth
from ..inference.engine import predict
from ..recipe import compose_recipe, segmentor_config
from ..segmentors.base import Segmentor
from ..segmentors.build import instantiate
from .progress import Progress
from .provenance import provenance, source_digest
from .store import RunStore

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Runtime:
    """How a run is carried out; none of it changes a number by more than rounding."""

    batch: int | None = None  # windows per forward pass; None: by the number of tokens
    workers: int = 2  # reader threads
    skip_bad_images: bool = False
    feature_cache: str | None = None  # folder for region maps and the like, to be used again by other runs


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
    protocol: str
    overrides: Mapping[str, Any]
    fingerprint: str = ""


def make_job(
    name: str, clip: DenseCLIP, dataset: SegDataset, protocol: str = "paper", overrides: Mapping[str, Any] | None = None
) -> Job:
    """Composes the recipe and builds the segmentor with the data set's vocabulary. Raises OvssError for what cannot go
    together."""
    recipe = compose_recipe(name, clip=clip.name, dataset=dataset.name, protocol=protocol, overrides=overrides)
    segmentor = instantiate(segmentor_config(name)[1], clip, dataset.vocabulary(recipe.names, recipe.templates), recipe)
    return Job(name, segmentor, protocol, dict(overrides or {}))


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
    again = instantiate(type(segmentor), segmentor.clip, segmentor.vocabulary, composed, given)
    job = Job(composed.segmentor, again, protocol, overrides)
    (result,) = run_jobs([job], dataset, limit=limit, ids=ids, output=output, runtime=runtime, quiet=True)
    return result


def run_jobs(
    jobs: Sequence[Job],
    dataset: SegDataset,
    *,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
    output: str | Path | None = None,
    rerun: bool = False,
    runtime: Runtime | None = None,
    quiet: bool = False,
) -> list[EvalResult]:
    """Runs jobs on a data set, those with equal trunk recipes in one pass, and returns their results in the order given.

    A job whose result is there already is not repeated unless `rerun`; one that was interrupted goes on where it stopped.
    """
    runtime = runtime or Runtime()
    samples = dataset.select(limit, ids)
    for job in jobs:
        job.fingerprint = fingerprint(job, dataset, samples)
    done: dict[int, EvalResult] = {}
    progress = Progress(quiet)
    for i, job in enumerate(jobs):
        store = _store(output, job, dataset)
        result = store.finished() if store and not rerun else None
        if result:
            progress.say(f"{job.name}: already done, {store.result_path} (rerun=true repeats it)")
            done[i] = EvalResult(result, store.result_path)
    left = sorted((i for i in range(len(jobs)) if i not in done), key=lambda i: (str(jobs[i].segmentor.recipe.trunk_key), i))
    for _, members in groupby(left, key=lambda i: jobs[i].segmentor.recipe.trunk_key):
        numbers = list(members)
        group = [jobs[i] for i in numbers]
        results = _run_group(group, dataset, samples, output, rerun, runtime, progress)
        done |= dict(zip(numbers, results, strict=True))
    return [done[i] for i in range(len(jobs))]


def fingerprint(job: Job, dataset: SegDataset, samples: Sequence[Sample]) -> str:
    """What makes two runs the same: recipe, weights, names and templates, data, precision, code, and the images evaluated."""
    segmentor = job.segmentor
    chosen = "" if len(samples) == len(dataset.samples) else "\n".join(sample.id for sample in samples)
    parts = [
        job.name,
        repr(sorted(segmentor.recipe.values().items())),
        segmentor.clip.weights_digest,
        segmentor.clip.precision,
        *(f"{kind} {getattr(source, 'digest', '')}" for kind, source in sorted(segmentor.sources.items())),
    ]
    return digest(*parts, segmentor.vocabulary.digest, dataset.fingerprint, source_digest(), chosen)


def _store(output: str | Path | None, job: Job, dataset: SegDataset) -> RunStore | None:
    return None if output is None else RunStore(output, dataset.name, job.segmentor.clip.name, job.name, job.fingerprint)


def _run_group(
    jobs: Sequence[Job],
    dataset: SegDataset,
    samples: Sequence[Sample],
    output: str | Path | None,
    rerun: bool,
    runtime: Runtime,
    progress: Progress,
) -> list[EvalResult]:
    stores = [_store(output, job, dataset) or _Memory() for job in jobs]
    began, started = time.monotonic(), datetime.now(UTC)
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        stack.enter_context(terminate_cleanly())
        for store in stores:
            if rerun:
                store.discard()
            stack.enter_context(store)
        left = [sample for sample in samples if any(sample.id not in store.counts for store in stores)]
        names = ", ".join(job.name for job in jobs)
        if len(left) < len(samples):
            progress.say(f"{names}: going on, {len(samples) - len(left)} of {len(samples)} images are done")
        task = progress.start(f"{names} on {dataset.name}", len(left))
        segmentors = [job.segmentor for job in jobs]
        for sample, outcome in _predictions(segmentors, dataset, left, runtime):
            if isinstance(outcome, OvssError):
                failed[sample.id] = str(outcome)
            else:
                for store, (counts, hash) in zip(stores, outcome, strict=True):
                    store.add(sample.id, counts, hash)
            task.advance()
        task.stop()
        if failed and not runtime.skip_bad_images:
            shown = "\n".join(f"  {name}: {reason}" for name, reason in list(failed.items())[:10])
            raise OvssError(
                f"{len(failed)} of {len(samples)} images could not be evaluated; the others are kept "
                f"for the next start:\n{shown}\n"
                "Repair them, or leave them out with runtime.skip_bad_images=true (the result is then marked as partial)."
            )
        seconds = time.monotonic() - began
        evaluated = [sample.id for sample in samples if sample.id not in failed]
        results = []
        for job, store in zip(jobs, stores, strict=True):
            timing = {"seconds": round(seconds, 2), "images": len(left), "segmentors_in_pass": len(jobs)}
            data = _result(job, dataset, store.counts, evaluated, failed, timing, started)
            store.finish(data, evaluated)
            results.append(EvalResult(data, store.result_path))
    return results


def _predictions(
    segmentors: Sequence[Segmentor], dataset: SegDataset, samples: Sequence[Sample], runtime: Runtime
) -> Iterator[tuple[Sample, list[tuple[np.ndarray, str]] | OvssError]]:
    """For each sample the confusion records and label-map hash of every segmentor, or what is wrong with the sample."""
    images = ((sample, partial(dataset.image, sample)) for sample in samples)
    cache = FeatureCache(runtime.feature_cache) if runtime.feature_cache else None
    for sample, outcome in predict(segmentors, images, batch=runtime.batch, workers=runtime.workers, cache=cache):
        if isinstance(outcome, OvssError):
            yield sample, outcome
            continue
        maps = [prediction.label_map.cpu().numpy().astype(np.uint16) for prediction in outcome]
        try:
            truth = dataset.label(sample, outcome[0].image_size)
        except OvssError as error:
            yield sample, error
            continue
        # All of one pass have the same resize rule and are scored at the same size.
        truth = resize_truth(truth, segmentors[0].recipe.resize, maps[0].shape)
        counts = [confusion(truth, label_map, len(dataset.classes), dataset.ignore_index) for label_map in maps]
        hashes = [hashlib.sha256(label_map.tobytes()).hexdigest()[:16] for label_map in maps]
        yield sample, list(zip(counts, hashes, strict=True))


def _result(
    job: Job,
    dataset: SegDataset,
    counts: Mapping[str, np.ndarray],
    evaluated: Sequence[str],
    failed: Mapping[str, str],
    timing: dict[str, Any],
    started: datetime,
) -> dict[str, Any]:
    matrix = total((counts[image] for image in evaluated), len(dataset.classes))
    correct, predicted, true = areas(matrix)
    per_class = class_metrics(matrix)
    segmentor, recipe = job.segmentor, job.segmentor.recipe
    expected = dataset.expected_images or len(dataset.samples)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if segmentor.clip.device.type == "cuda":
        timing["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return {
        "schema_version": SCHEMA_VERSION,
        "segmentor": job.name,
        "clip": segmentor.clip.name,
        "dataset": dataset.name,
        "protocol": job.protocol,
        "metrics": {name: round(100 * value, 8) for name, value in metrics(matrix, dataset.unseen, dataset.background).items()},
        "images": {"expected": expected, "evaluated": len(evaluated), "failed": dict(failed)},
        "partial": len(evaluated) != expected,
        "overridden": dict(sorted(job.overrides.items())),
        "recipe": {name: {"value": value, "origin": recipe.origins[name]} for name, value in recipe.values().items()},
        "per_class": [
            {
                "class": name,
                "IoU": round(100 * float(per_class["IoU"][c]), 8),
                "Acc": round(100 * float(per_class["Acc"][c]), 8),
                "correct": int(correct[c]),
                "predicted": int(predicted[c]),
                "true": int(true[c]),
            }
            for c, name in enumerate(dataset.classes)
        ],
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
        "timing": timing
        | {
            "images_per_second": round(timing["images"] / max(timing["seconds"], 1e-9), 2),
            "started": started.isoformat(timespec="seconds"),
        },
        "peak_memory_mib": round(peak),
        "provenance": provenance(segmentor.clip.device),
    }


class _Memory:
    """Stands in for a RunStore where nothing shall be written."""

    result_path = None

    def __init__(self) -> None:
        self.counts: dict[str, np.ndarray] = {}

    def __enter__(self) -> _Memory:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def discard(self) -> None:
        pass

    def add(self, image: str, counts: np.ndarray, hash: str) -> None:
        self.counts[image] = counts

    def finish(self, result: dict[str, Any], images: list[str]) -> None:
        pass


@contextmanager
def terminate_cleanly() -> Iterator[None]:
    """Turns SIGTERM into SystemExit, so that what is pending gets written; main thread only, as Python has it."""

    def stop(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
