"""Segmentor: the contract of a method, and LastBlockSegmentor, for methods that only change CLIP's last block.

Shapes: B windows, T tokens (class token first), D width, K heads, d = D/K, Q queries, C classes, (h, w) patch grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoders.clip import BlockView, DenseCLIP, Trunk
from ..encoders.sources import FeatureCache
from ..errors import OvssError
from ..image import STATISTICS
from ..inference.scores import class_scores, decide
from ..progress import Progress
from ..recipe import Recipe, of_class
from ..vocabulary import Vocabulary


@dataclass
class Scene:
    """One image on its way: `original` and `resized` (H, W, 3) uint8 RGB, `pixels` (3, h, w) the normalised network input,
    `size` (H, W) of the result, and `context`, in which a segmentor keeps its own by-products of this image."""

    original: np.ndarray
    resized: np.ndarray
    pixels: Tensor
    size: tuple[int, int]
    context: dict[str, Any] = field(default_factory=dict)
    shared: dict[Any, Any] = field(default_factory=dict)
    cache: FeatureCache | None = None

    def once(self, source: Callable[[np.ndarray], Any]) -> Any:
        """`source(original)`: region maps and the like, computed for the first segmentor that asks, then shared by all."""
        if source not in self.shared:
            self.shared[source] = self.kept(getattr(source, "digest", None), lambda: source(self.original))
        return self.shared[source]

    def kept(self, maker: str | None, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that depends on the original image and on what the digest `maker` stands for, from the run's cache if it
        has one."""
        return compute() if self.cache is None or maker is None else self.cache(maker, self.original, compute)


@dataclass
class WindowBatch:
    """Windows of one shape: `pixels` (B, 3, h, w) normalised; `origins` (B, 2) = (y, x) of the padded window in its resized
    image, possibly negative; `sizes` (B, 2) of the resized images; `images` (B,) index into `scenes`; `padding`: how many
    windows at the end are zeros that fill the batch. All but pixels optional.

    `trunk` is filled by the first segmentor that asks, and shared by those with the same needs.
    """

    pixels: Tensor
    origins: Tensor | None = None
    sizes: Tensor | None = None
    images: Tensor | None = None
    scenes: list[Scene] | None = None
    trunk: Trunk | None = None
    padding: int = 0
    shared: dict[Callable, Tensor] = field(default_factory=dict)

    def once(self, source: Callable[[WindowBatch], Tensor]) -> Tensor:
        """`source(batch)`: features of a vision encoder, computed for the first segmentor that asks, then shared by all."""
        if source not in self.shared:
            self.shared[source] = source(self)
        return self.shared[source]


