"""The only loop: images -> windows -> batches of one shape -> patch logits of all segmentors -> label maps.

Windows of the full size are queued across images and run in batches of a fixed size, the tail padded with zeros, so a window's
result does not depend on its neighbours in the batch. Windows of other shapes (images smaller than a window, whole images) run
in batches of their own image, for the same reason.

On a GPU nothing waits for it but the delivery of a label map, which comes one batch later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoders.clip import DenseCLIP, Trunk
from ..encoders.sources import FeatureCache
from ..encoders.trunk_cache import TrunkCache, maker_digest
from ..errors import OvssError
from ..image import normalize, resize, result_size
from ..process import in_threads
from ..segmentors.base import Scene, Segmentor, WindowBatch
from ..stages import Stages
from .compose import compose
from .refine import pamr
from .scores import drop_small_classes, label
from .windows import SlidingWindow

# About as many tokens as keep two cores, or a GPU, busy; more only costs memory.
TOKENS_PER_BATCH = {"cpu": 2560, "cuda": 65536}
# Of a GPU's free memory, and the numbers of a block's width that a token needs while it passes through.
MEMORY_SHARE, NUMBERS_PER_WIDTH = 0.5, 32
ROWS = 16  # of refined cosines at a time


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
    `missing`. `known` are the trunk's tokens by block, from the cache; `states` those that are to be kept there."""

    key: Any
    scenes: list[Scene]
    windows: SlidingWindow
    missing: int
    grids: list[list[Tensor | None]]
    known: dict[int, Tensor] | None
    states: dict[int, list[Tensor | None]] = field(default_factory=dict)


@dataclass
class _Item:
    """A window in the queue."""

    image: _Image
    cell: int
    pixels: Tensor


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
    """Yields (key, one prediction per segmentor) for each (key, image) in the order given.

    An image is an array (H, W, 3) uint8 RGB or a function that returns one, called in one of `workers` reader threads; if it
    raises OvssError, that error stands in the place of the predictions. All segmentors must share `recipe.trunk_key` and the
    CLIP; the trunk then runs once for all, and not for images whose tokens are in the `trunk_cache`. `batch`: windows per
    forward pass, halved where memory does not suffice; `pad_last` fills the last one with zeros, so that it gives what another
    position in the queue would give. `cache` keeps what depends on an image alone. Raises OvssError for non-finite scores.
    """
    stages = stages or Stages()
    forward = _Forward(segmentors, batch, trunk_cache, stages)
    finish = partial(_finish, segmentors, keep_scores=keep_scores, stages=stages)
    waiting: deque[_Image | tuple[Any, OvssError]] = deque()
    ready: deque[tuple[int, Any, Callable[[], list[Prediction] | OvssError]]] = deque()

    def finished(end: bool = False) -> Iterator[tuple[Any, list[Prediction] | OvssError]]:
        while waiting and (isinstance(waiting[0], tuple) or not waiting[0].missing):
            image = waiting.popleft()
            if isinstance(image, tuple):
                ready.append((forward.passes, image[0], lambda error=image[1]: error))
            else:
                forward.keep(image)
                ready.append((forward.passes, image.key, finish(image)))
        while ready and (end or not forward.on_gpu or ready[0][0] < forward.passes):
            _, key, deliver = ready.popleft()
            yield key, deliver()

    for key, outcome in _read_ahead(images, segmentors[0], workers, output_size, forward.known, stages):
        if isinstance(outcome, OvssError):
            waiting.append((key, outcome))
        else:
            scene, known = outcome
            scenes = [replace(scene, context={}, cache=cache) for _ in segmentors]
            with stages("prepare"):
                for segmentor, own in zip(segmentors, scenes, strict=True):
                    segmentor.prepare(own)
            image = forward.image(key, scenes, known)
            waiting.append(image)
            forward.add(image)
        yield from finished()
    forward.end(pad_last)
    yield from finished(end=True)


