"""The only loop: images -> windows -> batches of one shape -> patch logits of all segmentors -> label maps.

Windows of the full size are queued across images and run in batches of a fixed size, the tail padded with zeros, so a window's
result does not depend on its neighbours in the batch. Windows of other shapes (images smaller than a window, whole images) run
in batches of their own image, for the same reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoders.sources import FeatureCache
from ..errors import OvssError
from ..image import normalize, resize, result_size
from ..segmentors.base import Scene, Segmentor, WindowBatch
from .compose import compose
from .refine import pamr
from .scores import drop_small_classes, label
from .windows import SlidingWindow

# About as many tokens as keep two cores, or a GPU, busy; more only costs memory.
TOKENS_PER_BATCH = {"cpu": 8192, "cuda": 65536}


@dataclass
class Prediction:
    """`label_map` (H, W) int64 in the vocabulary's order, C for "no class"; `scores` (P, h, w) float32 that the decision was
    taken on, in the planes that the method has (mostly the classes), if asked for; `image_size` of the image."""

    label_map: Tensor
    image_size: tuple[int, int]
    scores: Tensor | None = None


@dataclass(eq=False)
class _Image:
    """An image on its way, with a scene for each segmentor: `grids[segmentor][window]` (Q, h, w) fill up until no window is
    `missing`."""

    key: Any
    scenes: list[Scene]
    windows: SlidingWindow
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
    cache: FeatureCache | None = None,
) -> Iterator[tuple[Any, list[Prediction] | OvssError]]:
    """Yields (key, one prediction per segmentor) for each (key, image) in the order given.

    An image is an array (H, W, 3) uint8 RGB or a function that returns one, called in one of `workers` reader threads; if it
    raises OvssError, that error stands in the place of the predictions. All segmentors must share `recipe.trunk_key` and the
    CLIP; the trunk then runs once for all. `batch`: windows per forward pass; `pad_last` fills the last one with zeros, so that
    it gives what another position in the queue would give. `cache` keeps what depends on an image alone. Raises OvssError for
    non-finite scores.
    """
    recipe, clip = segmentors[0].recipe, segmentors[0].clip
    in_windows = [number for number, segmentor in enumerate(segmentors) if not _overrides(segmentor, "image_scores")]
    waiting: deque[_Image | tuple[Any, OvssError]] = deque()
    queue: list[tuple[_Image, int, Tensor]] = []
    geometry = partial(
        SlidingWindow.of,
        window=recipe.window,
        stride=recipe.stride,
        patch=clip.patch_size,
        pad=recipe.pad,
        multiple=recipe.pad_multiple,
    )
    full = None if recipe.window == "whole" else geometry(recipe.window, recipe.window)
    full_batch = batch or (full and batch_size(full, clip.device))

    def finished() -> Iterator[tuple[Any, list[Prediction] | OvssError]]:
        while waiting and (isinstance(waiting[0], tuple) or not waiting[0].missing):
            image = waiting.popleft()
            if isinstance(image, tuple):
                yield image
                continue
            yield image.key, [_predict(segmentor, image, n, keep_scores) for n, segmentor in enumerate(segmentors)]

    for key, scene in _read_ahead(images, segmentors[0], workers, output_size):
        if isinstance(scene, OvssError):
            waiting.append((key, scene))
        else:
            windows = geometry(*scene.resized.shape[:2])
            count = len(windows.origins) if in_windows else 0
            scenes = [replace(scene, context={}, cache=cache) for _ in segmentors]
            image = _Image(key, scenes, windows, count, [[None] * count for _ in segmentors])
            waiting.append(image)
            for segmentor, own in zip(segmentors, scenes, strict=True):
                segmentor.prepare(own)
            items = [(image, cell, window) for cell, window in enumerate(windows.cut(scene.pixels) if in_windows else ())]
            if full and (windows.rows.size, windows.columns.size) == (full.rows.size, full.columns.size):
                queue += items
                while len(queue) >= full_batch:
                    _run(segmentors, in_windows, queue[:full_batch], full_batch)
                    del queue[:full_batch]
            else:
                own_batch = min(batch or batch_size(windows, clip.device), count)
                for start in range(0, count, own_batch or 1):
                    _run(segmentors, in_windows, items[start : start + own_batch], own_batch)
        yield from finished()
    if queue:
        _run(segmentors, in_windows, queue, full_batch if pad_last else len(queue))
    yield from finished()


@torch.inference_mode()
def _run(
    segmentors: Sequence[Segmentor], chosen: Sequence[int], items: Sequence[tuple[_Image, int, Tensor]], batch: int
) -> None:
    """One forward pass of `items` (image, number of the window, pixels), padded to `batch` windows, for the chosen
    segmentors."""
    clip, position = segmentors[0].clip, segmentors[0].recipe.position
    padding = batch - len(items)
    pixels = F.pad(torch.stack([window for *_, window in items]), (0, 0, 0, 0, 0, 0, 0, padding)).to(clip.device)
    images = list({id(image): image for image, *_ in items}.values())
    windows = WindowBatch(
        pixels,
        origins=torch.tensor([image.windows.origins[cell] for image, cell, _ in items] + [(0, 0)] * padding),
        sizes=torch.tensor([image.scenes[0].resized.shape[:2] for image, *_ in items] + [pixels.shape[2:]] * padding),
        images=torch.tensor([images.index(image) for image, *_ in items] + [0] * padding),
        trunk=clip.trunk(pixels, frozenset().union(*(segmentors[number].needs for number in chosen)), position),
    )
    for number in chosen:
        segmentor = segmentors[number]
        logits = segmentor.patch_logits(replace(windows, scenes=[image.scenes[number] for image in images]))
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
    runs the resized image in one pass. `output_size` (height, width) defaults to the image's own, or to that at which the
    method decides if its protocol is not to score at the original size (CLIPtrase, CLIP-DIY).
    """
    if short_side is not None and resize is None and segmentor.recipe.resize == "none":
        resize = "keep_ratio"
    changed = segmentor.recipe.override(
        resize=resize, short_side=short_side, window=window, stride=stride, logit_scale=logit_scale, threshold=threshold
    )
    own = segmentor.with_recipe(changed)
    check_image(image)
    if output_size is None and changed.scored_at != "original":
        output_size = make_scene(image, own).resized.shape[:2]
    ((_, (prediction,)),) = predict([own], [("the image", image)], pad_last=False, keep_scores=True, output_size=output_size)
    return prediction


