"""From cosines to decisions: logit scale, softmax over queries, maximum over synonyms, thresholds (clip.md section 5)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..vocabulary import Vocabulary


def class_scores(cosines: Tensor, vocabulary: Vocabulary, logit_scale: float) -> Tensor:
    """(Q, ...) cosines -> (C, ...) scores: softmax over all queries, then for each class the maximum over its queries,
    0 without one."""
    probabilities = (logit_scale * cosines).softmax(0)
    scores = probabilities.new_zeros(len(vocabulary.classes), *cosines.shape[1:])
    for q, c in enumerate(vocabulary.group):
        if c >= 0:
            torch.maximum(scores[c], probabilities[q], out=scores[c])
    return scores


def label(cosines: Tensor, vocabulary: Vocabulary, logit_scale: float, threshold: float) -> Tensor:
    """(..., Q) cosines, the queries in the order of `vocabulary.by_class`, -> (...) int64 classes, without class scores: the
    best class is that of the best query. Overwrites the cosines.

    Where the softmax probability of that query, exp(max - logsumexp), is below `threshold`, the label is the background.
    """
    classes, _ = vocabulary.by_class
    query = _argmax(cosines[..., : len(classes)])
    labels = classes.to(cosines.device)[query]
    if threshold > 0:
        best = cosines.gather(-1, query[..., None])
        normaliser = cosines.sub_(best).mul_(logit_scale).exp_().sum(-1)
        labels[1 / normaliser < threshold] = vocabulary.background
    return labels


def label_by_parts(parts: Iterable[Tensor], vocabulary: Vocabulary, logit_scale: float, threshold: float) -> Tensor:
    """What `label` gives, (H, W), from cosines (n, H, W) of some queries after the others, in its order. Overwrites them.

    Kept are the best query so far, and the sum of exp(logit_scale * (cosine - best)), which is rescaled where the best changes.
    """
    classes, _ = vocabulary.by_class
    start, query = 0, None
    for cosines in parts:
        own = cosines[: max(0, len(classes) - start)]  # distractors win no pixel
        if query is None:
            best, query = own.max(0)
            normaliser = torch.zeros_like(best)
        elif len(own):
            value, index = own.max(0)
            before, better = best, value > best
            best, query = torch.maximum(best, value), torch.where(better, index + start, query)
            normaliser.mul_((before - best).mul_(logit_scale).exp_())
        if threshold > 0:
            normaliser += cosines.sub_(best).mul_(logit_scale).exp_().sum(0)
        start += len(cosines)
    labels = classes.to(query.device)[query]
    if threshold > 0:
        labels[1 / normaliser < threshold] = vocabulary.background
    return labels


def _argmax(values: Tensor) -> Tensor:
    """Over the last dimension, the first of equal values. On the CPU NumPy's, which takes a quarter of the time."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy().argmax(-1))
    return values.max(-1).indices


def decide(scores: Tensor, background: int | None, threshold: float) -> Tensor:
    """(C, ...) scores -> (...) int64: the best class, the background where its score is below `threshold`."""
    best, labels = scores.max(0)
    if threshold > 0:
        labels[best < threshold] = background
    return labels


def drop_small_classes(scores: Tensor, background: int, area_threshold: float) -> Tensor:
    """SCLIP's area threshold (sclip.md section 5): foreground classes that win at most this share of the pixels won by any
    foreground class get score 0. `scores` (C, H, W)."""
    won = torch.bincount(scores.argmax(0).flatten(), minlength=len(scores))
    won[background] = 0
    small = won <= area_threshold * won.sum()
    small[background] = False
    return scores * ~small[:, None, None]
