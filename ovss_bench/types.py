"""The data types of the evaluation loop: the context of an image, a batch of windows, the trunk's output.

Shapes: B windows, T tokens (class token first), D width."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .errors import OvssError
from .stages import of_source

if TYPE_CHECKING:  # commands that only read results take names from here without PyTorch
    from torch import Tensor

MAX_SIDE = 32767  # pixels, the most that OpenCV can resize to; also the upper limit of counts in configurations
QKV: TypeAlias = "tuple[Tensor, Tensor, Tensor]"  # queries, keys and values (B, K, T, d) of K heads


@dataclass
class ImageContext:
    """One image: `original` and `resized` (H, W, 3) uint8 RGB, `pixels` (3, h, w) the normalised network input, `size` (H, W)
    of the result, `id` of the image in its data set. `by_products` and `group`, the return value of `group_features`,
    belong to one segmentor; all segmentors use `shared`. `part`: the rows and columns that the hook `scores` receives."""

    original: np.ndarray
    resized: np.ndarray
    pixels: Tensor
    size: tuple[int, int]
    id: str = ""
    part: tuple[slice, slice] = (slice(None), slice(None))
    by_products: dict[Any, Any] = field(default_factory=dict)
    group: Any = None
    shared: dict[Any, Any] = field(default_factory=dict)
    cache: Callable[[str, np.ndarray, Callable[[], np.ndarray]], np.ndarray] | None = None

    def once(self, source: Callable[[np.ndarray], Any]) -> Any:
        """`source(original)`, such as region maps: computed on first use, then shared by all segmentors."""
        if source not in self.shared:
            with of_source(source):
                self.shared[source] = self.cached(getattr(source, "digest", None), lambda: source(self.original))
        return self.shared[source]

    def __repr__(self) -> str:
        (height, width), shape = self.original.shape[:2], tuple(self.pixels.shape)
        return f"ImageContext({self.id!r}: {height} x {width} pixels, network input {shape}, result {self.size})"

    def cached(self, maker: str | None, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """`compute()`, or its result in the run's feature cache. The array may depend only on the original image and on
        `maker`, a digest of the code and settings that compute it. If `maker` is None, the array is not cached."""
        return compute() if self.cache is None or maker is None else self.cache(maker, self.original, compute)


@dataclass
class WindowBatch:
    """Windows of one shape: `pixels` (B, 3, h, w) normalised; `origins` (B, 2) = (y, x) of the padded window in its resized
    image, possibly negative; `images` (B,) index into `contexts`; `padding`: the number of zero windows at the end of the
    batch. `trunk` is computed on first use and shared by segmentors with the same requirements."""

    pixels: Tensor
    origins: Tensor | None = None
    images: Tensor | None = None
    contexts: list[ImageContext] | None = None
    trunk: Trunk | None = None
    padding: int = 0
    shared: dict[Any, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"WindowBatch({len(self.pixels)} windows of {tuple(self.pixels.shape[2:])} pixels)"

    def once(self, source: Callable[[WindowBatch], Tensor]) -> Tensor:
        """`source(batch)`, such as features of a vision encoder: computed on first use, then shared by all segmentors."""
        if source not in self.shared:
            with of_source(source):
                self.shared[source] = source(self)
        return self.shared[source]

    def places(self) -> Iterator[tuple[ImageContext, tuple[slice, slice]]]:
        """Yields the context of each window except padding, and its rows and columns in the resized image. Without contexts it
        yields nothing."""
        if not self.contexts:
            return
        if self.origins is None or self.images is None:
            raise OvssError("this WindowBatch has `contexts`, but no window positions: pass `origins` and `images`, too.")
        height, width = self.pixels.shape[2:]
        for number in range(len(self.pixels) - self.padding):
            top, left = self.origins[number].tolist()
            place = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
            yield self.contexts[self.images[number]], place


@dataclass
class Trunk:
    """The trunk's output: `tokens` (B, T, D) that enter the last block, the patch `grid` (h, w), and by block the kept inputs
    (`states`) and `qkv` (read them with `DenseCLIP.qkv` or `attention`, which compute missing ones). `embeddings` (B, E) of
    the windows are computed on first use."""

    tokens: Tensor
    grid: tuple[int, int]
    states: dict[int, Tensor]
    qkv: dict[int, QKV] = field(default_factory=dict)
    embeddings: Tensor | None = None
