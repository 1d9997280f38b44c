"""Metrics from a confusion matrix, in float64 and fractions; only views round and turn them into percent (metrics.md).

Every figure that a paper or an evaluation code of the field reports is a named rule of `RULES`. Rules read the (C+1, C+1)
matrix of `confusion.total`; pixels without truth (its last row) count in none of them, except where a rule says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DatasetFacts:
    """What rules must know about a data set beside the counts; class numbers are indices of labels."""

    background: int | None = None
    unseen: tuple[int, ...] = ()  # classes that training did not name
    object_class: int | None = None  # the one class that matters, where the other is all the rest
    interest: tuple[int, ...] = ()  # MESS's classes of interest
    ignore_index: int = 255


Formula = Callable[[np.ndarray, DatasetFacts], float]

# What a rule may need: a name for messages, and whether a data set of that many classes has it.
CONDITIONS: dict[str, Callable[[int, DatasetFacts], bool]] = {
    "nothing": lambda classes, facts: True,
    "two classes": lambda classes, facts: classes == 2,
    "unseen classes": lambda classes, facts: bool(facts.unseen),
    "an object class": lambda classes, facts: facts.object_class is not None,
    "classes of interest": lambda classes, facts: bool(facts.interest),
    "16-bit labels": lambda classes, facts: facts.ignore_index > 255,
}


@dataclass(frozen=True)
class Rule:
    """How a figure is computed, and what a data set needs to have it: a key of CONDITIONS."""

    formula: Formula
    needs: str = "nothing"

    def applies(self, classes: int, facts: DatasetFacts) -> bool:
        return CONDITIONS[self.needs](classes, facts)


RULES: dict[str, Rule] = {}


def rule(name: str, needs: str = "nothing") -> Callable[[Formula], Formula]:
    """Enters a formula in RULES."""

    def enter(formula: Formula) -> Formula:
        RULES[name] = Rule(formula, needs)
        return formula

    return enter


def metrics(matrix: np.ndarray, facts: DatasetFacts | None = None) -> dict[str, float]:
    """The figure of every rule that applies to the data set, in the order of RULES; NaN where nothing can be averaged."""
    facts = facts or DatasetFacts()
    classes = len(matrix) - 1
    return {name: float(entry.formula(matrix, facts)) for name, entry in RULES.items() if entry.applies(classes, facts)}


# Per class, (C,) each.


def areas(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(C+1, C+1) -> pixels per class: correct, predicted, true."""
    counted = matrix[:-1]
    return np.diagonal(counted).copy(), counted[:, :-1].sum(0), counted.sum(1)


