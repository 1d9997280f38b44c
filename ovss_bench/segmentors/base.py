"""Segmentor: the base class of all methods, and LastBlockSegmentor, for methods that change CLIP's last block only.

Shapes: B windows, T tokens (class token first), D width, K heads, d = D/K, E joint space of images and texts, Q queries,
C classes, P planes, (h, w) any grid, (H, W) the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..auxiliary import SOURCES
from ..config.hyperparameters import File, Method
from ..config.plugin_errors import is_outside
from ..config.recipe import RECIPE_VALUES, Recipe, of_class
from ..datasets.base import SegDataset
from ..datasets.lists import Sample
from ..encoders.clip import BlockView, DenseCLIP
from ..errors import OvssError
from ..image import normalize, resize
from ..ops.device import to_device, whole_numbers
from ..ops.scores import Decision
from ..progress import Progress
from ..stages import within
from ..types import ImageContext, Trunk, WindowBatch
from ..vocabulary import Vocabulary

IMAGES_PER_PASS = 32  # bounds the memory of the encoder

# Values that switch a step off, so they are allowed in the recipe of any method.
NEUTRAL = {"threshold": 0, "area_threshold": 0, "pamr_steps": 0, "logit_scale": 1, "window": "whole", "pad": "none"}
NEUTRAL |= {"pad_multiple": None}
# By hook, the recipe values that the engine does not apply for a method that defines it. If the method's code reads some of
# them, it lists these in `uses`.
REPLACED = {
    "image_scores": ("window", "stride", "pad", "pad_multiple", "position", "pamr_steps", "pamr_dilations", "logit_scale"),
    "scores": ("logit_scale",),
    "decide": ("threshold", "area_threshold"),
}
TOWER = ("position", "activation", "layer_norm_eps")  # these change CLIP's image tower only
WITHOUT_CLIP = ("names", "scored_at", "min_foreground")  # the only recipe values for segmentors without a CLIP
NOT_DEFINED = cast("Any", None)  # as `Any`, so that type checkers accept calls of hooks
NO_BACKGROUND = (
    "but there is no background class for the uncertain pixels. Use 0, a data set with a background class (voc21, context60, "
    "coco_object), or make the first of your classes the background (background=true)."
)
T = TypeVar("T")
WITHOUT_EFFECT = ", without effect on this method"


class Segmentor(Method):
    """The base class of all methods. A method defines the hooks that it needs; docs/extending.md has examples.

    Annotated class attributes are hyperparameters, with their defaults. Those called `vfm`, `regions`, `foreground`,
    `diffusion`, `sam`, `bank` or `concepts` name auxiliary models; in an instance they hold the loaded model, from `sources`.

    A method can declare these by class attributes or properties:

    - `requires`: hyperparameters that must not be None, such as auxiliary models and files;
    - `in_fp32`: auxiliary models loaded in fp32, as in the official code, whatever CLIP's precision;
    - `positive`, `shares`: hyperparameters that must be above 0, or from 0 to 1;
    - `uses`: recipe values that the method's code applies itself, because its hooks replace the engine's code (see REPLACED);
    - `needs`, `needs_qkv`: blocks whose inputs the trunk must keep, the latter with their queries, keys and values;
    - `attention_maps`: the least number of attention maps (K, T, T) in memory at a time; images that do not fit are refused;
    - `group`: the number of consecutive images that `group_features` gets together;
    - `joins_patches`: windows are joined patch by patch, so they must not cut through patches;
    - `scores_sum_to_one`: returned scores are divided by their sum over the classes, as in NACLIP's code;
    - `gives_probabilities`: `patch_logits` returns a softmax of what `compare` returns, not that itself;
    - `uses_clip`: with False, no CLIP is loaded and no texts are encoded;
    - `own_network`: only the method's own network sees images, and CLIP encodes only texts. The trunk does not run, and recipe
      values for CLIP's image tower have no effect, unless `uses` names them;
    - `outside`: another program or library makes the label maps (docs/outside.md);
    - `files`: further files that results depend on, by name, beside the hyperparameters that are files.

    Hooks that a method does not define are None, and are skipped. For each image they run in the order below.
    """

    requires = ()
    positive = ()
    shares = ()
    joins_patches = False
    in_fp32 = ()
    uses = ()
    outside = False
    attention_maps = 0
    scores_sum_to_one = False
    group = 1
    own_network = False
    gives_probabilities = False

    # (WindowBatch of one or several images) -> cosine similarities (B, Q, h, w) on a grid of any resolution over each window.
    patch_logits = NOT_DEFINED
    # Instead of `patch_logits`, if windows see each other: (WindowBatch of all windows of one image, row by row) -> the same,
    # or one grid over the whole image (1, Q, h, w).
    image_logits = NOT_DEFINED
    # ([ImageContext, ...]) -> anything, which becomes `context.group` of each. Called once for every `group` consecutive images
    # of the data set, after the windows of all; the last group may be smaller. Images that fail are left out.
    group_features = NOT_DEFINED
    # Instead of `patch_logits`, `prior`, `refine` and `scores`, for methods without windows: (ImageContext) -> planes (P, h, w)
    # to decide on.
    image_scores = NOT_DEFINED
    # (ImageContext) -> cosines (1, Q, h, w) on a grid over the whole image. The engine does not call it: `image_scores` may, so
    # that steps can change these cosines.
    image_cosines = NOT_DEFINED
    # (ImageContext) -> log-weights (Q,) of the queries in this image, added to their logits in the softmax, or None. A query
    # with -inf is absent: it is left out of the softmax and wins no pixel; its cosines may be anything, even infinite.
    prior = NOT_DEFINED
    # (cosines (Q, H, W) at the size of the result, ImageContext) -> the same, refined.
    refine = NOT_DEFINED
    # (cosines (Q, ...) of a part of the result, prior included, ImageContext) -> planes (P, ...) to decide on; default:
    # `decision.class_scores`. `map[context.part]` crops a full-size map to the same part.
    scores = NOT_DEFINED
    # (planes (P, h, w) to decide on, ImageContext) -> the same, refined.
    refine_scores = NOT_DEFINED
    # (planes (P, h, w), ImageContext) -> label map (h, w) int64, in which C means "no class"; default: `decision.from_scores`.
    decide = NOT_DEFINED
    # (label map (H, W), ImageContext) -> the same, corrected.
    correct = NOT_DEFINED

    def __init__(
        self, clip: DenseCLIP, vocabulary: Vocabulary, recipe: Recipe, sources: Mapping[str, Any] | None = None
    ) -> None:
        self.clip = clip.variant(recipe.activation, recipe.layer_norm_eps)
        self.vocabulary, self.recipe, self.sources = vocabulary, self.checked_recipe(recipe), dict(sources or {})
        self.check(recipe, has_background=vocabulary.background is not None)
        self.check_windows(recipe, clip.patch_size)
        self.observed: Counter[str] = Counter()  # by name, counts that the method adds to results
        if recipe.precision not in (None, clip.precision):
            raise OvssError(
                f"the recipe of {recipe.segmentor} has precision={recipe.precision} (from "
                f"{recipe.origins.get('precision', 'the caller')}), but the CLIP was loaded in {clip.precision}. Load it with "
                f"precision='{recipe.precision}', or override precision={clip.precision}."
            )
        values = recipe.hyperparameters
        paths = {name: Path(values[name]) for name in of_class(type(self)).paths if values[name]}
        for name, value in (values | self.sources | paths).items():
            setattr(self, name, value)

    @classmethod
    def check(cls, recipe: Recipe, has_background: bool) -> None:
        """Raises OvssError for recipe values that make no sense, alone, together or without a background class. It needs
        neither weights nor images, so `dry_run=true` reports these errors, too."""
        values = recipe.hyperparameters
        for name in ("threshold", "area_threshold"):
            value = getattr(recipe, name)
            if value > 0 and not has_background and name not in cls.unused():
                raise OvssError(f"{name}={value} (from {recipe.origins.get(name, 'the caller')}), {NO_BACKGROUND}")
        for name in cls.positive:
            value = values.get(name)
            if value is not None and not value > 0:
                raise OvssError(f"{name}={value} of {recipe.segmentor}: expected a number above 0.")
        for name in cls.shares:
            if not 0 <= values[name] <= 1:
                raise OvssError(f"{name}={values[name]} of {recipe.segmentor}: expected a share of the patches, 0 to 1.")
        for kind in cls.requires:
            if values[kind] is None:
                is_file = of_class(cls).paths.get(kind) is File
                what, given = kind, f"{kind}={'FILE' if is_file else 'VALUE'}"
                if kind == "checkpoint":
                    what, given = "trained weights", "checkpoint=FILE (see the page of the method)"
                elif kind in SOURCES:
                    given = f"a name or a file ({kind}=NAME), or in Python a callable"
                raise OvssError(f"{recipe.segmentor} needs {what}: give {given}.")

    @classmethod
    def check_windows(cls, recipe: Recipe, patch: int) -> None:
        """Raises OvssError if the method joins windows patch by patch, and the recipe's windows cut through CLIP's patches of
        `patch` pixels. A dry run reports this for a CLIP whose patch size is known without its weights."""
        if cls.joins_patches and recipe.window != "whole" and (recipe.window % patch or recipe.stride % patch):
            raise OvssError(
                f"window={recipe.window}, stride={recipe.stride}: {recipe.segmentor} joins windows patch by patch, so both "
                f"must be multiples of the patch ({patch} pixels)."
            )

    @classmethod
    def hyperparameters(cls) -> dict[str, Any]:
        """Names and defaults, in the order of declaration."""
        return dict(of_class(cls).defaults)

    @classmethod
    def unused(cls) -> frozenset[str]:
        """The recipe values that have no effect on this method."""
        if not cls.uses_clip:
            return frozenset(RECIPE_VALUES) - {*WITHOUT_CLIP, *cls.uses}
        replaced = {name for hook, names in REPLACED.items() if getattr(cls, hook) for name in names}
        replaced |= set(TOWER) if cls.own_network else set()
        return frozenset(replaced - set(cls.uses))

    @property
    def granularity(self) -> Literal["window", "image windows", "image"]:
        """The method's unit of work: windows of any images (`patch_logits`), all windows of one image (`image_logits`) or the
        whole image (`image_scores`)."""
        return "image" if self.image_scores else "image windows" if self.image_logits else "window"

    @property
    def refines(self) -> bool:
        """Whether `refine` has an effect with this recipe; only then are the cosines of all queries held at full size."""
        return self.refine is not None

    @property
    def only_logits(self) -> bool:
        """Whether the method defines only its patch logits, and leaves everything else to the recipe."""
        hooks = (self.image_logits, self.group_features, self.image_scores, self.prior, self.scores, self.decide, self.correct)
        return not self.refines and not any((*hooks, self.refine_scores))

    @property
    def decision(self) -> Decision:
        """The recipe's decision rule, for the queries of the vocabulary."""
        recipe = self.recipe
        return Decision(self.vocabulary, recipe.logit_scale, recipe.threshold, recipe.area_threshold)

    @classmethod
    def checked_recipe(cls, recipe: Recipe) -> Recipe:
        """The recipe, with a note in the origin of each value that has no effect on this method, if it was set for all methods
        of a run. Raises OvssError if it was set for this method, unless it is NEUTRAL."""
        origins = dict(recipe.origins)
        for name in sorted(cls.unused()):
            value, origin = getattr(recipe, name), origins.get(name, "the caller")
            if name in recipe.common:
                origins[name] = f"{origin.removesuffix(WITHOUT_EFFECT)}{WITHOUT_EFFECT}"
            elif name not in NEUTRAL or value != NEUTRAL[name]:
                hint = f"Leave {name} out, or set it in a separate run, for the methods that use it."
                if is_outside(cls):
                    hint = f"Leave {name} out. (If the method does read it, name it in {cls.__name__}.uses.)"
                raise OvssError(
                    f"{name}={value} (from {origin}) has no effect on {recipe.segmentor}, which does not read it. {hint}"
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
        """The same method with another recipe; it has encoded no texts yet."""
        return type(self)(self.clip, self.vocabulary, recipe, self.sources)

    @property
    def text(self) -> Tensor:
        """Text features (Q, E) float32, encoded on first use: unit rows, unless `enriched` returns others."""
        if not hasattr(self, "_text"):
            self.encode_text()
        return self._text

    def encode_text(self, progress: Progress | None = None) -> None:
        """Computes `text`, and the text features of a bank, before the first image, with a `progress` bar."""
        if not self.uses_clip:
            return
        self._text = self.vocabulary.features(self.clip, progress)
        self._text = self.enriched(self._text, self.vocabulary, progress)
        if self.sources.get("bank") is not None:
            self.sources["bank"].encode_text(self.vocabulary, progress)

    def enriched(self, text: Tensor, vocabulary: Vocabulary, progress: Progress | None = None) -> Tensor:
        """The text features (Q, E) that the method uses, from the unit features of the queries in the vocabulary's prompts."""
        return text

    def once(self, compute: Callable[..., T], *arguments: Any) -> T:
        """`compute(*arguments)`. Use it in `patch_logits` and its alternatives for costly parts that do not depend on the
        texts: a step that runs the method with several classifiers computes them only once."""
        return compute(*arguments)

    @property
    def files(self) -> Mapping[str, Path]:
        return {}

    def begin(self, dataset: SegDataset, samples: Sequence[Sample], progress: Progress) -> None:
        """Called once before the first image of a run, with the images to evaluate. With several processes, it is first called
        in one of them, with the images of all, then in the others, each with its share."""

    def image_labels(self, context: ImageContext) -> tuple[Tensor, Tensor] | None:
        """The result of `decide` on `image_scores` (h, w), and the maximum over these planes (h, w), if the method can compute
        them with fewer planes in memory; else None. The engine calls it if it does not need the planes."""
        return None

    def decides_as(self, method: type[Segmentor]) -> bool:
        """Whether all planes are made and used as by `method`, with no change by a subclass or step, so that its
        `image_labels` is right."""
        hooks = ("image_scores", "refine_scores", "decide")
        return all(getattr(type(self), hook) is getattr(method, hook) for hook in hooks)

    @property
    def needs(self) -> Set[int]:
        """Blocks, from 0, whose inputs the trunk must keep. It always keeps that of the last."""
        return frozenset()

    @property
    def needs_qkv(self) -> Set[int]:
        """Blocks whose inputs, queries, keys and values the trunk must keep, for `clip.qkv` and `clip.attention`."""
        return frozenset()

    def trunk(self, batch: WindowBatch) -> Trunk:
        """The output of all blocks but the last: computed on first use, then kept in the batch."""
        if batch.trunk is None or not self.needs | self.needs_qkv <= batch.trunk.states.keys():
            with within("encode"):
                batch.trunk = self.clip.trunk(batch.pixels, self.needs, self.recipe.position, self.needs_qkv)
        return batch.trunk

    def window_embeddings(self, batch: WindowBatch) -> Tensor:
        """Unmodified CLIP's embedding of each window, unit rows (B, E): computed on first use, then shared by all segmentors
        that share the trunk."""
        trunk = self.trunk(batch)
        if trunk.embeddings is None:
            trunk.embeddings = self.clip.embeddings(trunk)
        return trunk.embeddings

    def image_embedding(self, context: ImageContext) -> Tensor:
        """Unmodified CLIP's embedding of the whole image, a unit vector (E,): computed on first use, then shared by all
        segmentors with the same `embed_key`."""
        key = ("embedding", *self.embed_key)
        if key not in context.shared:
            context.shared[key] = self.embed([context.original])[0]
        return context.shared[key]

    @property
    def embed_key(self) -> tuple[Any, ...]:
        """Everything that `embed` depends on besides the images."""
        clip, recipe = self.clip, self.recipe
        return clip.weights_digest, clip.activation, clip.layer_norm_eps, clip.precision, recipe.normalize, recipe.position

    @torch.inference_mode()
    def embed(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images (uint8 RGB), stretched to CLIP's input size -> the class tokens of unmodified CLIP, unit rows (B, E)."""
        side, embeddings = self.clip.stored_grid[0] * self.clip.patch_size, []
        for start in range(0, len(images), IMAGES_PER_PASS):
            some = [resize(image, "square", side, side, 1) for image in images[start : start + IMAGES_PER_PASS]]
            pixels = self.tensor(torch.stack([normalize(image, self.recipe.normalize) for image in some]))
            with within("encode"):
                embeddings.append(self.clip.embeddings(self.clip.trunk(pixels, position=self.recipe.position)))
        return torch.cat(embeddings)

    def cosines(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, T, D) before `ln_post` -> cosine similarities of the patches with the queries (B, Q, h, w)."""
        return self.compare(self.clip.project(x[:, 1:]), grid)

    def compare(self, embeddings: Tensor, grid: tuple[int, int]) -> Tensor:
        """Embeddings (B, h*w, E) in the joint space -> cosine similarities with the queries (B, Q, h, w)."""
        unit = F.normalize(embeddings.float(), dim=-1)
        return (unit @ self.text.T).transpose(1, 2).unflatten(2, grid)

    def tensor(self, array: np.ndarray | Tensor) -> Tensor:
        return to_device(torch.as_tensor(array), self.clip.device)

    def own(self, load: Callable[..., Any], *arguments: Any) -> Any:
        """`load(*arguments, device)` with CLIP's device, for a network that only this method uses."""
        return load(*arguments, str(self.clip.device))

    def indices(self, values: Iterable[int]) -> Tensor:
        """Whole numbers as a tensor (N,) int64, copied to a GPU only once."""
        return whole_numbers(tuple(values), like=self.text)


class LastBlockSegmentor(Segmentor):
    """A method that changes only the last block: define `mix`, its attention, or override `last_block` to change more.
    `residual` keeps the residual connection and the feed-forward network."""

    residual: bool = True
    # (q, k, v (B, K, T, d) of the last block, patch grid (h, w)) -> the output of its heads (B, K, T, d).
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
        x = self.once(self.last_block, self.clip.block(-1, trunk.grid), trunk.tokens)
        return self.cosines(x, trunk.grid)
