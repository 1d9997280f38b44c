"""The inference loop: images -> windows -> batches of one shape -> patch logits of all segmentors -> label maps.

Windows of the full size are queued across images and run in batches of a fixed size, the last one padded with zeros, so that a
window's result does not depend on the rest of its batch. For the same reason, windows of other shapes (images smaller than a
window, whole images) are never batched with those of another image. Images are finished in groups if a segmentor has
`group_features`, otherwise one by one.

On a GPU only the delivery of a label map, one batch later, synchronises with the device.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..auxiliary.sources import FeatureCache, stages_of
from ..errors import OvssError
from ..image import as_image, as_size, normalize, resize, result_size
from ..process import in_threads
from ..segmentors.base import Segmentor
from ..segmentors.hooks import guarded
from ..stages import Stages
from ..torch_defaults import ordinary_torch
from ..types import ImageContext
from .finish import finish
from .forward import Forward, PendingImage
from .memory import check_memory
from .prediction import Prediction
from .trunk_cache import TrunkCache


def predict(
    segmentors: Sequence[Segmentor],
    images: Iterable[tuple[Any, Any]],
    *,
    batch: int | None = None,
    workers: int = 1,
    pad_last: bool = True,
    keep_scores: bool = False,
    output_size: tuple[int, int] | None = None,
    cache: FeatureCache | None = None,
    trunk_cache: TrunkCache | None = None,
    stages: Stages | None = None,
) -> Iterator[tuple[Any, list[Prediction] | OvssError]]:
    """Yields (key, one prediction per segmentor) for each (key, image), in this order.

    An image is anything that `as_image` accepts, or a function that returns it, called in one of `workers` reader threads; if
    reading raises an OvssError, it is yielded instead of the predictions. All segmentors must share the CLIP and
    `recipe.trunk_key`; the trunk runs once for all, and not for images whose tokens are in the `trunk_cache`. `batch`: windows
    per forward pass, halved when out of memory; `pad_last` fills the last one with zeros, so that results do not depend on the
    position in the queue. `cache` keeps arrays that depend on one image only. Groups (`Segmentor.group`) are counted from the
    first image. Raises OvssError for non-finite scores.
    """
    stages = stages or Stages()
    segmentors = [guarded(segmentor) for segmentor in segmentors]
    for segmentor in segmentors:
        stages.sources |= stages_of(segmentor.sources)
    forward = Forward(segmentors, batch, trunk_cache, stages)
    unit = math.lcm(*(segmentor.group for segmentor in segmentors))  # images that are finished together
    waiting: deque[PendingImage | tuple[Any, OvssError]] = deque()
    ready: deque[tuple[int, Any, Callable[[], list[Prediction] | OvssError]]] = deque()

    def finished(end: bool = False) -> Iterator[tuple[Any, list[Prediction] | OvssError]]:
        while len(waiting) >= (1 if end else unit):
            images = list(islice(waiting, unit))
            if any(isinstance(image, PendingImage) and image.missing for image in images):
                break
            for image in images:
                waiting.popleft()
                if isinstance(image, PendingImage):
                    forward.keep(image)
            _set_groups(segmentors, images)
            for image in images:
                if isinstance(image, tuple):
                    ready.append((forward.passes, image[0], lambda error=image[1]: error))
                else:
                    ready.append((forward.passes, image.key, finish(segmentors, image, keep_scores=keep_scores, stages=stages)))
        idle = not forward.on_windows  # without batches to wait for, an image is delivered after the next one
        while ready and (end or not forward.on_gpu or ready[0][0] < forward.passes or (idle and len(ready) > 1)):
            _, key, deliver = ready.popleft()
            yield key, deliver()

    for key, outcome in _read_ahead(images, segmentors[0], workers, output_size, forward.known, stages):
        if isinstance(outcome, OvssError):
            waiting.append((key, outcome))
        else:
            context, known = outcome
            image = forward.image(key, [replace(context, by_products={}, cache=cache) for _ in segmentors], known)
            try:
                check_memory(segmentors, image)
            except OvssError as error:
                waiting.append((key, error))
                continue
            waiting.append(image)
            forward.add(image)
        yield from finished()
    forward.end(pad_last)
    yield from finished(end=True)


@torch.inference_mode()
def _set_groups(segmentors: Sequence[Segmentor], images: Sequence[PendingImage | tuple[Any, OvssError]]) -> None:
    """Computes `group_features` for the images. The first begins a group; unreadable images are left out."""
    for number, segmentor in enumerate(segmentors):
        for start in range(0, len(images) if segmentor.group_features else 0, segmentor.group):
            group = [image for image in images[start : start + segmentor.group] if isinstance(image, PendingImage)]
            contexts = [image.contexts[number] for image in group]
            features = segmentor.group_features(contexts) if contexts else None
            for context in contexts:
                context.group = features


@ordinary_torch()
def segment(
    segmentor: Segmentor,
    image: np.ndarray | Image.Image | str | Path,
    *,
    resize: str | None = None,
    short_side: int | None = None,
    output_size: tuple[int, int] | None = None,
    window: int | str | None = None,
    stride: int | None = None,
    logit_scale: float | None = None,
    threshold: float | None = None,
) -> Prediction:
    """The label map and class scores of one image: an array (H, W, 3) uint8 RGB, a path, or a Pillow image.

    Values that are not given come from the segmentor's recipe; `short_side` alone implies `resize="keep_ratio"` if the recipe
    does not resize. `window="whole"` runs the resized image in one pass. `output_size` (height, width) defaults to the size of
    the image, or to that of the network's input if the protocol does not score at the original size (CLIPtrase, CLIP-DIY).
    Raises OvssError for invalid images and values.
    """
    if not isinstance(segmentor, Segmentor):
        raise OvssError(f"expected a segmentor, as ob.build_segmentor makes it, not {type(segmentor).__name__}.")
    key = str(image) if isinstance(image, str | Path) else "the image"
    image, output_size = as_image(image), as_size(output_size)
    if short_side is not None and resize is None and segmentor.recipe.resize == "none":
        resize = "keep_ratio"
    changed = segmentor.recipe.override(
        resize=resize, short_side=short_side, window=window, stride=stride, logit_scale=logit_scale, threshold=threshold
    )
    if changed.scored_at != "original":
        changed = changed.override(scored_at="resized")
    segmentor = segmentor.with_recipe(changed)
    ((_, outcome),) = predict([segmentor], [(key, image)], pad_last=False, keep_scores=True, output_size=output_size)
    if isinstance(outcome, OvssError):
        raise outcome
    return outcome[0]


@ordinary_torch()
def make_context(
    image: np.ndarray | Image.Image | str | Path,
    segmentor: Segmentor,
    size: tuple[int, int] | None = None,
    stages: Stages | None = None,
    id: str = "",
) -> ImageContext:
    """The context of an image, resized and normalised by the recipe. `size`: (height, width) of the result; by default the
    recipe decides."""
    recipe, image = segmentor.recipe, as_image(image)
    with (stages or Stages())("resize"):
        resized = resize(image, recipe.resize, recipe.short_side, recipe.long_side, segmentor.clip.patch_size)
        size = as_size(size, "size") or result_size(recipe.scored_at, image.shape[:2], resized.shape[:2])
        return ImageContext(image, resized, normalize(resized, recipe.normalize), size, id)


def _read_ahead(
    images: Iterable[tuple[Any, Any]],
    segmentor: Segmentor,
    workers: int,
    size: tuple[int, int] | None,
    known: Callable[[np.ndarray], dict[int, Tensor] | None],
    stages: Stages,
) -> Iterator[tuple[Any, tuple[ImageContext, dict[int, Tensor] | None] | OvssError]]:
    """Contexts and `known` tokens of the images, in order, from threads that read a little ahead of the encoder (cv2 and torch
    release the GIL)."""
    device = segmentor.clip.device

    def read(item: tuple[Any, Any]) -> tuple[Any, tuple[ImageContext, dict[int, Tensor] | None] | OvssError]:
        key, image = item
        try:
            with stages("read"):
                opened: Any = image() if callable(image) else image
            context = make_context(opened, segmentor, size, stages, str(key))
            if device.type != "cpu":
                context.pixels = context.pixels.pin_memory()
            return key, (context, known(context.original))
        except OvssError as error:
            return key, error

    for key, outcome in in_threads(read, images, workers):
        if not isinstance(outcome, OvssError):
            outcome[0].pixels = outcome[0].pixels.to(device, non_blocking=True)
        yield key, outcome
