"""FLOSS (arXiv 2504.10487): for every class a classifier of the templates that predict it with the lowest entropy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.hyperparameters import File
from ...config.recipe import Recipe
from ...config.registry import STEPS
from ...errors import OvssError
from ...files import read_json
from ...ops.experts import fused_cosines, fused_logits
from ...progress import Progress
from ...types import ImageContext, WindowBatch
from ..base import Segmentor
from ..clip_dinoiser import CLIPDINOiser
from ..features import extent
from ..maskclip import MaskCLIP
from .base import Step, TextStep

# With these base methods, unlike NACLIP, the official code does not normalise the means over templates again.
NOT_UNIT = (MaskCLIP, CLIPDINOiser)


@STEPS.register_module(name="floss")
class FLOSS(TextStep):
    """Each query has an expert: a classifier of all queries with the `top_n` best templates of its class. Where an expert's
    best query is its own, the most confident of these experts decides; elsewhere the usual classifier does (section 4).

    `ranking`: a JSON file in the format of the official repository, whose template numbers index the recipe's templates.
    `floss_scale`: factor of the cosines. `unit_text` normalises the means over templates again; None: unless the method is
    MaskCLIP or CLIP-DINOiser, as in the official code. A class that no template predicts is an error, except with these two,
    where its expert has all templates, as in the official code. The fused probabilities replace the cosines in later steps.
    """

    requires = ("ranking",)
    positive = ("top_n", "floss_scale")

    ranking: File | None = None
    top_n: int = 4
    floss_scale: float = 100.0
    unit_text: bool | None = None

    @classmethod
    def check(cls, recipe: Recipe, has_background: bool) -> None:
        super().check(recipe, has_background)
        if recipe.hyperparameters.get("apply_found"):  # of CLIP-DINOiser
            raise OvssError(f"{recipe.segmentor}: the experts skip the background rule apply_found. Set apply_found=false.")

    @classmethod
    def refusal(cls, base: type[Segmentor]) -> str | None:
        impossible = base.image_scores and not base.image_cosines
        reason = "the method never has the cosines of all queries together, by which the experts are fused"
        return Step.refusal(base) or (reason if impossible else None)

    # Classifiers

    def encode_text(self, progress: Progress | None = None) -> None:
        super().encode_text(progress)
        self.experts = self.classifiers(progress)
        self.hosts = [self.with_text(classifier) for classifier in self.experts]

    def classifiers(self, progress: Progress | None = None) -> Tensor:
        """(1 + Q, Q, E): the usual classifier, then the expert of each query; those of distractors never fire."""
        vocabulary, name = self.vocabulary, self.recipe.segmentor
        if vocabulary.given_features is not None:
            raise OvssError(f"{name}: floss needs names of classes, but the vocabulary has text features. Give names.")
        unit = self.unit_text if self.unit_text is not None else not isinstance(self, NOT_UNIT)
        ranked, every = read_ranking(self.ranking, len(vocabulary.prompts)), list(range(len(vocabulary.prompts)))
        chosen = [every]
        for c in vocabulary.group:
            templates = every if c < 0 else self.templates_of(vocabulary.classes[c], ranked) or every
            chosen.append(templates)
        by_template = {
            t: replace(vocabulary, prompts=(vocabulary.prompts[t],)).features(self.clip, progress)
            for t in sorted({t for templates in chosen for t in templates})
        }
        means = torch.stack([torch.stack([by_template[t] for t in templates]).mean(0) for templates in chosen])
        texts = F.normalize(means, dim=-1) if unit else means
        limited = [replace(vocabulary, prompts=tuple(vocabulary.prompts[t] for t in templates)) for templates in chosen]
        return torch.stack([self.enriched(*pair, progress) for pair in zip(texts, limited, strict=True)])

    def templates_of(self, name: str, ranked: dict[str, list[int]]) -> list[int]:
        """The best templates of a class; empty for all templates."""
        templates = ranked.get(_key(name))
        if templates is None:
            raise OvssError(
                f"{self.recipe.segmentor}: the ranking {self.ranking} has no class '{name}'. Use that of the data set."
            )
        if not templates and not isinstance(self, NOT_UNIT):
            what = f"no template of the ranking {self.ranking} predicts class '{name}'"
            raise OvssError(f"{self.recipe.segmentor}: {what}. Rank the templates on more images.")
        return templates[: self.top_n]

    def with_text(self, text: Tensor) -> FLOSS:
        """A copy with other text features (Q, E), without cached values derived from the old ones."""
        host = copy(self)
        for name in [name for name in vars(host) if isinstance(getattr(type(host), name, None), cached_property)]:
            delattr(host, name)
        host._text, host.observed = text, Counter()
        return host

    # Fusion

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        """Fused probabilities (B, Q, H, W) at the size of the windows, or of the whole image for one grid over it."""
        return self.fused("patch_logits", batch)

    @torch.inference_mode()
    def image_cosines(self, context: ImageContext) -> Tensor:
        """Fused probabilities (1, Q, H, W) at the size of the resized image."""
        return self.fused("image_cosines", context)

    def fused(self, hook: str, seen: WindowBatch | ImageContext) -> Tensor:
        """Fuses what the base method's hook returns with each classifier."""
        _ = self.text  # encodes the texts, if they are not yet
        run = partial(self.with_classifier, hook, seen, {})
        usual, compared = run(0)
        queries = [query for query, c in enumerate(self.vocabulary.group) if c >= 0]  # distractors have no expert
        size = size_of(seen, len(usual))
        if compared is not None and (compared[0] is usual or self.gives_probabilities):  # plain cosines
            _, embeddings, grid = compared
            unit = F.normalize(embeddings.float(), dim=-1)
            return fused_cosines(unit, grid, self.experts, queries, self.floss_scale, size)
        return fused_logits(usual, lambda query: run(1 + query)[0], queries, self.floss_scale, size)

    def with_classifier(
        self, hook: str, seen: WindowBatch | ImageContext, computed: dict[int, Any], number: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor, tuple[int, int]] | None]:
        """What the base method's hook returns with a classifier, and its last call of `compare`: cosines, embeddings, grid."""
        host = self.hosts[number]
        host.computed, host.turn, host.compared = computed, count(), None
        try:
            return getattr(super(FLOSS, host), hook)(seen), host.compared
        finally:  # frees their memory
            host.computed = host.compared = None

    def compare(self, embeddings: Tensor, grid: tuple[int, int]) -> Tensor:
        cosines = super().compare(embeddings, grid)
        self.compared = cosines, embeddings, grid
        return cosines

    def once(self, compute: Callable[..., Any], *arguments: Any) -> Any:
        """The result for the first classifier, as a method computes the same parts in the same order for all."""
        part = next(self.turn)
        if part not in self.computed:
            self.computed[part] = super().once(compute, *arguments)
        return self.computed[part]


