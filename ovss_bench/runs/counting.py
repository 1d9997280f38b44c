"""From images to the counts of every job. Threads compare label maps with the ground truth while the encoder runs."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from ..auxiliary.sources import FeatureCache
from ..config.plugin_errors import plugin_errors
from ..datasets.base import Sample, SegDataset
from ..errors import OvssError
from ..evaluation.boundary import boundary_counts
from ..evaluation.confusion import confusion
from ..image import check_image
from ..inference.engine import predict
from ..inference.prediction import Prediction
from ..inference.trunk_cache import TrunkCache
from ..process import in_threads
from ..stages import Stages
from .jobs import Job, Runtime

NOTHING = np.empty((0, 0), np.uint16)
# Confusion records, digest of the label map and, on request, boundary records and the label map itself.
Records = tuple[np.ndarray, str, np.ndarray | None, np.ndarray | None]


def counted(
    jobs: Sequence[Job],
    datasets: Mapping[str, SegDataset],
    images: Sequence[tuple[Sample, ...]],
    runtime: Runtime,
    stages: Stages,
) -> Iterator[tuple[str, list[Records] | OvssError]]:
    """Yields the id of each image with the records of every job for `RunStore.add`, or with the image's error."""
    first = jobs[0].dataset
    by_id = {image[0].id: image for image in images}

    def count(item: tuple[str, list[Prediction] | OvssError]) -> tuple[str, list[Records] | OvssError]:
        name, outcome = item
        if isinstance(outcome, OvssError):
            return name, outcome
        try:
            with stages("read labels"):
                pairs = zip(datasets.values(), by_id[name], strict=True)
                targets = {dataset.name: _label(dataset, sample, outcome[0].image_size) for dataset, sample in pairs}
        except OvssError as error:
            return name, error
        with stages("count"):
            pairs = zip(jobs, outcome, strict=True)
            return name, [_counted(job, prediction, targets[job.dataset.name], runtime) for job, prediction in pairs]

    predictions = predict(
        [job.segmentor for job in jobs],
        ((name, partial(_image, first, image[0])) for name, image in by_id.items()),
        batch=runtime.batch,
        workers=runtime.workers,
        cache=FeatureCache(runtime.feature_cache) if runtime.feature_cache else None,
        trunk_cache=TrunkCache(runtime.trunk_cache, 1e9 * runtime.trunk_cache_gb) if runtime.trunk_cache else None,
        stages=stages,
    )
    return in_threads(count, predictions, runtime.workers)


def _image(dataset: SegDataset, sample: Sample) -> np.ndarray:
    with plugin_errors(f"image {sample}", type(dataset)):
        image = dataset.image(sample)
        check_image(image)
    return image


def _label(dataset: SegDataset, sample: Sample, size: tuple[int, int]) -> np.ndarray:
    kind = type(dataset)
    with plugin_errors(f"label map of image {sample}", kind):
        label = dataset.label(sample, size)
    if kind.label is not SegDataset.label:  # SegDataset.label checks its result itself
        fits = isinstance(label, np.ndarray) and label.dtype.kind in "iu" and label.shape == size
        if not fits or not ((label >= 0) & (label < len(dataset.classes)) | (label == dataset.ignore_index)).all():
            expected = (
                f"an array {size} of whole numbers below {len(dataset.classes)}, or {dataset.ignore_index} for ignored pixels"
            )
            where = f"label of {kind.__name__} in {inspect.getsourcefile(kind)}, image {sample}"
            raise OvssError(f"{where}: expected {expected}.")
    return label


def _counted(job: Job, prediction: Prediction, target: np.ndarray, runtime: Runtime) -> Records:
    label_map = prediction.label_map.numpy().astype(np.uint16)
    dataset, recipe = job.dataset, job.segmentor.recipe
    scored = dataset.scored(target, label_map.shape, recipe.resize, recipe.min_foreground)
    truth, predicted = (NOTHING, NOTHING) if scored is None else (scored, label_map)
    pair = truth, predicted, len(dataset.classes), dataset.ignore_index
    edges = boundary_counts(*pair) if runtime.boundary else None
    digest = hashlib.sha256(label_map.tobytes()).hexdigest()[:16]
    return confusion(*pair), digest, edges, label_map if runtime.keeps_maps else None