class Segmentor:
    """A training-free method. Annotated class attributes are its hyperparameters, with their defaults.

    Hyperparameters called `vfm`, `regions`, `foreground`, `diffusion` or `bank` name what the method needs beside CLIP; in a
    segmentor they hold the loaded thing itself, which comes in `sources`. Those in `requires` must be there, those in
    `positive` above 0; those in `in_fp32` are loaded in fp32, as in the official code, whatever precision CLIP has.
    `attention_maps`: how many maps (K, T, T) the method holds at a time, at least, by which an image that
    is too large for the memory is refused beforehand.
    """

    requires = ()
    positive = ()
    attention_maps = 0
    in_fp32 = ()

    def __init__(
        self, clip: DenseCLIP, vocabulary: Vocabulary, recipe: Recipe, sources: Mapping[str, Any] | None = None
    ) -> None:
        self.clip = clip.variant(recipe.activation, recipe.layer_norm_eps)
        self.vocabulary, self.recipe, self.sources = vocabulary, recipe, dict(sources or {})
        self.observed: Counter[str] = Counter()  # what a method counts on its way, by name; results state it
        for name in ("threshold", "area_threshold"):
            if getattr(recipe, name) > 0 and vocabulary.background is None:
                origin = recipe.origins.get(name, "the caller")
                raise OvssError(
                    f"{name}={getattr(recipe, name)} (from {origin}), but there is no background class to give the uncertain "
                    "pixels to. Use 0, or a data set with a background class (voc21, context60, coco_object), or "
                    "background=True in Vocabulary."
                )
        if recipe.precision not in (None, clip.precision):
            raise OvssError(
                f"the recipe of {recipe.segmentor} has precision={recipe.precision} (from "
                f"{recipe.origins.get('precision', 'the caller')}), but the CLIP was loaded in {clip.precision}. Load it with "
                f"precision='{recipe.precision}', or set precision={clip.precision} here, too."
            )
        own = recipe.hyperparameters
        paths = {name: Path(own[name]) for name in of_class(type(self)).paths if own[name]}
        for name, value in (own | self.sources | paths).items():
            if name in self.positive and not value > 0:
                raise OvssError(f"{name}={value} of {recipe.segmentor}: expected a number above 0.")
            setattr(self, name, value)
        for kind in self.requires:
            if getattr(self, kind) is None:
                raise OvssError(
                    f"{recipe.segmentor} needs {kind}: give a name or a file ({kind}=NAME), or in Python a callable."
                )

    @classmethod
    def hyperparameters(cls) -> dict[str, Any]:
        """Names and defaults, in the order in which the classes declare them."""
        return dict(of_class(cls).defaults)

    def with_recipe(self, recipe: Recipe) -> Segmentor:
        """The same method with other recipe values."""
        return type(self)(self.clip, self.vocabulary, recipe, self.sources)

    @property
    def text(self) -> Tensor:
        """Unit text features (Q, E) float32."""
        if not hasattr(self, "_text"):
            self.encode_text()
        return self._text

    def encode_text(self, progress: Progress | None = None) -> None:
        """Makes `text`, and what else is made of the texts, which `progress` shows: before the first image, as it takes its
        time."""
        self._text = self.vocabulary.features(self.clip, progress)
        if self.sources.get("bank") is not None:
            self.sources["bank"].encode_text(self.vocabulary, progress)

    @property
    def needs(self) -> Set[int]:
        """Blocks of which the input must be kept by the trunk, beside that of the last."""
        return frozenset()

    def trunk(self, batch: WindowBatch) -> Trunk:
        if batch.trunk is None or not self.needs <= batch.trunk.states.keys():
            batch.trunk = self.clip.trunk(batch.pixels, self.needs, self.recipe.position)
        return batch.trunk

    def cosines(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, T, D) before `ln_post` -> cosine similarities of the patches with the queries (B, Q, h, w)."""
        return self.compare(self.clip.project(x[:, 1:]), grid)

    def compare(self, embeddings: Tensor, grid: tuple[int, int]) -> Tensor:
        """Embeddings (B, h*w, E) in the joint space -> cosine similarities with the queries (B, Q, h, w)."""
        unit = F.normalize(embeddings.float(), dim=-1)
        return (unit @ self.text.T).transpose(1, 2).unflatten(2, grid)

    def tensor(self, array: np.ndarray) -> Tensor:
        """What a source made of an image, where CLIP is."""
        return torch.as_tensor(array).to(self.clip.device)

    def as_images(self, pixels: Tensor) -> list[np.ndarray]:
        """Normalised windows (B, 3, h, w) as images (h, w, 3) uint8 RGB, for sources where there is no scene."""
        mean, std = (torch.tensor(values).view(3, 1, 1).to(pixels) for values in STATISTICS[self.recipe.normalize])
        return [(window * std + mean).round().clamp(0, 255).byte().permute(1, 2, 0).numpy(force=True) for window in pixels]

    def cut(self, batch: WindowBatch, map_of: Callable[[Scene], Tensor], padding: int | None = None) -> Iterator[Tensor]:
        """The windows (..., h, w) of maps (..., H, W) at the size of the resized images, one after another, as maps of features
        are large. Where a window is padded they hold `padding`; None: the nearest value inside."""
        latest, whole = None, None
        for image, origin in zip(batch.images.tolist(), batch.origins.tolist(), strict=True):
            if image != latest:
                latest, whole = image, map_of(batch.scenes[image])
            window, outside = whole, []
            for axis, first, side in zip((-2, -1), origin, batch.pixels.shape[2:], strict=True):
                length = window.shape[axis]
                shown = length if self.recipe.window == "whole" else min(self.recipe.window, length)
                start = first + ((side - shown) // 2 if self.recipe.pad == "center" else 0)
                index = torch.arange(first, first + side)
                inside = index.clamp(start, min(start + shown, length) - 1)
                outside.append((index != inside).to(window.device))
                window = window.index_select(axis, inside.to(window.device))
            yield window if padding is None else window.masked_fill(outside[0][:, None] | outside[1], padding)

    def places(self, batch: WindowBatch) -> Iterator[tuple[Scene, tuple[slice, slice]]]:
        """Of every window but the padding its scene, and the rows and columns of the resized image that it shows; nothing for
        windows without a scene."""
        height, width = batch.pixels.shape[2:]
        real = len(batch.pixels) - batch.padding if batch.scenes else 0
        for number in range(real):
            top, left = batch.origins[number].tolist()
            rows, columns = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
            yield batch.scenes[batch.images[number]], (rows, columns)

    @property
    def refines(self) -> bool:
        """Whether `refine` does anything with this recipe; only then the cosines of all queries are made at full size."""
        return type(self).refine is not Segmentor.refine

    # Hooks, in the order in which they run.

    def prepare(self, scene: Scene) -> None:
        """Work that is done once per image, before its windows."""

    def patch_logits(self, batch: WindowBatch) -> Tensor:
        """Cosine similarities (B, Q, h, w) on a grid over each window, of any resolution."""
        raise NotImplementedError

    def image_scores(self, scene: Scene) -> Tensor:
        """Instead of `patch_logits`, for methods that don't go window by window: the planes (P, h, w) that `decide` gets."""
        raise NotImplementedError

    def refine(self, cosines: Tensor, scene: Scene) -> Tensor:
        """Cosines (Q, H, W) at the size of the result -> the same, refined."""
        return cosines

    def scores(self, cosines: Tensor) -> Tensor:
        """Cosines (Q, ...) -> the planes (P, ...) that the decision is taken on: class probabilities (C, ...)."""
        return class_scores(cosines, self.vocabulary, self.recipe.logit_scale)

    def decide(self, scores: Tensor, scene: Scene) -> Tensor:
        """Planes (P, h, w) -> label map (h, w) int64; C stands for "no class"."""
        return decide(scores, self.vocabulary.background, self.recipe.threshold)

    def correct(self, label_map: Tensor, scene: Scene) -> Tensor:
        """Label map (H, W) -> the same, corrected."""
        return label_map

    def final_scores(self, scores: Tensor) -> Tensor:
        """What is stored as the scores once the decision has been taken."""
        return scores


class LastBlockSegmentor(Segmentor):
    """A method that leaves all blocks but the last alone, and there replaces the attention and what goes with it.

    Override `mix`, or `last_block` for more. `residual` keeps the residual connection and the feed-forward network.
    """

    residual: bool = True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        """Queries, keys and values (B, K, T, d) of the last block -> what its heads put out (B, K, T, d)."""
        raise NotImplementedError

    def last_block(self, block: BlockView, x: Tensor) -> Tensor:
        """Tokens (B, T, D) that enter the last block -> those that leave it."""
        o = block.project(self.mix(*block.qkv(block.ln_1(x)), block.grid))
        if not self.residual:
            return o
        x = x + o
        return x + block.mlp(block.ln_2(x))

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        trunk = self.trunk(batch)
        return self.cosines(self.last_block(self.clip.block(-1, trunk.grid), trunk.tokens), trunk.grid)
