"""The queue of windows of all images, and the forward passes over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.recipe import BEFORE_DECISION
from ..encoders.clip import DenseCLIP
from ..errors import OvssError
from ..image import normalize
from ..ops.device import kept, to_device
from ..ops.windows import SlidingWindow
from ..segmentors.base import Segmentor
from ..stages import Stages
from ..types import ImageContext, Trunk, WindowBatch
from .trunk_cache import TrunkCache, maker_digest

# Enough tokens to keep two cores or a GPU busy; more would only cost memory.
TOKENS_PER_BATCH = {"cpu": 2560, "cuda": 65536}
MEMORY_SHARE = 0.5  # of a GPU's free memory that a batch may take
VECTORS_PER_TOKEN = 32  # activations inside a block, in vectors of the block's width


@dataclass(eq=False)
class PendingImage:
    """An image in the queue, with a context for each segmentor. `grids[segmentor][window]` (Q, h, w) are filled in until no
    window is `missing`. `known`: the trunk's tokens by block, from the trunk cache. `states`: tokens collected for that cache
    or for methods that get all windows of an image together."""

    key: Any
    contexts: list[ImageContext]
    windows: SlidingWindow
    missing: int
    grids: list[list[Tensor | None]]
    known: dict[int, Tensor] | None
    states: dict[int, list[Tensor | None]] = field(default_factory=dict)


@dataclass
class _Item:
    """A window in the queue."""

    image: PendingImage
    cell: int
    pixels: Tensor


class Forward:
    """The queue of windows, and the forward passes of all segmentors that work on windows."""

    def __init__(
        self, segmentors: Sequence[Segmentor], batch: int | None, trunk_cache: TrunkCache | None, stages: Stages
    ) -> None:
        self.segmentors, self.stages = segmentors, stages
        self.clip, self.recipe = segmentors[0].clip, segmentors[0].recipe
        self.on_gpu = self.clip.device.type == "cuda"
        self.on_windows = [number for number, segmentor in enumerate(segmentors) if segmentor.granularity != "image"]
        self.at_once = [number for number in self.on_windows if segmentors[number].granularity == "image windows"]
        # Number of a segmentor -> the first with the same logits: those that differ only in their decision share them.
        self.shares_logits = {
            number: next(n for n in self.on_windows if n == number or _same_logits(segmentors[n], segmentors[number]))
            for number in self.on_windows
        }
        self.needs_qkv = frozenset().union(*(segmentors[number].needs_qkv for number in self.on_windows))
        self.needs = self.needs_qkv.union(*(segmentors[number].needs for number in self.on_windows))
        self.kept = self.needs | {self.clip.depth - 1}  # blocks whose inputs are in the trunk cache
        self.uses_trunk = any(not segmentors[number].own_network for number in self.on_windows)
        self.trunk_cache = trunk_cache if self.uses_trunk else None
        self.maker = maker_digest(self.clip, self.recipe.trunk_key)
        window, patch = self.recipe.window, self.clip.patch_size
        self.full = None if window == "whole" else SlidingWindow.by(self.recipe, window, window, patch)
        self.batch, self.batch_given = batch or (self.full and batch_size(self.full, self.clip)), batch
        self.queue: list[_Item] = []
        self.passes = 0

    def known(self, image: np.ndarray) -> dict[int, Tensor] | None:
        """The trunk's tokens for an image (H, W, 3), if they are in the cache."""
        if self.trunk_cache is None:
            return None
        with self.stages("trunk cache"):
            return self.trunk_cache.get(self.maker, image, self.kept)

    def keep(self, image: PendingImage) -> None:
        """For an image without missing windows: passes the trunk's tokens to the cache, and to methods that get all windows of
        an image together."""
        states = image.known or {block: torch.stack(windows) for block, windows in image.states.items()}
        image.states = {}
        if self.trunk_cache and image.known is None:
            with self.stages("trunk cache"):
                self.trunk_cache.put(self.maker, image.contexts[0].original, states)
        if self.at_once:
            with self.stages("last block"):
                self._all_at_once(image, states)

    def image(self, key: Any, contexts: list[ImageContext], known: dict[int, Tensor] | None) -> PendingImage:
        windows = SlidingWindow.by(self.recipe, *contexts[0].resized.shape[:2], self.clip.patch_size)
        count = len(windows.origins) if self.on_windows else 0
        image = PendingImage(key, contexts, windows, count, [[None] * count for _ in contexts], known)
        if (self.trunk_cache or self.at_once) and self.uses_trunk and known is None:
            image.states = {block: [None] * count for block in self.kept}
        return image

    def add(self, image: PendingImage) -> None:
        """Queues the windows of an image, and runs the batches that are full."""
        windows = image.windows
        items = [_Item(image, cell, window) for cell, window in enumerate(self._cut(image))] if image.missing else []
        if self.full and (windows.rows.size, windows.columns.size) == (self.full.rows.size, self.full.columns.size):
            self.queue += items
            while len(self.queue) >= self.batch:
                full, self.queue = self.queue[: self.batch], self.queue[self.batch :]
                self.run(full, self.batch)
        elif items:
            self.run(items, min(self.batch_given or batch_size(windows, self.clip), len(items)))

    def end(self, pad: bool) -> None:
        """Runs what is left in the queue."""
        if self.queue:
            self.run(self.queue, self.batch if pad else len(self.queue))
            self.queue = []

    def run(self, items: Sequence[_Item], batch: int) -> None:
        """Forward passes over `items`, padded to `batch` windows; when out of memory, the batch is halved."""
        while items:
            try:
                results = self._pass(items[:batch], batch)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                results = None
            if results:
                self._take(items[:batch], *results)
                items = items[batch:]
                continue
            # Outside the handler, as its exception keeps the tensors that fill the memory alive.
            if batch == 1:
                raise OvssError(
                    "out of memory: one window does not fit. Use a smaller window, fewer segmentors at a time, or "
                    "recipe.precision=fp16 on a GPU."
                )
            if self.on_gpu:
                torch.cuda.empty_cache()
            if batch == self.batch:
                self.batch = (batch + 1) // 2
            batch = (batch + 1) // 2

    def _cut(self, image: PendingImage) -> list[Tensor]:
        """The windows of an image (3, h, w)."""
        pixels = image.contexts[0].pixels
        fill = _black(self.recipe.normalize, like=pixels) if self.recipe.pad == "corner_black" else None
        return image.windows.cut(pixels, fill)

    def _take(self, items: Sequence[_Item], trunk: Trunk | None, logits: dict[int, Tensor]) -> None:
        """Stores the results of a pass in the images of its windows."""
        self.passes += 1
        states = {**trunk.states, self.clip.depth - 1: trunk.tokens} if trunk else {}
        for row, item in enumerate(items):
            for number, of_windows in logits.items():
                item.image.grids[number][item.cell] = of_windows[row]
            for block, windows in item.image.states.items():
                windows[item.cell] = states[block][row]
            item.image.missing -= 1

    @torch.inference_mode()
    def _pass(self, items: Sequence[_Item], batch: int) -> tuple[Trunk | None, dict[int, Tensor]]:
        """The trunk, if a segmentor needs it, and the patch logits (batch, Q, h, w) of the segmentors that work on windows."""
        padding = batch - len(items)
        pixels = F.pad(torch.stack([item.pixels for item in items]), (0, 0, 0, 0, 0, 0, 0, padding))
        images = list({id(item.image): item.image for item in items}.values())
        with self.stages("encode"):
            trunk = self._trunk(items, pixels, padding) if self.uses_trunk else None
        windows = WindowBatch(
            pixels,
            origins=torch.tensor([item.image.windows.origins[item.cell] for item in items] + [(0, 0)] * padding),
            images=torch.tensor([images.index(item.image) for item in items] + [0] * padding),
            trunk=trunk,
            padding=padding,
        )
        logits = {}
        with self.stages("last block"):
            for number, same in self.shares_logits.items():
                if same in logits:
                    logits[number] = logits[same]
                elif number not in self.at_once:
                    with_contexts = replace(windows, contexts=[image.contexts[number] for image in images])
                    logits[number] = self.segmentors[number].patch_logits(with_contexts)
        return trunk, logits

    def _trunk(self, items: Sequence[_Item], pixels: Tensor, padding: int) -> Trunk:
        """The trunk's output for the windows, read from the trunk cache if it holds all of them."""
        if not all(item.image.known for item in items):
            return self.clip.trunk(pixels, self.needs, self.recipe.position, self.needs_qkv)
        known = {block: torch.stack([item.image.known[block][item.cell] for item in items]) for block in self.kept}
        return self._known_trunk({block: F.pad(x, (0, 0, 0, 0, 0, padding)) for block, x in known.items()}, pixels)

    @torch.inference_mode()
    def _all_at_once(self, image: PendingImage, states: dict[int, Tensor]) -> None:
        """The logits of methods that get all windows of an image together."""
        pixels = torch.stack(self._cut(image))
        batch = WindowBatch(
            pixels,
            origins=torch.tensor(image.windows.origins),
            images=torch.zeros(len(pixels), dtype=torch.int64),
            trunk=self._known_trunk(states, pixels) if states else None,
        )
        for number in self.at_once:
            try:
                logits = self.segmentors[number].image_logits(replace(batch, contexts=[image.contexts[number]]))
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                raise OvssError(
                    f"out of memory: {self.segmentors[number].recipe.segmentor} takes all {len(pixels)} windows of image "
                    f"{image.key} together. Use a larger stride or a smaller short_side."
                ) from error
            image.grids[number] = list(logits)
            image.contexts[number].by_products["logits"] = logits  # with the steps, for the hooks that follow

    def _known_trunk(self, states: dict[int, Tensor], pixels: Tensor) -> Trunk:
        """The trunk's output for windows whose tokens are known, by block."""
        states = {block: to_device(tokens, self.clip.device) for block, tokens in states.items()}
        grid = tuple(side // self.clip.patch_size for side in pixels.shape[2:])
        return Trunk(states[self.clip.depth - 1], grid, {block: states[block] for block in self.needs})


@kept(8)
def _black(statistics: str) -> Tensor:
    """A black pixel (3, 1, 1), normalised."""
    return normalize(np.zeros((1, 1, 3), np.uint8), statistics)


def batch_size(windows: SlidingWindow, clip: DenseCLIP) -> int:
    """Windows per forward pass, by their number of tokens, and on a GPU by its free memory."""
    tokens = windows.rows.cells * windows.columns.cells + 1
    most = TOKENS_PER_BATCH[clip.device.type] // tokens
    if clip.device.type == "cuda":
        per_token = VECTORS_PER_TOKEN * clip.width * torch.finfo(clip.dtype).bits // 8
        most = min(most, int(MEMORY_SHARE * torch.cuda.mem_get_info(clip.device)[0] / per_token / tokens))
    return max(1, most)


def _same_logits(one: Segmentor, other: Segmentor) -> bool:
    """Whether two segmentors have the same patch logits, and neither has by-products."""
    return (
        type(one) is type(other)
        and one.only_logits
        and one.recipe.hyperparameters == other.recipe.hyperparameters
        and all(getattr(one.recipe, name) == getattr(other.recipe, name) for name in BEFORE_DECISION)
        and one.vocabulary.digest == other.vocabulary.digest
        and all(one.sources[kind] is source for kind, source in other.sources.items())
    )


def out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
