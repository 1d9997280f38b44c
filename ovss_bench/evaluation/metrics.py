"""Metrics from a confusion matrix, as fractions in float64; only views round them and convert to percent.

Each metric that a paper or its evaluation code reports is a named rule in `RULES`. Rules take the (C+1, C+1) matrix of
`confusion.total`. They exclude its last row, the ignored pixels, unless the docstring says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class DatasetFacts:
    """What rules need to know about a data set besides the counts; classes are given by label."""

    background: int | None = None
    unseen: tuple[int, ...] = ()  # classes not named in training
    object_class: int | None = None  # in data sets with one object class and the rest
    interest: tuple[int, ...] = ()  # MESS's classes of interest
    ignore_index: int = 255


Formula = Callable[[np.ndarray, DatasetFacts], float]

# Conditions under which a rule applies, as predicates of a data set's number of classes and facts.
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
    """How a figure is computed, and when it applies: a key of CONDITIONS."""

    formula: Formula
    needs: str = "nothing"


RULES: dict[str, Rule] = {}


def rule(name: str, needs: str = "nothing") -> Callable[[Formula], Formula]:
    """Decorator that registers a formula in RULES."""

    def enter(formula: Formula) -> Formula:
        RULES[name] = Rule(formula, needs)
        return formula

    return enter


def metrics(matrix: np.ndarray, facts: DatasetFacts | None = None) -> dict[str, float]:
    """The figure of every rule that applies to the data set, in the order of RULES; NaN if no class can be averaged."""
    facts = facts or DatasetFacts()
    applying = [name for name, entry in RULES.items() if CONDITIONS[entry.needs](len(matrix) - 1, facts)]
    return {name: float(RULES[name].formula(matrix, facts)) for name in applying}


# Per class: arrays (C,).


def areas(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(C+1, C+1) -> correct, predicted and true pixels per class."""
    counted = matrix[:-1]
    return np.diagonal(counted).copy(), counted[:, :-1].sum(0), counted.sum(1)


def class_metrics(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """IoU and Acc (recall) per class as in mmseg's IoUMetric. 0/0 is NaN, so a class that neither occurs nor is predicted has
    no IoU, and a class that is only predicted has an IoU of 0 and no Acc."""
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
    """(C,) bool: whether the class has a true pixel."""
    return areas(matrix)[2] > 0


def divide(above: Any, below: Any) -> Any:
    """The quotient of arrays or numbers, NaN for 0/0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(above, below)


def mean(values: np.ndarray) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


# mmseg's IoUMetric, which most papers of the field use.


@rule("mIoU")
def mean_iou(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Mean IoU of the classes that occur or are predicted. Equal to the mIoU of detectron2 and MESS."""
    return mean(iou(matrix))


@rule("mAcc")
def mean_accuracy(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Mean recall of the classes that occur."""
    return mean(recall(matrix))


@rule("aAcc")
def pixel_accuracy(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Share of correct pixels, also called pAcc (ZegCLIP, detectron2)."""
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
    """Mean of 2 P R / (P + R). Unlike Dice, it is undefined for classes without a correct pixel, which are excluded."""
    p, r = precision(matrix), recall(matrix)
    return mean(divide(2 * (p * r), p + r))


@rule("mPrecision")
def mean_precision(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Mean precision of the classes that are predicted."""
    return mean(precision(matrix))


rule("mRecall")(mean_accuracy)  # mmseg's name for mAcc when it reports mPrecision and mFscore


# Rules of individual repositories, which differ in the classes that they exclude and in epsilons.


@rule("mIoU_present")
def mean_iou_present(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Mean IoU of the classes that occur: false positives of absent classes are not penalised."""
    return mean(iou(matrix)[occurs(matrix)])


@rule("mIoU_cliper")
def mean_iou_cliper(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """CLIPer's util/miou.py: mean over the classes that occur of correct / (predicted + true - correct + 1e-5).

    In its matrix, label 0 is the background. For data sets with a background class, the matrix is the same as ours. For the
    others (labels 0 and 255 ignored), no pixel has target 0, so label 0 is not in the mean. Predicting it (our "no class") is a
    miss, but a false positive for no class, so the formula is the same."""
    return mean(iou(matrix, 1e-5)[occurs(matrix)])


@rule("mAcc_cliper")
def mean_accuracy_cliper(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """CLIPer's mean of correct / (true + 1e-5). Absent classes count as 0, and so does label 0 if it is not the background."""
    labels = len(matrix) - 1 + (facts.background is None)
    return recall(matrix, 1e-5).sum() / labels if occurs(matrix).any() else np.nan


@rule("mIoU_cliptrase")
def mean_iou_cliptrase(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """CLIPtrase's configs/metric.py: mean over the classes that occur of correct / (predicted + true - correct + 0.01).

    For data sets with a background class, ignored pixels count as background (CLIPtrase reads 255 as the background).
    """
    if facts.background is not None:
        matrix = matrix.copy()
        matrix[facts.background] += matrix[-1]
    return mean(iou(matrix, 0.01)[occurs(matrix)])


# Rules for some of the classes: zero-shot splits, MESS, data sets with one object class.


@rule("mIoU_seen", needs="unseen classes")
def mean_iou_seen(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Mean IoU of the seen classes except the background, when all classes are predicted together (ZegCLIP)."""
    classes = np.arange(len(matrix) - 1)
    return mean(iou(matrix)[~np.isin(classes, facts.unseen) & (classes != facts.background)])


@rule("mIoU_unseen", needs="unseen classes")
def mean_iou_unseen(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Mean IoU of the unseen classes, when all classes are predicted together (ZegCLIP)."""
    return mean(iou(matrix)[list(facts.unseen)])


@rule("hIoU", needs="unseen classes")
def harmonic_iou(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Harmonic mean of mIoU_seen and mIoU_unseen; 0 if both are 0."""
    return harmonic_mean(mean_iou_seen(matrix, facts), mean_iou_unseen(matrix, facts))


def harmonic_mean(a: float, b: float) -> float:
    """2 a b / (a + b), or 0 for two zeros."""
    return 2 * a * b / (a + b) if a + b else 0.0


@rule("CoI_mIoU", needs="classes of interest")
def mean_iou_of_interest(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Mean IoU of the classes of interest that occur or are predicted (MESS)."""
    return mean(iou(matrix)[list(facts.interest)])


@rule("Specificity", needs="two classes")
def specificity(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Recall of class 0 (MESS's two-class data sets)."""
    return recall(matrix)[0]


@rule("Sensitivity", needs="two classes")
def sensitivity(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """Recall of class 1 (MESS's two-class data sets)."""
    return recall(matrix)[1]


@rule("IoU_object", needs="an object class")
def object_iou(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """IoU of the object class only, since the IoU of the rest is high even if little of the object is found (SegEarth-OV)."""
    return float(iou(matrix)[facts.object_class])


@rule("mIoU_quirk255", needs="16-bit labels")
def mean_iou_quirk255(matrix: np.ndarray, facts: DatasetFacts) -> float:
    """mIoU as ProxyCLIP, Trident and CorrCLIP configure it for 16-bit labels: ignore_index is still 255.

    Pixels of class 255 are ignored. Pixels without ground truth (65535) are not: predictions on them are false positives.
    """
    correct, predicted, true = areas(matrix)
    correct[255:256] = true[255:256] = 0  # slices, since there may be fewer classes
    predicted = predicted - matrix[:-1][255:256, :-1].sum(0) + matrix[-1, :-1]
    return mean(divide(correct, predicted + true - correct))
