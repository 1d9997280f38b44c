"""Concept segmenters as methods use them (`concepts=`): the network of encoders/concepts.py, or any function of image and
prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..encoders.concepts import ConceptPrompts, Concepts, ConceptSegmenter
from ..ops.device import whole_numbers


class GivenConcepts:
    """A function (image (H, W, 3) uint8, K prompts) -> logits of masks (K, N, h, w), semantic maps (K, h, w), objects (K, N)
    and presence (K,), with the methods of a `ConceptSegmenter`. It is called once per image with all prompts. If a method asks
    for another input size, its side in pixels is the third argument."""

    def __init__(self, source: Callable[..., Any]) -> None:
        self.source = source

    def chunk(self, side: int | None = None) -> int:
        return 2**31

    def image(self, image: np.ndarray, side: int | None = None, shared: Any = None) -> tuple[Any, ...]:
        return (image,) if side is None else (image, side)

    def texts(self, prompts: Sequence[str]) -> tuple[str, ...]:
        return tuple(prompts)

    def detect(self, image: tuple[Any, ...], prompts: tuple[str, ...]) -> Concepts:
        masks, semantic, objects, presence = self.source(image[0], prompts, *image[1:])
        return Concepts(objects, presence.reshape(len(prompts)), (masks, semantic))

    def masks(self, image: tuple[Any, ...], found: Concepts, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        masks, semantic = found.state
        return masks[list(rows)].float(), semantic[list(rows)].float()


def concepts_of(source: Any, *, geometry_token: bool, precision: str) -> Any:
    """A concept segmenter with these settings; a function of image and prompts has none."""
    if hasattr(source, "settings"):
        return source.settings(geometry_token=geometry_token, precision=precision)
    return GivenConcepts(source)


def chosen(texts: Any, places: Sequence[int]) -> Any:
    """Some of the encoded prompts, or of the texts for a function."""
    if isinstance(texts, ConceptPrompts):
        return texts[whole_numbers(tuple(places), like=texts.features)]
    return tuple(texts[place] for place in places)


__all__ = ["ConceptPrompts", "ConceptSegmenter", "Concepts", "GivenConcepts", "chosen", "concepts_of"]
