"""Segmentor: the contract of a method, and LastBlockSegmentor, for methods that only change CLIP's last block.

Shapes: B windows, T tokens (class token first), D width, K heads, d = D/K, Q queries, C classes, (h, w) patch grid.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from ..encoders.clip import BlockView, DenseCLIP, Trunk
from ..errors import OvssError, unknown
from ..recipe import Recipe
from ..vocabulary import Vocabulary


@dataclass
class Scene:
    """One image on its way: `original` and `resized` (H, W, 3) uint8 RGB, `pixels` (3, h, w) the normalised network input, and
    `context`, in which a segmentor keeps its own by-products of this image."""

    original: np.ndarray
    resized: np.ndarray
    pixels: Tensor
    context: dict[str, Any] = field(default_factory=dict)


@dataclass
class WindowBatch:
    """Windows of one shape: `pixels` (B, 3, h, w) normalised; `origins` (B, 2) = (y, x) of the padded window in its resized
    image, possibly negative; `sizes` (B, 2) of the resized images; `images` (B,) index into `scenes`. All but pixels optional.

    `trunk` is filled by the first segmentor that asks, and shared by those with the same needs.
    """

    pixels: Tensor
    origins: Tensor | None = None
    sizes: Tensor | None = None
    images: Tensor | None = None
    scenes: list[Scene] | None = None
    trunk: Trunk | None = None


class Segmentor:
    """A training-free method. Annotated class attributes are its hyperparameters, with their defaults."""

    def __init__(self, clip: DenseCLIP, vocabulary: Vocabulary, recipe: Recipe) -> None:
        self.clip = clip.variant(recipe.activation, recipe.layer_norm_eps)
        self.vocabulary, self.recipe = vocabulary, recipe
        for name in ("threshold", "area_threshold"):
            if getattr(recipe, name) > 0 and vocabulary.background is None:
                origin = recipe.origins.get(name, "the caller")
                raise OvssError(
                    f"{name}={getattr(recipe, name)} (from {origin}), but there is no background class to give the uncertain "
                    "pixels to. Use 0, or a data set with a background class (voc21, context60, coco_object), or "
                    "background=True in Vocabulary."
                )
        for name, value in recipe.hyperparameters.items():
            setattr(self, name, value)

    @classmethod
    def hyperparameters(cls) -> dict[str, Any]:
        """Names and defaults, in the order in which the classes declare them."""
        return {name: getattr(cls, name) for name in get_type_hints(cls) if hasattr(cls, name)}

    @classmethod
    def check_hyperparameter(cls, name: str, value: Any) -> None:
        """Raises OvssError where the annotation does not allow the value."""
        hint = get_type_hints(cls)[name]
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise unknown(f"value of {name}", value, map(str, get_args(hint)))
            return
        allowed = tuple(get_args(hint) or (hint,))
        number = int in allowed or float in allowed
        fits = isinstance(value, (int, float) if float in allowed else allowed) and not (number and isinstance(value, bool))
        if not fits and not (value is None and type(None) in allowed):
            raise OvssError(f"{name}={value!r}: expected {getattr(hint, '__name__', hint)}.")

    @property
    def text(self) -> Tensor:
        """Unit text features (Q, E) float32."""
        if not hasattr(self, "_text"):
            self._text = self.vocabulary.features(self.clip)
        return self._text

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
        return (self.clip.head(x[:, 1:]) @ self.text.T).transpose(1, 2).unflatten(2, grid)

    def patch_logits(self, batch: WindowBatch) -> Tensor:
        """Cosine similarities (B, Q, h, w) of the patches of each window."""
        raise NotImplementedError

    def refine(self, cosines: Tensor, scene: Scene) -> Tensor:
        """Cosines (Q, H, W) at the size of the result -> the same, refined. Called only where a method overrides it."""
        return cosines

    def final_scores(self, scores: Tensor) -> Tensor:
        """What is stored as the scores (C, H, W) once the decision has been taken."""
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
