"""Segmentor: the contract of a method, and LastBlockSegmentor, for methods that change CLIP's last block only.

Shapes: B windows, T tokens (class token first), D width, K heads, d = D/K, Q queries, C classes, (h, w) patch grid.
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
# The recipe values that the engine applies only for methods without the hook. A method with the hook whose code reads some of
# them names these in `uses`.
REPLACED = {
    "image_scores": ("window", "stride", "pad", "pad_multiple", "position", "pamr_steps", "pamr_dilations", "logit_scale"),
    "scores": ("logit_scale",),
    "decide": ("threshold", "area_threshold"),
}
TOWER = ("position", "activation", "layer_norm_eps")  # these change CLIP's image tower only
WITHOUT_CLIP = ("names", "scored_at", "min_foreground")  # the recipe values that apply to segmentors that use no CLIP
NOT_DEFINED = cast("Any", None)  # type checkers accept a call of it
NO_BACKGROUND = (
    "but there is no background class to give the uncertain pixels to. Use 0, or a data set with a background class (voc21, "
    "context60, coco_object), or make the first of your own classes the background (background=true)."
)
T = TypeVar("T")
WITHOUT_EFFECT = ", without effect on this method"


class Segmentor(Method):
    """A method. Annotated class attributes are its hyperparameters, with their defaults.

    Hyperparameters called `vfm`, `regions`, `foreground`, `diffusion`, `sam` or `bank` name auxiliary models; in a segmentor
    they hold the loaded object itself, which is passed in `sources`. Declared by class attributes or properties:

    - `requires`: mandatory sources; `in_fp32`: sources loaded in fp32, as in the official code, whatever CLIP's precision;
    - `positive`: hyperparameters that must be above 0; `shares`: those that must be from 0 to 1;
    - `joins_patches`: windows are joined patch by patch, so they must not cut through patches;
    - `uses`: recipe values that the method's hooks read, although they replace the default that applies them (see REPLACED);
    - `attention_maps`: the least number of maps (K, T, T) held at a time; images too large for the memory are refused;
    - `scores_sum_to_one`: stored scores are divided by their sum over the classes, as in NACLIP's code;
    - `group`: the number of consecutive images of the data set that `group_features` gets together;
    - `uses_clip`: whether it uses CLIP; with False, none is loaded, and no texts are encoded;
    - `outside`: the label maps are made by another program or library (docs/outside.md);
    - `gives_probabilities`: `patch_logits` is a softmax of what `compare` gives, not that itself;
    - `own_network`: images are seen by a network of the method's own only, and CLIP encodes the texts: its trunk does not run,
      and the recipe values that change its image tower have no effect, unless `uses` names them;
    - `files`: files of the user that results depend on, by name, beside the hyperparameters that are files.

    Hooks are None unless a method defines them. They run in this order for every image; docs/extending.md has examples.
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
    # Alternative to it: (WindowBatch of all windows of one image, row by row) -> the same, or one grid over the whole image
    # (1, Q, h, w). Windows can see each other.
    image_logits = NOT_DEFINED
    # ([ImageContext, ...]) -> anything, kept as `context.group` of each: called once for every `group` consecutive images of
    # the data set (the last group may be smaller), after the windows of all of them. Images that fail are left out.
    group_features = NOT_DEFINED
    # (ImageContext) -> planes (P, h, w) to decide on. Replaces all hooks up to `scores`, for methods without windows.
    image_scores = NOT_DEFINED
    # (ImageContext) -> cosines (1, Q, h, w) on a grid over the whole image. Not called by the engine: a method whose
    # `image_scores` calls it lets steps change these cosines.
    image_cosines = NOT_DEFINED
    # (ImageContext) -> log-weights (Q,) of the queries in this image, added to the logits in the softmax, or None. A query with
    # -inf is absent: it wins no pixel and has no part in the softmax, and its cosines may be anything, even infinite.
    prior = NOT_DEFINED
    # (cosines (Q, H, W) at the size of the result, ImageContext) -> the same, refined.
    refine = NOT_DEFINED
    # (cosines (Q, ...), with the prior, of the part `context.part` of the result, ImageContext) -> planes (P, ...) to decide
    # on; default: `decision.class_scores`. `map[context.part]` is the same part of a full-size map.
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
        self.observed: Counter[str] = Counter()  # counts that a method wants reported in results, by name
        if recipe.precision not in (None, clip.precision):
            raise OvssError(
                f"the recipe of {recipe.segmentor} has precision={recipe.precision} (from "
                f"{recipe.origins.get('precision', 'the caller')}), but the CLIP was loaded in {clip.precision}. Load it with "
                f"precision='{recipe.precision}', or set precision={clip.precision} here, too."
            )
        values = recipe.hyperparameters
        paths = {name: Path(values[name]) for name in of_class(type(self)).paths if values[name]}
        for name, value in (values | self.sources | paths).items():
            setattr(self, name, value)

    @classmethod
    def check(cls, recipe: Recipe, has_background: bool) -> None:
        """Raises OvssError for values of the recipe that make no sense, alone, together or without a background class: all
        that can be known before weights and images are read, so `dry_run=true` reports it, too."""
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
                    what, given = "trained weights", "checkpoint=FILE (see its page)"
                elif kind in SOURCES:
                    given = f"a name or a file ({kind}=NAME), or in Python a callable"
                raise OvssError(f"{recipe.segmentor} needs {what}: give {given}.")

    @classmethod
    def check_windows(cls, recipe: Recipe, patch: int) -> None:
        """Raises OvssError for windows that cut through CLIP's patches of this side in pixels, if the method joins windows
        patch by patch. A dry run reports it for a CLIP whose patches are known without its weights."""
        if cls.joins_patches and recipe.window != "whole" and (recipe.window % patch or recipe.stride % patch):
            raise OvssError(
                f"window={recipe.window}, stride={recipe.stride}: {recipe.segmentor} joins windows patch by patch, so both "
                f"must be multiples of the patch ({patch} pixels)."
            )

    @classmethod
    def hyperparameters(cls) -> dict[str, Any]:
        """Names and defaults, in the order in which the classes declare them."""
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
        """The recipe. A value without effect is noted in its origin if it was set for all methods of a run; if it was set for
        this one, raises OvssError."""
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
        return type(self)(self.clip, self.vocabulary, recipe, self.sources)

    @property
    def text(self) -> Tensor:
        """Unit text features (Q, E) float32."""
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
        """The text features (Q, E) that the method uses, made from those of the queries in the vocabulary's prompts."""
        return text

    def once(self, compute: Callable[..., T], *arguments: Any) -> T:
        """`compute(*arguments)`, in `patch_logits` and its alternatives, for what is costly and does not depend on the texts: a
        step that runs the method with several classifiers does this part only once."""
        return compute(*arguments)

    @property
    def files(self) -> Mapping[str, Path]:
        return {}

    def begin(self, dataset: SegDataset, samples: Sequence[Sample], progress: Progress) -> None:
        """Called once before the first image of a run, with the images to evaluate; in a run of several processes first in one,
        with the images of all of them, then in the others, with their own."""

    def image_labels(self, context: ImageContext) -> tuple[Tensor, Tensor] | None:
        """What `decide` gives for `image_scores` (h, w), and the maximum of these planes (h, w), if the method has a way that
        holds fewer planes in memory. The engine asks where nobody wants the planes."""
        return None

    def decides_as(self, method: type[Segmentor]) -> bool:
        """Whether no subclass or step changes what a method does with all planes, so that its `image_labels` is right."""
        hooks = ("image_scores", "refine_scores", "decide")
        return all(getattr(type(self), hook) is getattr(method, hook) for hook in hooks)

    @property
    def needs(self) -> Set[int]:
        """Blocks whose inputs the trunk must keep, besides that of the last."""
        return frozenset()

    @property
    def needs_qkv(self) -> Set[int]:
        """Blocks whose inputs, queries, keys and values the trunk must keep: for `clip.qkv` and `clip.attention`."""
        return frozenset()

    def trunk(self, batch: WindowBatch) -> Trunk:
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
        """A network of the method's own, by a function whose last argument is the device: CLIP's."""
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
