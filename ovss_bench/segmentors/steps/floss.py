"""FLOSS (arXiv 2504.10487): for every class a classifier of the templates that predict it with the lowest entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.hyperparameters import File
from ...config.registry import STEPS
from ...errors import OvssError
from ...files import read_json
from ...progress import Progress
from ...types import WindowBatch
from ..maskclip import MaskCLIP
from .base import TextStep


@STEPS.register_module(name="floss")
class FLOSS(TextStep):
    """Each query has an expert: a classifier of all queries with the `top_n` best templates of its class. Where an expert's
    best query is its own, the most confident of these experts decides; elsewhere the usual classifier does (section 4).

    `ranking`: a JSON file in the format of the official repository, whose template numbers count the recipe's templates.
    `floss_scale`: factor of the cosines. `unit_text` normalises the means over templates again: the official code does so with
    NACLIP, and not with MaskCLIP (None: as it does). A class that no template predicts is an error, but has an expert of
    all templates with MaskCLIP, as in the official code. The fused probabilities take the place of cosines in what follows.
    """

    requires = ("ranking",)
    positive = ("top_n", "floss_scale")

    ranking: File | None = None
    top_n: int = 4
    floss_scale: float = 100.0
    unit_text: bool | None = None

    def encode_text(self, progress: Progress | None = None) -> None:
        super().encode_text(progress)
        self.bank = self.classifiers(progress)

    def classifiers(self, progress: Progress | None = None) -> Tensor:
        """(1 + Q, Q, E): the usual classifier, then the expert of each query; those of distractors never fire."""
        vocabulary, name = self.vocabulary, self.recipe.segmentor
        if vocabulary.given_features is not None:
            raise OvssError(f"{name}: floss needs names of classes, but the vocabulary has text features. Give names.")
        unit = self.unit_text if self.unit_text is not None else not isinstance(self, MaskCLIP)
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
        return F.normalize(means, dim=-1) if unit else means

    def templates_of(self, name: str, ranked: dict[str, list[int]]) -> list[int]:
        """The templates of a class; none for all of them."""
        templates = ranked.get(_key(name))
        if templates is None:
            raise OvssError(
                f"{self.recipe.segmentor}: the ranking {self.ranking} has no class '{name}'. Use that of the data set."
            )
        if not templates and not isinstance(self, MaskCLIP):
            what = f"no template of the ranking {self.ranking} predicts class '{name}'"
            raise OvssError(f"{self.recipe.segmentor}: {what}. Rank the templates on more images.")
        return templates[: self.top_n]

    def compare(self, embeddings: Tensor, grid: tuple[int, int]) -> Tensor:
        cosines = super().compare(embeddings, grid)
        self.compared = cosines, F.normalize(embeddings.float(), dim=-1), grid
        return cosines

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        """Fused probabilities (B, Q, H, W) at the size of the windows."""
        cosines = super().patch_logits(batch)
        compared, features, grid = self.compared
        if cosines is not compared:
            raise OvssError(
                f"{self.recipe.segmentor}: floss needs the cosines of patches with texts, and the base method changes these. "
                "Leave floss out, or use another segmentor."
            )
        del self.compared
        height, width = batch.pixels.shape[2:]
        return torch.stack([self.fused(window, grid, (height, width)) for window in features])

    def fused(self, features: Tensor, grid: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Features (N, E) of one window -> probabilities (Q, H, W), one expert at a time, as all of them would be large."""

        def probabilities(classifier: Tensor) -> Tensor:
            patches = (self.floss_scale * (features @ classifier.T)).softmax(-1)
            return F.interpolate(patches.T.unflatten(1, tuple(grid))[None], size, mode="bilinear")[0]

        result = probabilities(self.bank[0])
        best = torch.zeros_like(result[0])
        for query, c in enumerate(self.vocabulary.group):
            if c < 0:
                continue
            of_expert = probabilities(self.bank[1 + query])
            fires = (of_expert.argmax(0) == query) & (of_expert[query] > best)  # of equal ones the first stays
            best = torch.where(fires, of_expert[query], best)
            result = torch.where(fires, of_expert, result)
        return result


def read_ranking(path: Path, count: int) -> dict[str, list[int]]:
    """By class, its name in lower case without spaces, the templates that predict it, the lowest entropy first. Raises
    OvssError for a file of another form, or with numbers beyond the `count` of templates."""
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
            f"ranking {path} has template {beyond[0]}, but the recipe has {count} templates. Use those of the ranking."
        )
    return ranked


def _key(name: str) -> str:
    return name.replace(" ", "").lower()
