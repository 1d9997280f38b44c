"""From cosines to labels: logit scale, softmax over the queries, maximum over the synonyms of a class, thresholds."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..vocabulary import Vocabulary
from .device import kept
from .vote import tally


@kept(64)
def by_class(vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """`vocabulary.by_class`, cached on each device."""
    return vocabulary.by_class


def best_of_classes(planes: Tensor, vocabulary: Vocabulary, lowest: float = 0.0) -> Tensor:
    """Planes of the queries (Q, ...) -> planes of the classes (C, ...): the maximum over the queries of a class and
    `lowest`."""
    return best_of_groups(planes, vocabulary.group, len(vocabulary.classes), lowest)


def best_of_groups(planes: Tensor, group: Sequence[int], count: int, lowest: float = 0.0) -> Tensor:
    """`best_of_classes` for any planes (N, ...), by the class of each (-1: none) and the number of classes."""
    if list(group) == list(range(count)):
        return planes.clamp(min=lowest)
    best = planes.new_full((count, *planes.shape[1:]), lowest)
    for plane, c in zip(planes, group, strict=True):
        if c >= 0:
            torch.maximum(best[c], plane, out=best[c])
    return best


class Decision:
    """The decision rule of a recipe. A pixel gets the class of its most probable query (softmax over all queries; ties go to
    the lowest class), or the background if that probability is below `threshold`.

    `area_threshold` (SCLIP's code): foreground classes that win at most this share of all foreground pixels get score 0.
    """

    def __init__(self, vocabulary: Vocabulary, logit_scale: float = 1, threshold: float = 0, area_threshold: float = 0) -> None:
        self.vocabulary, self.logit_scale = vocabulary, logit_scale
        self.threshold, self.area_threshold = threshold, area_threshold

    def class_scores(self, cosines: Tensor) -> Tensor:
        """Cosines (Q, ...) -> class probabilities (C, ...): for each class the maximum over its queries, 0 without queries."""
        return best_of_classes((self.logit_scale * cosines).softmax(0), self.vocabulary)

    def without_small_classes(self, scores: Tensor) -> Tensor:
        """Class scores (C, H, W) after the area threshold."""
        won = tally(scores.argmax(0).flatten(), len(scores))
        won[self.vocabulary.background] = 0
        small = won <= self.area_threshold * won.sum()
        small[self.vocabulary.background] = False
        return scores * ~small[:, None, None]

    def from_scores(self, scores: Tensor) -> Tensor:
        """Class scores (C, ...) -> labels (...) int64."""
        best, labels = _max(scores.movedim(0, -1), None)
        return self._or_background(labels, best)

    def from_cosines(self, parts: Iterable[Tensor], bias: Tensor | None = None) -> Tensor:
        """Labels (...) int64 without class scores, from cosines (..., n) of the queries in the order of `vocabulary.by_class`,
        in one or more parts. `bias` (Q,), in that order, is added to them. Overwrites the cosines.

        An online softmax: keeps only the best query so far, and the sum of exp(logit_scale * (cosine - best)), rescaled when
        the best changes; the probability of the best query is one over that sum.
        """
        classes = by_class(self.vocabulary)[0]
        start = 0
        best: Any = None
        query: Any = None
        total: Any = 0
        for cosines in parts:
            count = cosines.shape[-1]
            if bias is not None:
                cosines += bias[start : start + count]
            competing = cosines[..., : max(0, len(classes) - start)]  # distractors win no pixel
            if query is None:
                best, query = _max(competing, bias)
            elif competing.shape[-1]:
                value, index = _max(competing, bias)
                before, better = best, value > best
                best, query = torch.maximum(best, value), torch.where(better, index + start, query)
                total *= (before - best).mul_(self.logit_scale).exp_()
            if self.threshold > 0:
                total += cosines.sub_(best[..., None]).mul_(self.logit_scale).exp_().sum(-1)
            start += count
        labels = by_class(self.vocabulary, like=query)[0][query]
        return self._or_background(labels, 1 / total if self.threshold > 0 else best)

    def _or_background(self, labels: Tensor, probability: Tensor) -> Tensor:
        if self.threshold > 0 and self.vocabulary.background is not None:
            labels[probability < self.threshold] = self.vocabulary.background
        return labels


def _max(values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The maximum over the last dimension and its first index. With a bias, the maximum is kept finite, as all queries of a
    part may be absent."""
    index = first_best(values)
    best = values.gather(-1, index[..., None])[..., 0]
    return best if bias is None else best.clamp(min=torch.finfo(best.dtype).min), index


def first_best(values: Tensor) -> Tensor:
    """The first index of the maximum over the last dimension. NumPy takes a quarter of PyTorch's time for contiguous values."""
    if values.device.type == "cpu" and values.stride(-1) == 1:
        return torch.from_numpy(values.numpy().argmax(-1))
    return values.argmax(-1)
