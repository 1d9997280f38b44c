"""What the methods on a concept segmenter share: prompts in chunks, masks only where they can matter, windows, class maps.

Shapes: K prompts of a chunk, Q queries, C classes, N instances, (H, W) original image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..auxiliary.concepts import Concepts, concepts_of
from ..errors import OvssError
from ..ops.concept_maps import enlarged_maps, joined
from ..ops.windows import axis
from ..types import ImageContext
from .base import Segmentor


def chosen(texts: Any, places: Sequence[int]) -> Any:
    """Some of the encoded prompts, or of the texts of a function."""
    return tuple(texts[place] for place in places) if isinstance(texts, tuple) else texts[list(places)]


class ConceptSegmentor(Segmentor):
    """A prompt for each query; its map joins the instances whose score, with presence, exceeds `confidence`, and the semantic
    map; a class has the maximum over its queries. Pixels whose best class has less than `prob_thd` become background.

    `slide_crop`: windows of that many pixels every `slide_stride`, for images with a longer side; 0: none. `mirror`: mean with
    the mirrored image. `geometry_token`: as in the official predictor (transformers leaves it out). `autocast`: precision of
    the network's passes; auto: bf16 on a GPU, fp32 on a CPU. `early_skip`: prompts whose presence shows that they cannot change
    the label map get no masks; their class maps are then 0.
    """

    uses_clip = False
    requires = ("concepts",)
    concepts: str | None = None
    confidence: float = 0.5
    prob_thd: float = 0.0
    slide_crop: int = 0
    slide_stride: int = 512
    mirror: bool = False
    geometry_token: bool = True
    autocast: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    early_skip: bool = True

    # How maps are made; a method may make hyperparameters of them (see sam3.py).
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
        """Whether labels depend on the best class of a pixel and its value only."""
        return True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.prob_thd > 0 and self.vocabulary.background is None:
            hint = "Use 0, or a data set with a background class"
            raise OvssError(
                f"prob_thd={self.prob_thd}, but there is no background class to give the uncertain pixels to. {hint}."
            )
        if self.slide_crop < 0 or self.slide_stride < 1 or 0 < self.slide_crop < self.slide_stride:
            given = f"slide_crop={self.slide_crop}, slide_stride={self.slide_stride}"
            raise OvssError(f"{given}: expected a window of at least the stride, which is at least 1; or slide_crop=0.")

    @cached_property
    def segmenter(self) -> Any:
        precision = self.autocast
        if precision == "auto":
            precision = "bf16" if self.clip.device.type == "cuda" else "fp32"
        return concepts_of(self.concepts, geometry_token=self.geometry_token, precision=precision)

    @cached_property
    def rows(self) -> list[int]:
        """The queries that belong to a class. Others can win no pixel here, as queries do not compete in a softmax."""
        return [query for query, c in enumerate(self.vocabulary.group) if c >= 0]

    @cached_property
    def texts(self) -> Any:
        """The encoded prompts of `rows`, once per vocabulary."""
        return self.segmenter.texts([self.vocabulary.queries[query] for query in self.rows])

    @torch.inference_mode()
    def image_scores(self, context: ImageContext) -> Tensor:
        """Class maps (C, H, W)."""
        size, classes = context.original.shape[:2], len(self.vocabulary.classes)
        views = self.views(*size)
        if len(views) == 1:
            planes = torch.zeros(classes, *size, device=self.clip.device)
            best = torch.zeros(size, device=self.clip.device)
            for query, plane in self.prompt_maps(context.original, lambda: float(best.amin())):
                self.paint(planes, self.vocabulary.group[query], plane)
                torch.maximum(best, plane, out=best)
            return planes
        total, count = (torch.zeros(n, *size, device=self.clip.device) for n in (len(self.vocabulary.queries), 1))
        for rows, columns, mirrored in views:
            image = context.original[rows, columns]
            for query, plane in self.prompt_maps(image[:, ::-1] if mirrored else image):
                total[query, rows, columns] += plane.flip(-1) if mirrored else plane
            count[:, rows, columns] += 1
        planes = torch.zeros(classes, *size, device=self.clip.device)
        for query in self.rows:
            self.paint(planes, self.vocabulary.group[query], total[query] / count[0])
        return planes

    def paint(self, planes: Tensor, c: int, plane: Tensor) -> None:
        """Enters the map of a query of class c into the class maps (C, H, W): the maximum, or over all classes before it."""
        if self.combine == "paint":
            planes *= plane <= 0.5
        torch.maximum(planes[c], plane, out=planes[c])

    def decide(self, scores: Tensor, context: ImageContext) -> Tensor:
        best, labels = scores.max(0)
        if self.prob_thd > 0:
            assert self.vocabulary.background is not None  # checked with prob_thd
            labels[best < self.prob_thd] = self.vocabulary.background
        return labels

    def views(self, height: int, width: int) -> list[tuple[slice, slice, bool]]:
        """Rows and columns of each window, row by row, and whether it is mirrored."""
        crop = self.slide_crop if 0 < self.slide_crop < max(height, width) else None
        sides = (axis(side, crop, self.slide_stride, 1, "none") for side in (height, width))
        rows, columns = ([slice(start, start + side.size) for start in side.starts] for side in sides)
        mirrored = (False, True) if self.mirror else (False,)
        return [(y, x, flag) for y in rows for x in columns for flag in mirrored]

    def prompt_maps(self, image: np.ndarray, least: Callable[[], float] | None = None) -> Iterator[tuple[int, Tensor]]:
        """The queries and their maps (H, W), without those that are 0 everywhere or cannot change the label map. `least`: the
        smallest value in the image of the best map so far; None: maps of several views follow."""
        places = self.active(image)
        seen, step = self.segmenter.image(image), self.segmenter.chunk()
        for start in range(0, len(places), step):
            some = places[start : start + step]
            found = self.segmenter.detect(seen, chosen(self.texts, some))
            scores, present = found.scores, found.present
            kept = self.kept(found, scores)
            rows = self.worthwhile(present, kept, least)
            self.observed.update(prompts=len(some), prompts_without_masks=len(some) - len(rows))
            if rows:
                masks, semantic = self.segmenter.masks(seen, found, rows)
                for row, mask, dense in zip(rows, masks, semantic, strict=True):
                    instances = mask[kept[row]], scores[row][kept[row]]
                    yield self.rows[some[row]], self.prompt_map(*instances, dense, present[row], image.shape[:2])

    def active(self, image: np.ndarray) -> list[int]:
        """The prompts to ask in this image, as places in `rows`, in ascending order."""
        return list(range(len(self.rows)))

    def kept(self, found: Concepts, scores: Tensor) -> Tensor:
        """Which instances count (K, N)."""
        kept = scores > self.confidence
        if self.top_instances:
            best = found.objects.topk(min(self.top_instances, found.objects.shape[1]), 1).indices
            kept &= torch.zeros_like(kept).scatter_(1, best, True)
        return kept

    def worthwhile(self, present: Tensor, kept: Tensor, least: Callable[[], float] | None) -> list[int]:
        """The prompts of a chunk whose masks can change the label map.

        Without an instance, the map of the instance head is 0. Where the whole map carries presence as a factor, it is at most
        the presence: below `prob_thd` it leads to the background all the same, and below the smallest value of the best map so
        far it wins no pixel."""
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
        """The map (H, W) of a prompt with mask logits (n, h, w) and scores (n,) of the instances that count, semantic logits
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
