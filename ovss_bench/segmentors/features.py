"""Features and maps of whole images, cut into windows, and additional texts of classes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoders.clip import DenseCLIP
from ..errors import OvssError
from ..files import read_lines
from ..image import STATISTICS, normalize
from ..ops.enlarge import window_of_unit_maps
from ..progress import Progress
from ..types import ImageContext, WindowBatch
from ..vocabulary import Vocabulary
from .base import Segmentor


def image_features(segmentor: Segmentor, context: ImageContext, whole: Callable[[float], int]) -> Tensor:
    """Features (1, C, h, w) of the segmentor's `vfm` for the image at its original size, bilinearly resized to whole patches of
    the encoder (`whole` rounds their number per side, which is at least 1). Computed once for all segmentors, or read from the
    run's cache."""
    patch = getattr(segmentor.vfm, "patch_size", 1)
    size = [max(whole(side / patch), 1) * patch for side in context.original.shape[:2]]
    key = ("whole image", *size)
    if key not in context.shared:
        pixels = segmentor.tensor(normalize(context.original, "clip_exact"))[None]
        context.shared[key] = WindowBatch(F.interpolate(pixels, size, mode="bilinear"), contexts=[context])
    digest = getattr(segmentor.vfm, "digest", None)
    maker = digest and f"{digest} whole image {size}"
    return segmentor.tensor(context.cached(maker, lambda: context.shared[key].once(segmentor.vfm).numpy(force=True)))


def whole_pixels(segmentor: Segmentor, context: ImageContext) -> Tensor:
    """The network input (1, 3, H, W) for the whole resized image, zero-padded at the bottom and right to at least one patch."""
    below, right = (max(segmentor.clip.patch_size - side, 0) for side in context.pixels.shape[1:])
    return F.pad(segmentor.tensor(context.pixels), (0, right, 0, below))[None]


def pictures(segmentor: Segmentor, batch: WindowBatch) -> np.ndarray:
    """The windows as images (B, H, W, 3) uint8 RGB, for a batch without images."""
    mean, std = (torch.tensor(each).view(3, 1, 1).to(batch.pixels) for each in STATISTICS[segmentor.recipe.normalize])
    return (batch.pixels * std + mean).round().clamp(0, 255).byte().movedim(1, -1).numpy(force=True)


def cut(
    segmentor: Segmentor, batch: WindowBatch, map_of: Callable[[ImageContext], Tensor], padding: int | None = None
) -> Iterator[Tensor]:
    """Yields each window (..., h, w) of the maps (..., H, W) of resized images; one at a time saves memory. Padding is filled
    with `padding`, by default with the nearest value inside the window."""
    latest, whole, sides = None, None, batch.pixels.shape[2:]
    for context, shown in shown_parts(segmentor, batch):
        if context is not latest:
            latest, whole = context, map_of(context)
        window, outside = whole, []
        for axis, side, (first, start, end) in zip((-2, -1), sides, shown, strict=True):
            index = torch.arange(first, first + side, device=window.device)
            outside.append((index < start) | (index >= end))
            if start <= first and first + side <= end:  # a view: copies of large maps are slow along the last axis
                window = window.narrow(axis, first, side)
            else:
                window = window.index_select(axis, index.clamp(start, end - 1))
        yield window if padding is None else window.masked_fill(outside[0][:, None] | outside[1], padding)


def window_features(
    segmentor: Segmentor, batch: WindowBatch, features_of: Callable[[ImageContext], Tensor], grid: Sequence[int]
) -> Tensor:
    """Features (C, h, w) of whole images -> those of their windows (B, C, *grid): resized like the images, normalised at each
    pixel, cut into windows, and resized to `grid`."""
    windows = []
    for context, parts in shown_parts(segmentor, batch):
        window = [(first, side, *shown) for side, (first, *shown) in zip(batch.pixels.shape[2:], parts, strict=True)]
        windows.append(window_of_unit_maps(features_of(context), context.resized.shape[:2], window, grid))
    return torch.stack(windows)


def shown_parts(segmentor: Segmentor, batch: WindowBatch) -> Iterator[tuple[ImageContext, list[tuple[int, int, int]]]]:
    """For each window the context of its image, and for rows and columns (first, start, end): where the window begins in the
    resized image, and the range of the image that it shows, without `end`. The rest of the window is padding."""
    recipe = segmentor.recipe
    for image, origin in zip(batch.images.tolist(), batch.origins.tolist(), strict=True):
        context, parts = batch.contexts[image], []
        for length, first, side in zip(context.resized.shape[:2], origin, batch.pixels.shape[2:], strict=True):
            shown = length if recipe.window == "whole" else min(recipe.window, length)
            start = first + ((side - shown) // 2 if recipe.pad == "center" else 0)
            parts.append((first, start, min(start + shown, length)))
        yield context, parts


def read_texts(path: Path, vocabulary: Vocabulary) -> list[str]:
    """One text for each class but the background, in the order of the classes, from lines `name >=text` (ITACLIP's format)."""
    numbered = read_lines(path, "texts file", "UTF-8 text, a line `name >=text` per class")
    lines = [(number, line) for number, line in numbered if line]
    wrong = [number for number, line in lines if not line.partition(">=")[2].strip()]
    if wrong:
        raise OvssError(f"texts file {path}, line {wrong[0]}: expected `name >=text`, with a text after >=.")
    count = len(vocabulary.classes) - (vocabulary.background is not None)
    if len(lines) != count:
        raise OvssError(f"texts file {path} has {len(lines)} texts. Expected {count}, one for each class but the background.")
    return [line.partition(">=")[2].strip() for _, line in lines]


def class_texts(path: Path, vocabulary: Vocabulary, clip: DenseCLIP, progress: Progress | None = None) -> Tensor:
    """Unit text features (F, E) of the texts of a file (see `read_texts`), in the templates of the vocabulary."""
    texts = read_texts(path, vocabulary)
    # The tokenizer truncates long texts, so a row without padding may have been truncated.
    padding = clip.tokenizer([""])[0, -1]
    for text in texts:
        if (clip.tokenizer([prompt.replace("{}", text) for prompt in vocabulary.prompts])[:, -1] != padding).any():
            raise OvssError(f"texts file {path}: {text[:60]!r} in a template is too long for CLIP's text tower. Shorten it.")
    return encoded(texts, vocabulary.prompts, clip, progress)


def encoded(texts: Sequence[str], prompts: Sequence[str], clip: DenseCLIP, progress: Progress | None = None) -> Tensor:
    """Unit text features (N, E) of texts in prompts with one `{}` each."""
    vocabulary = Vocabulary(tuple(texts), tuple(range(len(texts))), tuple(texts), prompts=tuple(prompts))
    return vocabulary.features(clip, progress)


def places(batch: WindowBatch) -> list[tuple[int, int]]:
    """(y, x) of each window in its resized image; (0, 0) for a single window without origin."""
    return [(0, 0)] if batch.origins is None else [(y, x) for y, x in batch.origins.tolist()]


def extent(batch: WindowBatch) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of the area of all windows in the resized image, with padding."""
    rows, columns = zip(*places(batch), strict=True)
    height, width = batch.pixels.shape[2:]
    return min(rows), min(columns), max(rows) + height, max(columns) + width


def corners(batch: WindowBatch, cell: int) -> list[tuple[int, int]]:
    """The cells (row, column) of the stitched image in which the windows begin, rounded down."""
    top, left, *_ = extent(batch)
    return [((y - top) // cell, (x - left) // cell) for y, x in places(batch)]
