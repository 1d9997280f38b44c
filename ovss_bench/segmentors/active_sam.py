"""ActiveSAM (arXiv 2606.16996): SegEarth-OV3 with rewritten and enriched prompts, a preview that chooses the classes to decode,
and a background rule by margin."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..auxiliary.concepts import ConceptPrompts, chosen
from ..auxiliary.words import canonical, hypernyms
from ..config.recipe import Recipe
from ..config.registry import SEGMENTORS
from ..errors import OvssError
from .segearth_ov3 import SegEarthOV3

WORDS = "active_sam"  # configs/words


@SEGMENTORS.register_module(name="active_sam")
class ActiveSAM(SegEarthOV3):
    """Prompts are canonical names. Each gets tokens of its `neighbor_tokens` most similar prompts and of up to
    `hypernym_tokens` more general words. With more than `pruner_max_active` prompts, a preview of the image at
    `preview_resolution` pixels chooses: those whose presence is in the upper `quantile_alpha` are decoded, at most
    `pruner_max_active`. A pixel becomes background if its energy, the best class value times the square root of its margin,
    is below `prob_thd` to the power of `mabc_exponent`.
    """

    positive = ("preview_resolution",)

    neighbor_tokens: int = 2
    hypernym_tokens: int = 2
    preview_resolution: int = 672
    quantile_alpha: float = 0.2
    pruner_max_active: int = 40
    mabc_exponent: float = 1.25

    @classmethod
    def check(cls, recipe: Recipe, has_background: bool) -> None:
        super().check(recipe, has_background)
        values = recipe.hyperparameters
        for name, least in (("neighbor_tokens", 0), ("hypernym_tokens", 0), ("pruner_max_active", 1)):
            if values[name] < least:
                raise OvssError(f"{name}={values[name]} of {recipe.segmentor}: expected {least} or more.")
        if not 0 < (share := values["quantile_alpha"]) <= 1:
            raise OvssError(
                f"quantile_alpha={share} of {recipe.segmentor}: expected a share of the prompts, above 0 and up to 1."
            )

    @property
    def best_decides(self) -> bool:
        """The margin rule looks at the second class, too."""
        return self.prob_thd == 0

    @cached_property
    def names(self) -> list[str]:
        """The canonical name of each query in `rows`."""
        return [canonical(self.vocabulary.queries[query], WORDS) for query in self.rows]

    @cached_property
    def plain(self) -> Any:
        """The encoded names, without context."""
        return self.segmenter.texts(self.names)

    @cached_property
    def texts(self) -> Any:
        """The encoded names, each followed by its context tokens."""
        if not self.neighbor_tokens + self.hypernym_tokens:
            return self.plain
        if not isinstance(self.plain, ConceptPrompts):
            hint = "Set neighbor_tokens=0 and hypernym_tokens=0, or give a ConceptSegmenter"
            raise OvssError(f"concepts is a function, which takes no context tokens, but active_sam adds some. {hint}.")
        return self.plain.joined(self.context)

    @cached_property
    def context(self) -> ConceptPrompts:
        """Neighbour tokens (most similar first), then hypernym tokens: mean input embeddings of the words, projected by the
        linear layer that SAM 3 applies to outputs of its text encoder, as in the official code. Missing ones are 0, masked."""
        network = self.segmenter
        means, count = network.words(self.names), len(self.names)
        similarity = F.normalize(means, dim=-1) @ F.normalize(means, dim=-1).T
        similarity.fill_diagonal_(-torch.inf)
        cosines, nearest = similarity.topk(min(self.neighbor_tokens, count - 1), 1)
        tokens = [network.project(cosines.softmax(1)[..., None] * means[nearest])]
        valid = [torch.ones_like(nearest, dtype=torch.bool)]
        if self.hypernym_tokens:
            general = [hypernyms(name, WORDS)[: self.hypernym_tokens] for name in self.names]
            words = [canonical(word, WORDS) for some in general for word in some]
            known = valid[0].new_tensor([[n < len(some) for n in range(self.hypernym_tokens)] for some in general])
            rows = tokens[0].new_zeros(*known.shape, tokens[0].shape[-1])
            if words:
                rows[known] = network.project(network.words(words))
            tokens, valid = [*tokens, rows], [*valid, known]
        return ConceptPrompts(torch.cat(tokens, 1), torch.cat(valid, 1))

    def active(self, image: np.ndarray, shared: dict[Any, Any] | None = None) -> list[int]:
        """The prompts that the preview chooses; all of them up to `pruner_max_active`."""
        if len(self.rows) <= self.pruner_max_active:
            return super().active(image)
        presence = self.preview(image, shared)
        picked = ~(presence < torch.quantile(presence, 1 - self.quantile_alpha))  # so NaN is chosen, and reported later
        best = presence.topk(self.pruner_max_active).indices
        among = torch.zeros_like(picked).scatter_(0, best, True)
        return (picked & among).nonzero()[:, 0].tolist()

    @torch.inference_mode()
    def preview(self, image: np.ndarray, shared: dict[Any, Any] | None = None) -> Tensor:
        """Presence (K,) of all names in the image at `preview_resolution`, without masks."""
        network, side = self.segmenter, self.preview_resolution
        seen, step = network.image(image, side, shared), network.chunk(side)
        starts = range(0, len(self.rows), step)
        parts = [range(start, min(start + step, len(self.rows))) for start in starts]
        return torch.cat([network.detect(seen, chosen(self.plain, part)).present for part in parts])

    def uncertain(self, best: Tensor, second: Tensor) -> Tensor:
        return best * (best - second).sqrt() < self.prob_thd**self.mabc_exponent
