"""The prompts of a concept segmenter, run in chunks: a map of each, with masks only where they can change the result.

Shapes: K prompts of a chunk, Q queries, N instances, (H, W) original image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..auxiliary.concepts import Concepts, chosen, concepts_of
from ..ops.concept_maps import enlarged_maps, joined
from .base import Segmentor


class PromptMaps(Segmentor):
    """Each query is a prompt. Its map joins the instances whose score, which includes presence, exceeds `confidence`, and the
    semantic map.

    `geometry_token`: as in the official predictor (transformers leaves it out). `autocast`: precision of the network's passes;
    auto: bf16 on a GPU, fp32 on a CPU. `early_skip`: makes no masks for prompts whose presence shows that they cannot change
    the label map; their maps are then 0. `prob_thd`: below it, a pixel becomes background.
    """

    uses_clip = False
    requires = ("concepts",)
    concepts: str | None = None
    confidence: float = 0.5
    prob_thd: float = 0.0
    geometry_token: bool = True
    autocast: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    early_skip: bool = True

    # How maps are made. sam3.py turns these into hyperparameters, and explains them.
    heads = "both"
    upsample = "logits"
    top_instances = 0
    mask_form = "probability"
    instance_weight = "score"
    combine = "max"
    gate = "class"
    half_maps = False

    @property
    def best_decides(self) -> bool:
        """Whether the label of a pixel depends only on its best class and the value of that class."""
        return True

    @cached_property
    def segmenter(self) -> Any:
        return concepts_of(self.concepts, geometry_token=self.geometry_token, precision=self.autocast)

    @cached_property
    def rows(self) -> list[int]:
        """The queries that belong to a class. The others would have no effect, as queries do not compete in a softmax."""
        return [query for query, c in enumerate(self.vocabulary.group) if c >= 0]

    @cached_property
    def texts(self) -> Any:
        """The encoded prompts of `rows`, once per vocabulary."""
        return self.segmenter.texts([self.vocabulary.queries[query] for query in self.rows])

    def prompt_maps(
        self, image: np.ndarray, least: Callable[[], float] | None = None, shared: dict[Any, Any] | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yields queries and their maps (H, W), except maps that are 0 everywhere or cannot change the label map. `least`
        returns the minimum over the image of the best map so far; None for a view, whose map is averaged with others.
        `shared`: see `ConceptSegmenter.image`; None for views, of which an image may have many."""
        places, step, size = self.active(image, shared), self.segmenter.chunk(), image.shape[:2]
        encoded = self.segmenter.image(image, shared=shared)
        for start in range(0, len(places), step):
            chunk = places[start : start + step]
            concepts = self.segmenter.detect(encoded, chosen(self.texts, chunk))
            scores, present, on_host = concepts.scores, concepts.present, concepts.on_host()  # the only wait for the network
            if not on_host.scores.isfinite().all():  # NaN is below every threshold; the engine names the image of a NaN map
                yield self.rows[chunk[0]], scores.new_full(size, torch.nan)
            kept = self.kept(on_host)
            rows = self.worthwhile(on_host.present, kept, least)
            self.observed.update(prompts=len(chunk), prompts_without_masks=len(chunk) - len(rows))
            if rows:
                masks, semantic = self.segmenter.masks(encoded, concepts, rows)
                for row, mask, dense in zip(rows, masks, semantic, strict=True):
                    best = self.tensor(kept[row].nonzero()[:, 0])
                    yield self.rows[chunk[row]], self.prompt_map(mask[best], scores[row][best], dense, present[row], size)

    def active(self, image: np.ndarray, shared: dict[Any, Any] | None = None) -> list[int]:
        """The prompts to run on this image, as ascending indices into `rows`."""
        return list(range(len(self.rows)))

    def kept(self, concepts: Concepts) -> Tensor:
        """The instances that count, (K, N) bool."""
        kept = concepts.scores > self.confidence
        if self.top_instances:
            best = concepts.objects.topk(min(self.top_instances, concepts.objects.shape[1]), 1).indices
            kept &= torch.zeros_like(kept).scatter_(1, best, True)
        return kept

    def worthwhile(self, present: Tensor, kept: Tensor, least: Callable[[], float] | None) -> list[int]:
        """The prompts of a chunk whose masks can change the label map.

        Without an instance, the map of the instance head is 0. A map with presence as a factor is at most the presence. If
        that is below `prob_thd`, pixels become background in any case; if it is below the minimum of the best map so far, the
        prompt wins no pixel."""
        rows = torch.ones_like(present, dtype=torch.bool)
        if self.early_skip:
            if self.heads == "instance":
                rows &= kept.any(1)
            weighted = self.instance_weight == "score"
            bounded = self.gate == "class" or (weighted and (self.gate == "semantic" or self.heads == "instance"))
            if bounded and least is not None and self.combine == "max" and self.best_decides:
                bound = present.half().float() if self.half_maps else present
                rows &= bound >= max(self.prob_thd, least())
        return rows.nonzero()[:, 0].tolist()

    def prompt_map(self, masks: Tensor, scores: Tensor, semantic: Tensor, present: Tensor, size: tuple[int, int]) -> Tensor:
        """The map (H, W) of a prompt, from mask logits (n, h, w) and scores (n,) of the instances that count, semantic logits
        (h, w) and presence ()."""
        first = self.upsample == "probability"
        result = None
        if self.heads != "semantic":
            weights = scores if self.instance_weight == "score" else None
            options = {"binary": self.mask_form == "binary", "add": self.combine == "sum"}
            result = joined(masks, weights, size, first_sigmoid=first, **options)
        if self.heads != "instance":
            dense = enlarged_maps(semantic[None], size, first)[0]
            if self.gate == "semantic":
                dense = dense * present
            result = dense if result is None else torch.maximum(result, dense)
        assert result is not None  # a method has at least one head
        if self.gate == "class":
            result = result * present
        return result.half().float() if self.half_maps else result