class _Forward:
    """The queue of windows, and the forward passes of all segmentors that go by windows."""

    def __init__(
        self, segmentors: Sequence[Segmentor], batch: int | None, trunk_cache: TrunkCache | None, stages: Stages
    ) -> None:
        self.segmentors, self.stages = segmentors, stages
        self.clip, self.recipe = segmentors[0].clip, segmentors[0].recipe
        self.on_gpu = self.clip.device.type != "cpu"
        self.chosen = [number for number, segmentor in enumerate(segmentors) if not _overrides(segmentor, "image_scores")]
        # Segmentors that differ in their decision only share their logits.
        self.as_number = {number: number for number in self.chosen}
        for number in self.chosen:
            self.as_number[number] = next(
                other for other in self.chosen if other == number or _same_logits(segmentors[other], segmentors[number])
            )
        self.needs = frozenset().union(*(segmentors[number].needs for number in self.chosen))
        self.trunk_cache = trunk_cache if self.chosen else None
        key = self.recipe.trunk_key
        self.maker = maker_digest(self.clip.weights_digest, self.clip.precision, key, self.clip.device.type)
        window = self.recipe.window
        self.full = None if window == "whole" else self.geometry(window, window)
        self.batch, self.batch_given = batch or (self.full and batch_size(self.full, self.clip)), batch
        self.queue: list[_Item] = []
        self.passes = 0

    def geometry(self, height: int, width: int) -> SlidingWindow:
        recipe = self.recipe
        patch = self.clip.patch_size
        return SlidingWindow.of(height, width, recipe.window, recipe.stride, patch, recipe.pad, recipe.pad_multiple)

    def known(self, image: np.ndarray) -> dict[int, Tensor] | None:
        """The trunk's tokens for an image (H, W, 3), if they are in the cache."""
        if self.trunk_cache is None:
            return None
        with self.stages("trunk cache"):
            return self.trunk_cache.get(self.maker, image, self.needs | {self.clip.depth - 1})

    def keep(self, image: _Image) -> None:
        if image.states:
            with self.stages("trunk cache"):
                states = {block: torch.stack(windows) for block, windows in image.states.items()}
                self.trunk_cache.put(self.maker, image.scenes[0].original, states)

    def image(self, key: Any, scenes: list[Scene], known: dict[int, Tensor] | None) -> _Image:
        windows = self.geometry(*scenes[0].resized.shape[:2])
        count = len(windows.origins) if self.chosen else 0
        image = _Image(key, scenes, windows, count, [[None] * count for _ in scenes], known)
        if self.trunk_cache and known is None:
            image.states = {block: [None] * count for block in self.needs | {self.clip.depth - 1}}
        return image

    def add(self, image: _Image) -> None:
        """Queues the windows of an image, and runs the batches that are full."""
        windows = image.windows
        pixels = image.scenes[0].pixels
        items = [_Item(image, cell, window) for cell, window in enumerate(windows.cut(pixels))] if image.missing else []
        if self.full and (windows.rows.size, windows.columns.size) == (self.full.rows.size, self.full.columns.size):
            self.queue += items
            while len(self.queue) >= self.batch:
                full, self.queue = self.queue[: self.batch], self.queue[self.batch :]
                self.run(full, self.batch)
        elif items:
            own = min(self.batch_given or batch_size(windows, self.clip), len(items))
            for start in range(0, len(items), own):
                self.run(items[start : start + own], own)

    def end(self, pad: bool) -> None:
        """Runs what is left in the queue."""
        if self.queue:
            self.run(self.queue, self.batch if pad else len(self.queue))
            self.queue = []

    def run(self, items: Sequence[_Item], batch: int) -> None:
        """Forward passes of `items`, padded to `batch` windows; of half as many from where memory does not suffice."""
        while items:
            try:
                results = self._pass(items[:batch], batch)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                results = None
            if results:
                self._take(items[:batch], *results)
                items = items[batch:]
                continue
            # Outside of the handler, whose error keeps what has filled the memory.
            if batch == 1:
                raise OvssError(
                    "memory does not suffice for one window. Use a smaller window, fewer segmentors at a time, or "
                    "recipe.precision=fp16 on a GPU."
                )
            if self.on_gpu:
                torch.cuda.empty_cache()
            if batch == self.batch:
                self.batch = (batch + 1) // 2
            batch = (batch + 1) // 2

    def _take(self, items: Sequence[_Item], trunk: Trunk, logits: dict[int, Tensor]) -> None:
        """Gives the images what a pass has found out about their windows."""
        self.passes += 1
        last = self.clip.depth - 1
        for row, item in enumerate(items):
            for number, own in logits.items():
                item.image.grids[number][item.cell] = own[row]
            for block, windows in item.image.states.items():
                windows[item.cell] = (trunk.tokens if block == last else trunk.states[block])[row]
            item.image.missing -= 1

    @torch.inference_mode()
    def _pass(self, items: Sequence[_Item], batch: int) -> tuple[Trunk, dict[int, Tensor]]:
        """The trunk, and the patch logits (batch, Q, h, w) of the segmentors that go by windows."""
        padding = batch - len(items)
        pixels = F.pad(torch.stack([item.pixels for item in items]), (0, 0, 0, 0, 0, 0, 0, padding))
        images = list({id(item.image): item.image for item in items}.values())
        with self.stages("encode"):
            trunk = self._known_trunk(items, pixels, padding) or self.clip.trunk(pixels, self.needs, self.recipe.position)
        windows = WindowBatch(
            pixels,
            origins=torch.tensor([item.image.windows.origins[item.cell] for item in items] + [(0, 0)] * padding),
            sizes=torch.tensor([i.image.scenes[0].resized.shape[:2] for i in items] + [pixels.shape[2:]] * padding),
            images=torch.tensor([images.index(item.image) for item in items] + [0] * padding),
            trunk=trunk,
        )
        logits = {}
        with self.stages("last block"):
            for number, same in self.as_number.items():
                own = replace(windows, scenes=[image.scenes[number] for image in images])
                logits[number] = logits[same] if same in logits else self.segmentors[number].patch_logits(own)
        return trunk, logits

    def _known_trunk(self, items: Sequence[_Item], pixels: Tensor, padding: int) -> Trunk | None:
        """The trunk of a batch of which all tokens are in the cache."""
        if any(item.image.known is None for item in items):
            return None
        states = {
            block: F.pad(torch.stack([item.image.known[block][item.cell] for item in items]), (0, 0, 0, 0, 0, padding))
            for block in items[0].image.known
        }
        states = {block: tokens.to(self.clip.device) for block, tokens in states.items()}
        grid = tuple(side // self.clip.patch_size for side in pixels.shape[2:])
        return Trunk(states[self.clip.depth - 1], grid, {block: states[block] for block in self.needs})


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


def batch_size(windows: SlidingWindow, clip: DenseCLIP) -> int:
    """Windows per forward pass: by their tokens, and on a GPU by the memory that is free."""
    tokens = windows.rows.cells * windows.columns.cells + 1
    most = TOKENS_PER_BATCH[clip.device.type] // tokens
    if clip.device.type == "cuda":
        per_token = NUMBERS_PER_WIDTH * clip.width * torch.finfo(clip.dtype).bits // 8
        most = min(most, int(MEMORY_SHARE * torch.cuda.mem_get_info(clip.device)[0] / per_token / tokens))
    return max(1, most)


def make_scene(
    image: np.ndarray, segmentor: Segmentor, size: tuple[int, int] | None = None, stages: Stages | None = None
) -> Scene:
    """What the recipe makes of an image (H, W, 3) uint8 RGB; `size` of the result, by default as the recipe says."""
    recipe = segmentor.recipe
    with (stages or Stages())("resize"):
        resized = resize(image, recipe.resize, recipe.short_side, recipe.long_side, segmentor.clip.patch_size)
        size = size or result_size(recipe.scored_at, image.shape[:2], resized.shape[:2])
        return Scene(image, resized, normalize(resized, recipe.normalize), size)


def _read_ahead(
    images: Iterable[tuple[Any, Any]],
    segmentor: Segmentor,
    workers: int,
    size: tuple[int, int] | None,
    known: Callable[[np.ndarray], dict[int, Tensor] | None],
    stages: Stages,
) -> Iterator[tuple[Any, tuple[Scene, dict[int, Tensor] | None] | OvssError]]:
    """Scenes, and what is `known` of their images, in the order given, read by threads a little ahead of the encoder (cv2 and
    torch let go of Python's lock)."""
    device = segmentor.clip.device

    def read(item: tuple[Any, Any]) -> tuple[Any, tuple[Scene, dict[int, Tensor] | None] | OvssError]:
        key, image = item
        try:
            with stages("read"):
                image = image() if callable(image) else image
            scene = make_scene(image, segmentor, size, stages)
            if device.type != "cpu":
                scene.pixels = scene.pixels.pin_memory()
            return key, (scene, known(image))
        except OvssError as error:
            return key, error

    for key, outcome in in_threads(read, images, workers):
        if not isinstance(outcome, OvssError):
            outcome[0].pixels = outcome[0].pixels.to(device, non_blocking=True)
        yield key, outcome


@torch.inference_mode()
def _finish(
    segmentors: Sequence[Segmentor], image: _Image, *, keep_scores: bool, stages: Stages
) -> Callable[[], list[Prediction]]:
    """What the segmentors make of an image of which all windows are there, as a function that waits for it."""
    results = [_predict(segmentor, image, n, keep_scores, stages) for n, segmentor in enumerate(segmentors)]
    event = None
    if segmentors[0].clip.device.type == "cuda":
        event = torch.cuda.Event()
        event.record()

    def deliver() -> list[Prediction]:
        if event:
            event.synchronize()
        for number, (_, finite) in enumerate(results):
            if not finite:
                raise _not_finite(segmentors[number], image, number)
        return [replace(prediction, label_map=prediction.label_map.long()) for prediction, _ in results]

    return deliver


def _predict(
    segmentor: Segmentor, image: _Image, number: int, keep_scores: bool, stages: Stages
) -> tuple[Prediction, Tensor | bool]:
    """What a segmentor, the `number`-th, makes of an image, and whether its scores are finite; on the way to this side of a
    GPU."""
    scene = image.scenes[number]
    if _overrides(segmentor, "image_scores"):
        with stages("image scores"):
            scores = segmentor.image_scores(scene)
        finite = torch.isfinite(scores).all()
        if not finite:
            raise _not_finite(segmentor, image, number)
        with stages("decide"):
            labels = nearest(segmentor.decide(scores, scene), scene.size)
    else:
        with stages("compose"):
            grids = torch.stack(image.grids[number])
            finite = torch.isfinite(grids).all()
            if _has_hooks(segmentor) and not finite:
                raise _not_finite(segmentor, image, number)
            labels, scores = _labels(segmentor, grids, image.windows, scene, keep_scores)
    if _overrides(segmentor, "correct"):
        with stages("correct"):
            labels = segmentor.correct(labels, scene)
    shown = segmentor.final_scores(scores) if keep_scores else None
    return Prediction(_to_host(labels.to(torch.int32)), scene.original.shape[:2], shown), _to_host(finite)


def _labels(
    segmentor: Segmentor, grids: Tensor, windows: SlidingWindow, scene: Scene, keep_scores: bool
) -> tuple[Tensor, Tensor | None]:
    """The label map, and the scores if they are to be kept or the decision needs them."""
    recipe, vocabulary = segmentor.recipe, segmentor.vocabulary
    own_rule = _overrides(segmentor, "scores") or _overrides(segmentor, "decide")
    small_classes = recipe.area_threshold and not own_rule  # other planes than classes have no such threshold
    if not (own_rule or small_classes or keep_scores):
        labels = torch.empty(scene.size, dtype=torch.int64, device=grids.device)
        for rows, columns, cosines in _tiles(segmentor, grids, windows, scene, vocabulary.by_class[1]):
            labels[rows, columns] = label(cosines, vocabulary, recipe.logit_scale, recipe.threshold)
        return labels, None
    scores = None
    for rows, columns, cosines in _tiles(segmentor, grids, windows, scene):
        planes = segmentor.scores(cosines.movedim(-1, 0))
        if scores is None:
            scores = planes.new_empty(len(planes), *scene.size)
        scores[:, rows, columns] = planes
    if small_classes:
        scores = drop_small_classes(scores, vocabulary.background, recipe.area_threshold)
    return segmentor.decide(scores, scene), scores


def _tiles(
    segmentor: Segmentor, grids: Tensor, windows: SlidingWindow, scene: Scene, order: Tensor | None = None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Cosines (rows, columns, Q) at the size of the result, tile by tile, with the queries in another `order` if there is one;
    where something refines them, all of them had to be made."""
    recipe, order = segmentor.recipe, slice(None) if order is None else order.to(grids.device)
    if not recipe.pamr_steps and not _overrides(segmentor, "refine"):
        yield from compose(grids[:, order], windows, scene.size)
        return
    cosines = grids.new_empty(grids.shape[1], *scene.size)
    for rows, columns, tile in compose(grids, windows, scene.size):
        cosines[:, rows, columns] = tile.movedim(-1, 0)
    if recipe.pamr_steps:
        guide = F.interpolate(scene.pixels[None].to(cosines.device), scene.size, mode="bilinear")[0]
        cosines = pamr(guide, cosines, recipe.pamr_steps, recipe.pamr_dilations)
    cosines = segmentor.refine(cosines, scene)[order]
    for start in range(0, scene.size[0], ROWS):
        rows = slice(start, start + ROWS)
        yield rows, slice(None), cosines[:, rows].movedim(0, -1).contiguous()


def _to_host(result: Tensor) -> Tensor:
    """On the way to the CPU, if it is on a GPU."""
    if result.device.type == "cpu":
        return result
    return torch.empty_like(result, device="cpu", pin_memory=True).copy_(result, non_blocking=True)


def _not_finite(segmentor: Segmentor, image: _Image, number: int) -> OvssError:
    """The error that names the image and the first window without finite scores, if the method goes by windows."""
    bad = [
        origin
        for origin, grid in zip(image.windows.origins, image.grids[number], strict=False)
        if grid is not None and not torch.isfinite(grid).all()
    ]
    where = f", window at (y, x) = {bad[0]}" if bad else ""
    return OvssError(
        f"{segmentor.recipe.segmentor} gives non-finite scores (NaN or infinity) in image {image.key}{where}. "
        f"Check the weights and the precision ({segmentor.clip.precision})."
    )


def _same_logits(one: Segmentor, other: Segmentor) -> bool:
    """Whether two segmentors differ in nothing but what comes after their patch logits, and use no by-products of them."""
    plain = {"threshold", "area_threshold", "pamr_steps", "pamr_dilations", "min_foreground", "names", "templates"}
    values = [{name: v for name, v in s.recipe.values().items() if name not in plain} for s in (one, other)]
    return (
        type(one) is type(other)
        and not _has_hooks(one)
        and values[0] == values[1]
        and one.vocabulary.digest == other.vocabulary.digest
        and all(one.sources[kind] is source for kind, source in other.sources.items())
    )


def _has_hooks(segmentor: Segmentor) -> bool:
    """Whether a method does more than to give patch logits."""
    return any(_overrides(segmentor, hook) for hook in ("prepare", "refine", "scores", "decide", "correct"))


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _overrides(segmentor: Segmentor, hook: str) -> bool:
    return getattr(type(segmentor), hook) is not getattr(Segmentor, hook)


def nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w) -> (H, W), the nearest in OpenCV's sense: row floor(i h / H), column floor(j w / W)."""
    if labels.shape == size:
        return labels
    rows, columns = (torch.arange(new, device=labels.device) * old // new for new, old in zip(size, labels.shape, strict=True))
    return labels[rows[:, None], columns]
