"""The only loop: images -> windows -> batches of one shape -> patch logits of all segmentors -> label maps.

Windows of the full size are queued across images and run in batches of a fixed size, the tail padded with zeros, so a window's
result does not depend on its neighbours in the batch. Windows of other shapes (images smaller than a window, whole images) run
in batches of their own image, for the same reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OvssError
from ..image import normalize, resize
from ..recipe import Recipe
from ..segmentors.base import Scene, Segmentor, WindowBatch
from .compose import compose
from .refine import pamr
from .scores import class_scores, decide, drop_small_classes, label
from .windows import SlidingWindow

# About as many tokens as keep two cores, or a GPU, busy; more only costs memory.
TOKENS_PER_BATCH = {"cpu": 8192, "cuda": 65536}


@dataclass
class Prediction:
    """`label_map` (H, W) int64 in the vocabulary's order; `scores` (C, H, W) float32 that the decision was taken on, if
    asked for."""

    label_map: Tensor
    scores: Tensor | None = None


@dataclass(eq=False)
class _Image:
    """An image on its way: `grids[segmentor][window]` (Q, h, w) fill up until no window is `missing`."""

    key: Any
    scene: Scene
    windows: SlidingWindow
    size: tuple[int, int]
    missing: int
    grids: list[list[Tensor | None]]


def predict(
    segmentors: Sequence[Segmentor],
    images: Iterable[tuple[Any, Any]],
    *,
    batch: int | None = None,
    workers: int = 1,
    pad_last: bool = True,
    keep_scores: bool = False,
    output_size: tuple[int, int] | None = None,
) -> Iterator[tuple[Any, list[Prediction] | OvssError]]:
    """Yields (key, one prediction per segmentor) for each (key, image) in the order given.

    An image is an array (H, W, 3) uint8 RGB or a function that returns one, called in one of `workers` reader threads; if it
    raises OvssError, that error stands in the place of the predictions. All segmentors must share `recipe.trunk_key` and the
    CLIP; the trunk then runs once for all. `batch`: windows per forward pass; `pad_last` fills the last one with zeros, so that
    it gives what another position in the queue would give. Raises OvssError for non-finite scores.
    """
    recipe, clip = segmentors[0].recipe, segmentors[0].clip
    waiting: deque[_Image | tuple[Any, OvssError]] = deque()
    queue: list[tuple[_Image, int, Tensor]] = []
    geometry = partial(SlidingWindow.of, window=recipe.window, stride=recipe.stride, patch=clip.patch_size, pad=recipe.pad)
    full = None if recipe.window == "whole" else geometry(recipe.window, recipe.window)
    full_batch = batch or (full and batch_size(full, clip.device))

    def finished() -> Iterator[tuple[Any, list[Prediction] | OvssError]]:
        while waiting and (isinstance(waiting[0], tuple) or not waiting[0].missing):
            image = waiting.popleft()
            if isinstance(image, tuple):
                yield image
                continue
            grids = (torch.stack(grid) for grid in image.grids)
            yield image.key, [_decide(s, image, g, keep_scores) for s, g in zip(segmentors, grids, strict=True)]

    for key, scene in _read_ahead(images, recipe, workers):
        if isinstance(scene, OvssError):
            waiting.append((key, scene))
        else:
            windows = geometry(*scene.resized.shape[:2])
            count = len(windows.origins)
            size = output_size or scene.original.shape[:2]
            image = _Image(key, scene, windows, size, count, [[None] * count for _ in segmentors])
            waiting.append(image)
            items = [(image, cell, window) for cell, window in enumerate(windows.cut(scene.pixels))]
            if full and (windows.rows.size, windows.columns.size) == (full.rows.size, full.columns.size):
                queue += items
                while len(queue) >= full_batch:
                    _run(segmentors, queue[:full_batch], full_batch)
                    del queue[:full_batch]
            else:
                own_batch = min(batch or batch_size(windows, clip.device), count)
                for start in range(0, count, own_batch):
                    _run(segmentors, items[start : start + own_batch], own_batch)
        yield from finished()
    if queue:
        _run(segmentors, queue, full_batch if pad_last else len(queue))
    yield from finished()


@torch.inference_mode()
def _run(segmentors: Sequence[Segmentor], items: Sequence[tuple[_Image, int, Tensor]], batch: int) -> None:
    """One forward pass of `items` (image, number of the window, pixels), padded to `batch` windows."""
    clip, position = segmentors[0].clip, segmentors[0].recipe.position
    padding = batch - len(items)
    pixels = F.pad(torch.stack([window for *_, window in items]), (0, 0, 0, 0, 0, 0, 0, padding)).to(clip.device)
    images = list({id(image): image for image, *_ in items}.values())
    windows = WindowBatch(
        pixels,
        origins=torch.tensor([image.windows.origins[cell] for image, cell, _ in items] + [(0, 0)] * padding),
        sizes=torch.tensor([image.scene.resized.shape[:2] for image, *_ in items] + [pixels.shape[2:]] * padding),
        images=torch.tensor([images.index(image) for image, *_ in items] + [0] * padding),
        scenes=[image.scene for image in images],
        trunk=clip.trunk(pixels, frozenset().union(*(segmentor.needs for segmentor in segmentors)), position),
    )
    for number, segmentor in enumerate(segmentors):
        logits = segmentor.patch_logits(windows)
        for row, (image, cell, _) in enumerate(items):
            if not torch.isfinite(logits[row]).all():
                raise OvssError(
                    f"{segmentor.recipe.segmentor} gives non-finite scores (NaN or infinity) in image {image.key}, window at "
                    f"(y, x) = {image.windows.origins[cell]}. Check the weights and the precision ({clip.precision})."
                )
            image.grids[number][cell] = logits[row]
    for image, *_ in items:
        image.missing -= 1


def segment(
    segmentor: Segmentor,
    image: np.ndarray,
    *,
    resize: str | None = None,
    short_side: int | None = None,
    output_size: tuple[int, int] | None = None,
    window: int | str | None = None,
    stride: int | None = None,
    logit_scale: float | None = None,
    threshold: float | None = None,
) -> Prediction:
    """The label map and class scores of one image (H, W, 3) uint8 RGB.

    What is not given comes from the segmentor's recipe; a given `short_side` implies `resize="keep_ratio"`. `window="whole"`
    runs the resized image in one pass. `output_size` (height, width) defaults to the image's own.
    """
    if short_side is not None and resize is None and segmentor.recipe.resize == "none":
        resize = "keep_ratio"
    changed = segmentor.recipe.override(
        resize=resize, short_side=short_side, window=window, stride=stride, logit_scale=logit_scale, threshold=threshold
    )
    own = type(segmentor)(segmentor.clip, segmentor.vocabulary, changed)
    check_image(image)
    ((_, (prediction,)),) = predict([own], [("the image", image)], pad_last=False, keep_scores=True, output_size=output_size)
    return prediction


def check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise OvssError(f"expected an RGB image (height, width, 3) of type uint8, not {image.shape} of type {image.dtype}.")


def batch_size(windows: SlidingWindow, device: torch.device) -> int:
    return max(1, TOKENS_PER_BATCH[device.type] // (windows.rows.cells * windows.columns.cells + 1))


def make_scene(image: np.ndarray, recipe: Recipe) -> Scene:
    resized = resize(image, recipe.resize, recipe.short_side, recipe.long_side)
    return Scene(image, resized, normalize(resized, recipe.normalize))


def _read_ahead(images: Iterable[tuple[Any, Any]], recipe: Recipe, workers: int) -> Iterator[tuple[Any, Scene | OvssError]]:
    """Scenes in the order given, read by threads a little ahead of the encoder (cv2 and torch let go of Python's lock)."""

    def read(image: Any) -> Scene | OvssError:
        try:
            return make_scene(image() if callable(image) else image, recipe)
        except OvssError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        ahead: deque = deque()
        for key, image in images:
            ahead.append((key, pool.submit(read, image)))
            if len(ahead) > 2 * workers:
                key, future = ahead.popleft()
                yield key, future.result()
        while ahead:
            key, future = ahead.popleft()
            yield key, future.result()


@torch.inference_mode()
def _decide(segmentor: Segmentor, image: _Image, grids: Tensor, keep_scores: bool) -> Prediction:
    recipe, vocabulary = segmentor.recipe, segmentor.vocabulary
    labels = torch.empty(image.size, dtype=torch.int64, device=grids.device)
    blocks = compose(grids, image.windows, image.size)
    if recipe.pamr_steps or type(segmentor).refine is not Segmentor.refine:
        cosines = torch.cat([block for _, block in blocks], 1)
        if recipe.pamr_steps:
            guide = F.interpolate(image.scene.pixels[None].to(grids.device), image.size, mode="bilinear")[0]
            cosines = pamr(guide, cosines, recipe.pamr_steps, recipe.pamr_dilations)
        cosines = segmentor.refine(cosines, image.scene)
        blocks = iter([(slice(0, image.size[0]), cosines)])
    if not keep_scores and not recipe.area_threshold:
        for rows, block in blocks:
            labels[rows] = label(block, vocabulary, recipe.logit_scale, recipe.threshold)
        return Prediction(labels)
    scores = torch.empty(len(vocabulary.classes), *image.size, device=grids.device)
    for rows, block in blocks:
        scores[:, rows] = class_scores(block, vocabulary, recipe.logit_scale)
        labels[rows] = label(block, vocabulary, recipe.logit_scale, recipe.threshold)
    if recipe.area_threshold:
        scores = drop_small_classes(scores, vocabulary.background, recipe.area_threshold)
        labels = decide(scores, vocabulary.background, recipe.threshold)
    return Prediction(labels, segmentor.final_scores(scores) if keep_scores else None)