def size_of(seen: WindowBatch | ImageContext, grids: int) -> tuple[int, int]:
    """The size in pixels that each of the `grids` covers: that of a window, of all windows together, or of the image."""
    if isinstance(seen, ImageContext):
        return seen.resized.shape[0], seen.resized.shape[1]
    if grids < len(seen.pixels):
        top, left, bottom, right = extent(seen)
        return bottom - top, right - left
    return seen.pixels.shape[2], seen.pixels.shape[3]


def read_ranking(path: Path, count: int) -> dict[str, list[int]]:
    """The templates that predict each class, the lowest entropy first, by its name in lower case without spaces. Raises
    OvssError for a file in another format, or with template numbers not below `count`."""
    try:
        classes = read_json(path)["classes"]
        ranked = {
            _key(name): [int(each["template_id"]) for each in entry["entropy_ranking"] if each["pixel_percentage"] > 0]
            for name, entry in classes.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        form = '{"classes": {NAME: {"entropy_ranking": [{"template_id": N, "pixel_percentage": X}, ...]}}}'
        raise OvssError(f"ranking {path} cannot be read ({type(error).__name__}: {error}). Expected {form}.") from error
    beyond = [t for templates in ranked.values() for t in templates if not 0 <= t < count]
    if beyond:
        raise OvssError(
            f"ranking {path} has template {beyond[0]}, but the recipe has {count} templates. Use the ranking's templates."
        )
    return ranked


def _key(name: str) -> str:
    return name.replace(" ", "").lower()
