"""Segmentor: the contract of a method, and LastBlockSegmentor, for methods that only change CLIP's last block.

Shapes: B windows, T tokens (class token first), D width, K heads, d = D/K, Q queries, C classes, (h, w) patch grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.hyperparameters import Method
from ..config.recipe import Recipe, of_class
from ..encoders.clip import BlockView, DenseCLIP
from ..errors import OvssError
from ..image import STATISTICS, normalize, resize
from ..ops.scores import class_scores, decide
from ..progress import Progress
from ..types import ImageContext, Trunk, WindowBatch
from ..vocabulary import Vocabulary

IMAGES_PER_PASS = 32  # bounds the memory of the encoder


# What a recipe value is where it does nothing, so that it may stand in the recipe of any method.
NEUTRAL = {"threshold": 0, "area_threshold": 0, "pamr_steps": 0, "logit_scale": 1, "window": "whole", "pad": "none"}
NEUTRAL |= {"pad_multiple": None}
# The recipe values that the engine applies at a hook's default; who overrides the hook does without, unless it says `uses`.
BEHIND = {
    "image_scores": (*("window", "stride", "pad", "pad_multiple", "position", "pamr_steps", "pamr_dilations", "logit_scale"),),
    "scores": ("logit_scale",),
    "decide": ("threshold", "area_threshold"),
}
SHARED_FILES = ("configs/recipe.yaml", "configs/protocol/")  # written for all methods
WITHOUT_EFFECT = ", without effect on this method"


class Segmentor(Method):
    """A training-free method. Annotated class attributes are its hyperparameters, with their defaults.

    Hyperparameters called `vfm`, `regions`, `foreground`, `diffusion` or `bank` name what the method needs beside CLIP; in a
    segmentor they hold the loaded thing itself, which comes in `sources`. Those in `requires` must be there, those in
    `positive` above 0; those in `in_fp32` are loaded in fp32, as in the official code, whatever precision CLIP has.

    `attention_maps`: how many maps (K, T, T) the method holds at a time, at least, by which an image that is too large for the
    memory is refused beforehand.

    A method that overrides `image_scores`, `scores` or `decide` names in `uses` which recipe values of those that the default
    applies (see BEHIND) it still reads; the others are refused where somebody sets them.
    """

    requires = ()
    positive = ()
    attention_maps = 0
    in_fp32 = ()
    uses = ()

    def __init__(
        self, clip: DenseCLIP, vocabulary: Vocabulary, recipe: Recipe, sources: Mapping[str, Any] | None = None
    ) -> None:
        self.clip = clip.variant(recipe.activation, recipe.layer_norm_eps)
        self.vocabulary, self.recipe, self.sources = vocabulary, self.checked_recipe(recipe), dict(sources or {})
        self.observed: Counter[str] = Counter()  # what a method counts on its way, by name; results state it
        for name in ("threshold", "area_threshold"):
            if getattr(recipe, name) > 0 and vocabulary.background is None and name not in self.unused():
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

    @classmethod
    def unused(cls) -> frozenset[str]:
        """The recipe values that are without effect on this method."""
        behind = {name for hook, names in BEHIND.items() if overrides(cls, hook) for name in names}
        return frozenset(behind - set(cls.uses))

    @classmethod
    def checked_recipe(cls, recipe: Recipe) -> Recipe:
        """The recipe, in which the origin of a value without effect says so, as far as the value was meant for all methods.
        Raises OvssError if it was set for this one."""
        origins = dict(recipe.origins)
        for name in sorted(cls.unused()):
            value, origin = getattr(recipe, name), origins.get(name, "the caller")
            if origin.startswith(SHARED_FILES):
                origins[name] = f"{origin.removesuffix(WITHOUT_EFFECT)}{WITHOUT_EFFECT}"
            elif name not in NEUTRAL or value != NEUTRAL[name]:
                hint = f"Leave {name} out, or give it in a run of its own to the methods that use it."
                if cls.__module__.partition(".")[0] != "ovss_bench":
                    hint = f"Leave {name} out. (If the method does read it, name it in {cls.__name__}.uses.)"
                raise OvssError(
                    f"{name}={value} (from {origin}) has no effect on {recipe.segmentor}, which has its own rule instead. "
                    f"{hint}"
                )
        return replace(recipe, origins=origins)

    def __repr__(self) -> str:
        recipe, vocabulary = self.recipe, self.vocabulary
        own = "".join(f", {name}={value}" for name, value in recipe.hyperparameters.items())
        window = f"window={recipe.window}" + ("" if recipe.window == "whole" else f", stride={recipe.stride}")
        return (
            f"{type(self).__name__}({recipe.segmentor} with clip {self.clip.name}, {len(vocabulary.classes)} classes, "
            f"{len(vocabulary.queries)} queries,\n  {window}, threshold={recipe.threshold}{own})"
        )

    def _repr_html_(self) -> str:
        """For notebooks."""
        return f"<pre>{escape(repr(self))}</pre>"

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

    @property
    def needs_qkv(self) -> Set[int]:
        """Blocks whose queries, keys and values the trunk must keep, beside the inputs: for `clip.qkv` and `clip.attention`."""
        return frozenset()

    def trunk(self, batch: WindowBatch) -> Trunk:
        if batch.trunk is None or not self.needs | self.needs_qkv <= batch.trunk.states.keys():
            batch.trunk = self.clip.trunk(batch.pixels, self.needs, self.recipe.position, self.needs_qkv)
        return batch.trunk

    def window_embeddings(self, batch: WindowBatch) -> Tensor:
        """What CLIP as it is says of each window, unit rows (B, E): computed for the first segmentor that asks, then shared by
        all that share the trunk."""
        trunk = self.trunk(batch)
        if trunk.embeddings is None:
            trunk.embeddings = self.clip.embeddings(trunk)
        return trunk.embeddings

    def image_embedding(self, context: ImageContext) -> Tensor:
        """What CLIP as it is says of the whole image, stretched to CLIP's own size: a unit vector (E,), computed for the first
        segmentor that asks, then shared by all with this CLIP, normalisation and position rule."""
        recipe, clip = self.recipe, self.clip
        maker = ("embedding", clip.weights_digest, clip.activation, clip.layer_norm_eps, clip.precision)
        maker += (recipe.normalize, recipe.position)
        if maker not in context.shared:
            context.shared[maker] = self.embed([context.original])[0]
        return context.shared[maker]

    @torch.inference_mode()
    def embed(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images (uint8 RGB) -> unit rows (B, E), by CLIP as it is: what the class token says at CLIP's own size, to which they
        are stretched."""
        side, embeddings = self.clip.stored_grid[0] * self.clip.patch_size, []
        for start in range(0, len(images), IMAGES_PER_PASS):
            some = [resize(image, "square", side, side, 1) for image in images[start : start + IMAGES_PER_PASS]]
            pixels = self.tensor(torch.stack([normalize(image, self.recipe.normalize) for image in some]))
            embeddings.append(self.clip.embeddings(self.clip.trunk(pixels, position=self.recipe.position)))
        return torch.cat(embeddings)

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
        """Normalised windows (B, 3, h, w) as images (h, w, 3) uint8 RGB, for sources where there is no context."""
        mean, std = (torch.tensor(values).view(3, 1, 1).to(pixels) for values in STATISTICS[self.recipe.normalize])
        return [(window * std + mean).round().clamp(0, 255).byte().permute(1, 2, 0).numpy(force=True) for window in pixels]

    def cut(self, batch: WindowBatch, map_of: Callable[[ImageContext], Tensor], padding: int | None = None) -> Iterator[Tensor]:
        """The windows (..., h, w) of maps (..., H, W) at the size of the resized images, one after another, as maps of features
        are large. Where a window is padded they hold `padding`; None: the nearest value inside."""
        latest, whole = None, None
        for image, origin in zip(batch.images.tolist(), batch.origins.tolist(), strict=True):
            if image != latest:
                latest, whole = image, map_of(batch.contexts[image])
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

    def places(self, batch: WindowBatch) -> Iterator[tuple[ImageContext, tuple[slice, slice]]]:
        """Of every window but the padding its context, and the rows and columns of the resized image that it shows; nothing for
        windows without a context."""
        height, width = batch.pixels.shape[2:]
        real = len(batch.pixels) - batch.padding if batch.contexts else 0
        for number in range(real):
            top, left = batch.origins[number].tolist()
            rows, columns = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
            yield batch.contexts[batch.images[number]], (rows, columns)

    @property
    def refines(self) -> bool:
        """Whether `refine` does anything with this recipe; only then the cosines of all queries are made at full size."""
        return type(self).refine is not Segmentor.refine

    # Hooks, in the order in which they run.

    def prepare(self, context: ImageContext) -> None:
        """Work that is done once per image, before its windows."""

    def patch_logits(self, batch: WindowBatch) -> Tensor:
        """Cosine similarities (B, Q, h, w) on a grid over each window, of any resolution."""
        raise NotImplementedError

    def image_logits(self, batch: WindowBatch) -> Tensor:
        """Instead of `patch_logits`, for methods in which the windows of an image see each other: the same for all windows of
        one image, row by row, whose tokens are held until the last is there."""
        raise NotImplementedError

    def image_scores(self, context: ImageContext) -> Tensor:
        """Instead of `patch_logits`, for methods that don't go window by window: the planes (P, h, w) that `decide` gets."""
        raise NotImplementedError

    def refine(self, cosines: Tensor, context: ImageContext) -> Tensor:
        """Cosines (Q, H, W) at the size of the result -> the same, refined."""
        return cosines

    def absent(self, context: ImageContext) -> Tensor | None:
        """Which queries (Q,) bool cannot be in this image, once its windows are there; None: any may. They have no part in the
        softmax and win no pixel, whatever their cosines are (-inf is allowed, too); `scores` gets -inf for them."""
        return None

    def scores(self, cosines: Tensor, context: ImageContext | None = None) -> Tensor:
        """Cosines (Q, ...) of the pixels `context.part` of the result -> the planes (P, ...) that the decision is taken on:
        class probabilities (C, ...). A full-size map is cut to them by `map[context.part]`."""
        return class_scores(cosines, self.vocabulary, self.recipe.logit_scale)

    def decide(self, scores: Tensor, context: ImageContext) -> Tensor:
        """Planes (P, h, w) -> label map (h, w) int64; C stands for "no class"."""
        return decide(scores, self.vocabulary.background, self.recipe.threshold)

    def correct(self, label_map: Tensor, context: ImageContext) -> Tensor:
        """Label map (H, W) -> the same, corrected."""
        return label_map

    def final_scores(self, scores: Tensor) -> Tensor:
        """What is stored as the scores once the decision has been taken."""
        return scores


def overrides(method: Segmentor | type[Segmentor], hook: str) -> bool:
    """Whether a method has a hook of its own."""
    own = method if isinstance(method, type) else type(method)
    return getattr(own, hook) is not getattr(Segmentor, hook)


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