def class_metrics(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """IoU and Acc (recall) per class as mmseg's IoUMetric has them: NaN for 0/0, so a class that never occurs and is never
    predicted has no IoU, and one that is only predicted has IoU 0 and no Acc."""
    return {"IoU": iou(matrix), "Acc": recall(matrix)}


def iou(matrix: np.ndarray, epsilon: float = 0.0) -> np.ndarray:
    """correct / (predicted + true - correct + epsilon)."""
    correct, predicted, true = areas(matrix)
    return divide(correct, predicted + true - correct + epsilon)


def recall(matrix: np.ndarray, epsilon: float = 0.0) -> np.ndarray:
    """correct / (true + epsilon), also called the accuracy of the class."""
    correct, _, true = areas(matrix)
    return divide(correct, true + epsilon)


def precision(matrix: np.ndarray) -> np.ndarray:
    """correct / predicted."""
    correct, predicted, _ = areas(matrix)
    return divide(correct, predicted)


def occurs(matrix: np.ndarray) -> np.ndarray:
    """Which classes have a true pixel."""
    return areas(matrix)[2] > 0


def divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotient, NaN for 0/0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(above, below)


def mean(values: np.ndarray) -> float:
    """The mean of what is not NaN; NaN if that is nothing."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


# mmseg's IoUMetric (metrics.md section 1), by which most papers of the field measure.


@rule("mIoU")
def mean_iou(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Mean IoU of the classes that occur or are predicted. The same number as detectron2's and MESS's mIoU."""
    return mean(iou(matrix))


@rule("mAcc")
def mean_accuracy(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Mean share of a class's pixels that are found, over the classes that occur."""
    return mean(recall(matrix))


@rule("aAcc")
def pixel_accuracy(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Share of the pixels that are right, also called pAcc (ZegCLIP, detectron2)."""
    correct, _, true = areas(matrix)
    return divide(correct.sum(), true.sum())


@rule("fwIoU")
def frequency_weighted_iou(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """IoU of the classes that occur, weighted by their share of the pixels (detectron2, MESS, CLIPtrase)."""
    present, (_, _, true) = occurs(matrix), areas(matrix)
    return divide((true[present] * iou(matrix)[present]).sum(), true.sum())


@rule("mDice")
def mean_dice(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Mean of 2 correct / (predicted + true); a class that is only predicted counts as 0."""
    correct, predicted, true = areas(matrix)
    return mean(divide(2 * correct, predicted + true))


@rule("mFscore")
def mean_f_score(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Mean of 2 P R / (P + R). Unlike Dice it is undefined, and the class left out, where no pixel of a class is right."""
    p, r = precision(matrix), recall(matrix)
    return mean(divide(2 * (p * r), p + r))


@rule("mPrecision")
def mean_precision(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Mean share of a class's predictions that are right, over the classes that are predicted."""
    return mean(precision(matrix))


@rule("mRecall")
def mean_recall(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """mAcc under the name that mmseg prints beside mPrecision and mFscore."""
    return mean(recall(matrix))


# Who leaves out what, and epsilons: rules of single repositories (metrics.md 3.3, 3.4).


@rule("mIoU_present")
def mean_iou_present(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Mean IoU of the classes that occur: a class that is only predicted is not punished."""
    return mean(iou(matrix)[occurs(matrix)])


@rule("mIoU_cliper")
def mean_iou_cliper(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """CLIPer's util/miou.py: mean over the classes that occur of correct / (predicted + true - correct + 1e-5).

    Its matrix has a label 0 for the background. In sets with a background class that is the class itself, and its matrix is
    ours. In the others (labels 0 and 255 ignored) no pixel has the truth 0, so that label has no part in the mean, and
    predicting it, our "no class", is a miss and nobody's false positive. Thus both are one formula here.
    """
    return mean(iou(matrix, 1e-5)[occurs(matrix)])


@rule("mAcc_cliper")
def mean_accuracy_cliper(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """CLIPer's mean accuracy: correct / (true + 1e-5) over all its labels. Absent classes enter as 0, and so does, in sets
    without a background class, its ignored label 0."""
    labels = len(matrix) - 1 + (facts.background is None)
    return recall(matrix, 1e-5).sum() / labels if occurs(matrix).any() else np.nan


@rule("mIoU_cliptrase")
def mean_iou_cliptrase(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """CLIPtrase's configs/metric.py: mean over the classes that occur of correct / (predicted + true - correct + 0.01).

    In sets with a background class its pixels without truth count as background (it reads 255 as the background).
    """
    if facts.background is not None:
        matrix = matrix.copy()
        matrix[facts.background] += matrix[-1]
    return mean(iou(matrix, 0.01)[occurs(matrix)])


# Classes apart: zero-shot splits, MESS, one-object sets (metrics.md 3.2, 3.8, 3.9).


@rule("mIoU_seen", needs="unseen classes")
def mean_iou_seen(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Mean IoU of the classes that are neither unseen nor the background, in one prediction of all classes (ZegCLIP)."""
    classes = np.arange(len(matrix) - 1)
    return mean(iou(matrix)[~np.isin(classes, facts.unseen) & (classes != facts.background)])


@rule("mIoU_unseen", needs="unseen classes")
def mean_iou_unseen(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Mean IoU of the unseen classes, in one prediction of all classes (ZegCLIP)."""
    return mean(iou(matrix)[list(facts.unseen)])


@rule("hIoU", needs="unseen classes")
def harmonic_iou(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Harmonic mean of mIoU_seen and mIoU_unseen; 0 if both are."""
    return harmonic_mean(mean_iou_seen(matrix, facts), mean_iou_unseen(matrix, facts))


def harmonic_mean(a: float, b: float) -> float:
    """2 a b / (a + b), 0 of two zeros."""
    return 2 * a * b / (a + b) if a + b else 0.0


@rule("CoI_mIoU", needs="classes of interest")
def mean_iou_of_interest(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Mean IoU of the classes of interest that occur or are predicted (MESS)."""
    return mean(iou(matrix)[list(facts.interest)])


@rule("Specificity", needs="two classes")
def specificity(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Share of the pixels of class 0 that are found (MESS's two-class sets)."""
    return recall(matrix)[0]


@rule("Sensitivity", needs="two classes")
def sensitivity(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Share of the pixels of class 1 that are found (MESS's two-class sets)."""
    return recall(matrix)[1]


@rule("IoU_object", needs="an object class")
def object_iou(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """IoU of the object alone: the IoU of all the rest is high where little of the object is found (SegEarth-OV)."""
    return iou(matrix)[facts.object_class]


@rule("mIoU_quirk255", needs="16-bit labels")
def mean_iou_quirk255(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """mIoU as ProxyCLIP, Trident and CorrCLIP compute it from 16-bit labels: with 255 still the value that is ignored
    (datasets.md section 4).

    Pixels of class 255 are dropped. Pixels without truth (65535) are not: what is predicted on them are false positives.
    """
    correct, predicted, true = areas(matrix)
    correct[255:256] = true[255:256] = 0  # slices: there may be fewer classes
    predicted = predicted - matrix[:-1][255:256, :-1].sum(0) + matrix[-1, :-1]
    return mean(divide(correct, predicted + true - correct))