def check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise OvssError(f"expected an RGB image (height, width, 3) of type uint8, not {image.shape} of type {image.dtype}.")


def batch_size(windows: SlidingWindow, device: torch.device) -> int:
    return max(1, TOKENS_PER_BATCH[device.type] // (windows.rows.cells * windows.columns.cells + 1))


def make_scene(image: np.ndarray, segmentor: Segmentor, size: tuple[int, int] | None = None) -> Scene:
    """What the recipe makes of an image (H, W, 3) uint8 RGB; `size` of the result, by default as the recipe says."""
    recipe = segmentor.recipe
    resized = resize(image, recipe.resize, recipe.short_side, recipe.long_side, segmentor.clip.patch_size)
    size = size or result_size(recipe.scored_at, image.shape[:2], resized.shape[:2])
    return Scene(image, resized, normalize(resized, recipe.normalize), size)


def _read_ahead(
    images: Iterable[tuple[Any, Any]], segmentor: Segmentor, workers: int, size: tuple[int, int] | None
) -> Iterator[tuple[Any, Scene | OvssError]]:
    """Scenes in the order given, read by threads a little ahead of the encoder (cv2 and torch let go of Python's lock)."""

    def read(image: Any) -> Scene | OvssError:
        try:
            return make_scene(image() if callable(image) else image, segmentor, size)
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
def _predict(segmentor: Segmentor, image: _Image, number: int, keep_scores: bool) -> Prediction:
    """What a segmentor, the `number`-th, makes of an image of which all windows are there."""
    scene = image.scenes[number]
    shape = scene.original.shape[:2]
    if _overrides(segmentor, "image_scores"):
        scores = segmentor.image_scores(scene)
        if not torch.isfinite(scores).all():
            raise OvssError(
                f"{segmentor.recipe.segmentor} gives non-finite scores (NaN or infinity) in image {image.key}. "
                f"Check the weights and the precision ({segmentor.clip.precision})."
            )
        labels = nearest(segmentor.decide(scores, scene), scene.size)
    else:
        blocks = _refined(segmentor, compose(torch.stack(image.grids[number]), image.windows, scene.size), scene)
        labels, scores = _decided(segmentor, blocks, scene, keep_scores)
    if _overrides(segmentor, "correct"):
        labels = segmentor.correct(labels, scene)
    return Prediction(labels, shape, segmentor.final_scores(scores) if keep_scores else None)


def _refined(segmentor: Segmentor, blocks: Iterator[tuple[slice, Tensor]], scene: Scene) -> Iterable[tuple[slice, Tensor]]:
    """The blocks of rows of cosines as they come, or all rows together where something refines them."""
    recipe = segmentor.recipe
    if not recipe.pamr_steps and not _overrides(segmentor, "refine"):
        return blocks
    cosines = torch.cat([block for _, block in blocks], 1)
    if recipe.pamr_steps:
        guide = F.interpolate(scene.pixels[None].to(cosines.device), scene.size, mode="bilinear")[0]
        cosines = pamr(guide, cosines, recipe.pamr_steps, recipe.pamr_dilations)
    return [(slice(0, scene.size[0]), segmentor.refine(cosines, scene))]


def _decided(
    segmentor: Segmentor, blocks: Iterable[tuple[slice, Tensor]], scene: Scene, keep_scores: bool
) -> tuple[Tensor, Tensor | None]:
    """The label map, and the scores if they are to be kept or the decision needs them."""
    recipe, vocabulary = segmentor.recipe, segmentor.vocabulary
    own_rule = _overrides(segmentor, "scores") or _overrides(segmentor, "decide")
    small_classes = recipe.area_threshold and not own_rule  # other planes than classes have no such threshold
    labels, parts = None, []
    for rows, block in blocks:
        if labels is None:
            labels = torch.empty(scene.size, dtype=torch.int64, device=block.device)
        if keep_scores or own_rule or small_classes:
            parts.append(segmentor.scores(block))
        if not own_rule and not small_classes:
            labels[rows] = label(block, vocabulary, recipe.logit_scale, recipe.threshold)
    scores = torch.cat(parts, 1) if parts else None
    if small_classes:
        scores = drop_small_classes(scores, vocabulary.background, recipe.area_threshold)
    if own_rule or small_classes:
        labels = segmentor.decide(scores, scene)
    return labels, scores


def _overrides(segmentor: Segmentor, hook: str) -> bool:
    return getattr(type(segmentor), hook) is not getattr(Segmentor, hook)


def nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w) -> (H, W), the nearest in OpenCV's sense: row floor(i h / H), column floor(j w / W)."""
    if labels.shape == size:
        return labels
    rows, columns = (torch.arange(new, device=labels.device) * old // new for new, old in zip(size, labels.shape, strict=True))
    return labels[rows[:, None], columns]
