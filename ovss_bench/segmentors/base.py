"""Segmentor: the contract of a method, and LastBlockSegmentor, for methods that change CLIP's last block only.

Shapes: B windows, T tokens (class token first), D width, K heads, d = D/K, Q queries, C classes, (h, w) patch grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.hyperparameters import Method
from ..config.recipe import Recipe, of_class
from ..encoders.clip import BlockView, DenseCLIP
from ..errors import OvssError
from ..image import normalize, resize
from ..ops.scores import Decision
from ..progress import Progress
from ..types import ImageContext, Trunk, WindowBatch
from ..vocabulary import Vocabulary

IMAGES_PER_PASS = 32  # bounds the memory of the encoder


# Recipe values that do nothing, so the recipe of any method may have them.
NEUTRAL = {"threshold": 0, "area_threshold": 0, "pamr_steps": 0, "logit_scale": 1, "window": "whole", "pad": "none"}
NEUTRAL |= {"pad_multiple": None}
# What each hook replaces: recipe values that the engine applies for methods without it. A method that has the hook and reads
# some of them in its own code names these in `uses`.
REPLACED = {
    "image_scores": ("window", "stride", "pad", "pad_multiple", "position", "pamr_steps", "pamr_dilations", "logit_scale"),
    "scores": ("logit_scale",),
    "decide": ("threshold", "area_threshold"),
}
NOT_DEFINED = cast("Any", None)  # a hook that type checkers let one call
WITHOUT_EFFECT = ", without effect on this method"


class Segmentor(Method):
    """A training-free method. Annotated class attributes are its hyperparameters, with their defaults.

    Hyperparameters called `vfm`, `regions`, `foreground`, `diffusion` or `bank` name what the method needs beside CLIP; in a
    segmentor they hold the loaded object itself, which comes in `sources`. Declared by class attributes or properties:

    - `requires`: sources that must be given; `in_fp32`: sources to load in fp32, as in the official code, even if CLIP is not;
    - `positive`: hyperparameters that must be above 0;
    - `uses`: recipe values that the method's hooks read although they replace the default that applies them (see REPLACED);
    - `attention_maps`: the least number of maps (K, T, T) held at a time; images too large for the memory are refused;
    - `scores_sum_to_one`: stored scores are divided by their sum over the classes, as in NACLIP's code;
    - `group`: how many consecutive images of the data set `group_features` gets together.

    Hooks are None unless a method defines them. They run in this order for every image; docs/extending.md has examples.
    """

    requires = ()
    positive = ()
    in_fp32 = ()
    uses = ()
    attention_maps = 0
    scores_sum_to_one = False
    group = 1

    # (WindowBatch) -> cosine similarities (B, Q, h, w) on a grid of any resolution over each window; of one or several images.
    patch_logits = NOT_DEFINED
    # Instead, (WindowBatch) -> the same for all windows of one image, row by row: for methods in which windows see each other.
    image_logits = NOT_DEFINED
    # ([ImageContext, ...]) -> anything, kept as `context.group` of each: called once for every `group` consecutive images of
    # the data set (the last group may be smaller), after the windows of all of them. Images that fail are left out.
    group_features = NOT_DEFINED
    # (ImageContext) -> planes (P, h, w) to decide on: instead of all up to `scores`, for methods that do not go by windows.
    image_scores = NOT_DEFINED
    # (ImageContext) -> log-weights (Q,) of the queries in this image, added to the logits in the softmax, or None. A query with
    # -inf is absent: it wins no pixel and has no part in the softmax, and its cosines may be anything, even infinite.
    prior = NOT_DEFINED
    # (cosines (Q, H, W) at the size of the result, ImageContext) -> the same, refined.
    refine = NOT_DEFINED
    # (cosines (Q, ...) of the pixels `context.part` of the result, ImageContext) -> planes (P, ...) to decide on; default:
    # `decision.class_scores`. A full-size map is cut by `map[context.part]`. The cosines include the prior.
    scores = NOT_DEFINED
    # (planes (P, h, w), ImageContext) -> label map (h, w) int64, in which C means "no class"; default: `decision.from_scores`.
    decide = NOT_DEFINED
    # (label map (H, W), ImageContext) -> the same, corrected.
    correct = NOT_DEFINED

    def __init__(
        self, clip: DenseCLIP, vocabulary: Vocabulary, recipe: Recipe, sources: Mapping[str, Any] | None = None
    ) -> None:
        self.clip = clip.variant(recipe.activation, recipe.layer_norm_eps)
        self.vocabulary, self.recipe, self.sources = vocabulary, self.checked_recipe(recipe), dict(sources or {})
        self.observed: Counter[str] = Counter()  # what a method counts along the way, by name; stated in results
        self._check_thresholds()
        if recipe.precision not in (None, clip.precision):
            raise OvssError(
                f"the recipe of {recipe.segmentor} has precision={recipe.precision} (from "
                f"{recipe.origins.get('precision', 'the caller')}), but the CLIP was loaded in {clip.precision}. Load it with "
                f"precision='{recipe.precision}', or set precision={clip.precision} here, too."
            )
        values = recipe.hyperparameters
        paths = {name: Path(values[name]) for name in of_class(type(self)).paths if values[name]}
        for name, value in (values | self.sources | paths).items():
            if name in self.positive and not value > 0:
                raise OvssError(f"{name}={value} of {recipe.segmentor}: expected a number above 0.")
            setattr(self, name, value)
        for kind in self.requires:
            if getattr(self, kind) is None:
                raise OvssError(
                    f"{recipe.segmentor} needs {kind}: give a name or a file ({kind}=NAME), or in Python a callable."
                )

    def _check_thresholds(self) -> None:
        for name in ("threshold", "area_threshold"):
            value = getattr(self.recipe, name)
            if value > 0 and self.vocabulary.background is None and name not in self.unused():
                raise OvssError(
                    f"{name}={value} (from {self.recipe.origins.get(name, 'the caller')}), but there is no background class to "
                    "give the uncertain pixels to. Use 0, or a data set with a background class (voc21, context60, "
                    "coco_object), or background=True in Vocabulary."
                )

    @classmethod
    def hyperparameters(cls) -> dict[str, Any]:
        """Names and defaults, in the order in which the classes declare them."""
        return dict(of_class(cls).defaults)

    @classmethod
    def unused(cls) -> frozenset[str]:
        """The recipe values that have no effect on this method."""
        replaced = {name for hook, names in REPLACED.items() if getattr(cls, hook) for name in names}
        return frozenset(replaced - set(cls.uses))

    @property
    def granularity(self) -> Literal["window", "image windows", "image"]:
        """What the method gets at a time: windows of any images (`patch_logits`), all windows of one image (`image_logits`) or
        the whole image (`image_scores`)."""
        return "image" if self.image_scores else "image windows" if self.image_logits else "window"

    @property
    def refines(self) -> bool:
        """Whether `refine` does anything with this recipe; only then the cosines of all queries are made at full size."""
        return self.refine is not None

    @property
    def only_logits(self) -> bool:
        """Whether the method defines its patch logits only, and leaves all else to the recipe."""
        hooks = (self.image_logits, self.group_features, self.image_scores, self.prior, self.scores, self.decide, self.correct)
        return not self.refines and not any(hooks)

    @property
    def decision(self) -> Decision:
        """The recipe's decision rule, for the queries of the vocabulary."""
        recipe = self.recipe
        return Decision(self.vocabulary, recipe.logit_scale, recipe.threshold, recipe.area_threshold)

    @classmethod
    def checked_recipe(cls, recipe: Recipe) -> Recipe:
        """The recipe, with a note in the origin of each value without effect if the value was meant for all methods. Raises
        OvssError if it was set for this one."""
        origins = dict(recipe.origins)
        for name in sorted(cls.unused()):
            value, origin = getattr(recipe, name), origins.get(name, "the caller")
            if name in recipe.common:
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
        values = "".join(f", {name}={value}" for name, value in recipe.hyperparameters.items())
        window = f"window={recipe.window}" + ("" if recipe.window == "whole" else f", stride={recipe.stride}")
        return (
            f"{type(self).__name__}({recipe.segmentor} with clip {self.clip.name}, {len(vocabulary.classes)} classes, "
            f"{len(vocabulary.queries)} queries,\n  {window}, threshold={recipe.threshold}{values})"
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
        """Computes `text`, and other features of the texts, before the first image; `progress` shows how far it is."""
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
        """The embeddings that unmodified CLIP gives each window, unit rows (B, E): computed for the first segmentor that asks,
        then shared by all that share the trunk."""
        trunk = self.trunk(batch)
        if trunk.embeddings is None:
            trunk.embeddings = self.clip.embeddings(trunk)
        return trunk.embeddings

    def image_embedding(self, context: ImageContext) -> Tensor:
        """The embedding that unmodified CLIP gives the whole image, stretched to its input size, a unit vector (E,): computed
        for the first segmentor that asks, then shared by all with this CLIP, normalisation and position rule."""
        recipe, clip = self.recipe, self.clip
        maker = ("embedding", clip.weights_digest, clip.activation, clip.layer_norm_eps, clip.precision)
        maker += (recipe.normalize, recipe.position)
        if maker not in context.shared:
            context.shared[maker] = self.embed([context.original])[0]
        return context.shared[maker]

    @torch.inference_mode()
    def embed(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images (uint8 RGB) -> unit rows (B, E): the class token of unmodified CLIP for the images, stretched to its input
        size."""
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
        """A source's array as a tensor on CLIP's device."""
        return torch.as_tensor(array).to(self.clip.device)


class LastBlockSegmentor(Segmentor):
    """A method that replaces the attention of the last block, and what goes with it, and leaves the other blocks alone.

    Define `mix`, or override `last_block` for more. `residual` keeps the residual connection and the feed-forward network.
    """

    residual: bool = True
    # Queries, keys and values (B, K, T, d) of the last block, and the patch grid -> the output of its heads (B, K, T, d).
    mix = NOT_DEFINED

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
