"""Prompt templates ranked by the entropy of their predictions, for the step `floss` (FLOSS, arXiv 2504.10487, section 3)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.recipe import compose_recipe, parts, segmentor_config
from ..config.registry import SEGMENTORS
from ..datasets.base import SegDataset
from ..encoders.clip import DenseCLIP
from ..errors import OvssError
from ..files import user_path, write_text
from ..inference.engine import predict
from ..ops.scores import best_of_classes
from ..progress import Progress
from ..segmentors.base import Segmentor
from ..segmentors.build import instantiate
from ..segmentors.clip_dinoiser import CLIPDINOiser
from ..segmentors.maskclip import MaskCLIP
from ..torch_defaults import ordinary_torch
from ..types import ImageContext

PLAIN = {"pamr_steps": 0, "threshold": 0.0, "area_threshold": 0.0}


@ordinary_torch()
def rank_templates(
    segmentor: str,
    clip: DenseCLIP,
    dataset: SegDataset,
    path: str | Path,
    *,
    scale: float = 100.0,
    limit: int | None = None,
    ids: str | Iterable[str] | None = None,
    progress: bool = False,
    **overrides: Any,
) -> Path:
    """Writes a ranking file in FLOSS's format for a method on the images of a data set, which should be a training split. No
    labels are used. Every template of the recipe is a classifier; the templates of a class are ranked by the mean entropy of
    the pixels that they predict as this class. A recipe with the step floss stands for its base method, with the recipe's
    settings. Keywords override recipe values, as in `build_segmentor`.

    As in the official code, MaskCLIP and CLIP-DINOiser average probabilities over windows, other methods cosines. All templates
    share the passes of the encoder. Raises OvssError for images that cannot be read, and for methods with their own decision
    rule."""
    host, method = host_of(segmentor)
    trained = issubclass(method, CLIPDINOiser)
    plain = PLAIN | ({"temperature": scale, "apply_found": False} if trained else {"logit_scale": scale})
    plain |= {"ranking": None} if host != segmentor else {}
    recipe = compose_recipe(segmentor, clip=clip.name, dataset=dataset.name, overrides=plain | overrides, origin="argument")
    if method.image_scores or method.decide or not method.uses_clip or (method.scores and not trained):
        raise OvssError(f"{host} has a decision of its own, so its templates cannot be ranked. Use another method.")
    vocabulary = dataset.vocabulary(recipe.names, recipe.templates)
    classes = len(vocabulary.classes)
    ranked = [instantiate(method, clip, replace(vocabulary, prompts=(each,)), recipe) for each in vocabulary.prompts]
    totals = torch.zeros(len(ranked), 2, classes, dtype=torch.float64, device=clip.device)  # entropies and pixels
    for one, total in zip(ranked, totals, strict=True):
        one.encode_text(Progress(not progress))
        one.refine_scores = _counter(total)
        if issubclass(method, MaskCLIP):
            _average_probabilities(one)
    samples = dataset.select(limit, ids)
    images = [(sample.id, lambda sample=sample: dataset.image(sample)) for sample in samples]
    task = Progress(not progress).start(f"{len(ranked)} templates of {recipe.segmentor} on {dataset.name}", len(images))
    for _, outcome in predict(ranked, images):
        if isinstance(outcome, OvssError):
            raise outcome
        task.advance()
    task.stop()
    content = {"model": host, "dataset": dataset.name, "split": "train"}
    path = user_path(path)
    write_text(path, json.dumps(content | {"classes": _by_class(vocabulary.classes, totals.cpu())}) + "\n")
    return path


def host_of(segmentor: str) -> tuple[str, type[Segmentor]]:
    """The name and class of a segmentor; with the step floss, those of its base method."""
    _, base, steps = parts(segmentor)
    return (base, SEGMENTORS.get(base)) if "floss" in steps else (segmentor, segmentor_config(segmentor)[1])


def _counter(total: Tensor) -> Callable[[Tensor, ImageContext], Tensor]:
    """A hook that adds each pixel's entropy, and 1, to its predicted class in `total` (2, C)."""

    def refine_scores(planes: Tensor, context: ImageContext) -> Tensor:
        labels = planes.argmax(0).flatten()
        entropy = -(planes * (planes + 1e-10).log()).sum(0).flatten().double()
        total[0].index_add_(0, labels, entropy)
        total[1].index_add_(0, labels, torch.ones_like(entropy))
        return planes

    return refine_scores


def _average_probabilities(segmentor: Segmentor) -> None:
    """Makes a method return the probabilities of patches, and skip the later softmax."""
    cosines, scale = segmentor.patch_logits, segmentor.recipe.logit_scale
    segmentor.patch_logits = lambda batch: (scale * cosines(batch)).softmax(1)
    segmentor.scores = lambda probabilities, context: best_of_classes(probabilities, segmentor.vocabulary)


def _by_class(classes: Iterable[str], totals: Tensor) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Entropies and pixels (T, 2, C) -> the ranking of each class, by its name without spaces."""
    entropy = totals[:, 0] / totals[:, 1].clamp(min=1)
    share = 100 * totals[:, 1] / totals[:, 1].sum(1, keepdim=True)
    ranking = {}
    for c, name in enumerate(classes):
        order = entropy[:, c].argsort(stable=True).tolist()
        ranking[name.replace(" ", "")] = {
            "entropy_ranking": [
                {"template_id": t, "entropy": float(entropy[t, c]), "pixel_percentage": float(share[t, c]), "rank": rank}
                for rank, t in enumerate(order, 1)
            ]
        }
    return ranking
