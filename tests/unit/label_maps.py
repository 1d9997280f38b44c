"""Pairs of ground truth and prediction, and the formulas of the metrics in exact fractions, pixel by pixel."""

from fractions import Fraction

import numpy as np

from ovss_bench.evaluation.confusion import confusion, total


def random_maps(seed, classes, images=4, absent=(), predicted_only=(), ignored=0.1, no_class=0.0, dtype=np.uint8):
    """(target, prediction) pairs of different sizes: right on about half of the pixels."""
    rng = np.random.RandomState(seed)
    allowed = [c for c in range(classes) if c not in absent]
    true = [c for c in allowed if c not in predicted_only]
    pairs = []
    for _ in range(images):
        size = rng.randint(1, 40, 2)
        target = rng.choice(true, size).astype(dtype)
        prediction = np.where(rng.rand(*size) < 0.5, target, rng.choice(allowed, size)).astype(np.uint16)
        prediction[rng.rand(*size) < no_class] = classes
        target[rng.rand(*size) < ignored] = 255
        pairs.append((target, prediction))
    return pairs


CASES = {
    "plain": random_maps(1, 21, ignored=0),
    "ignored": random_maps(2, 21, ignored=0.3),
    "absent": random_maps(3, 21, absent=(0, 7, 20)),
    "predicted_only": random_maps(4, 6, predicted_only=(1, 5)),
    "no_class": random_maps(5, 6, no_class=0.2),
    "everything": random_maps(6, 12, images=9, absent=(3,), predicted_only=(4, 11), ignored=0.4, no_class=0.1),
    "one_class": random_maps(7, 1),
    "many_classes": random_maps(8, 171, images=12),
}

CLASSES = {"plain": 21, "ignored": 21, "absent": 21, "predicted_only": 6, "no_class": 6, "everything": 12, "one_class": 1}

CLASSES["many_classes"] = 171


def of(name):
    return CASES[name], CLASSES[name]


def counted(pairs, classes, ignore_index=255):
    return total((confusion(target, prediction, classes, ignore_index) for target, prediction in pairs), classes)


# Loops over pixels.


def from_scratch(pairs, classes):
    """The formulas of the metrics in exact fractions, pixel by pixel."""
    correct, predicted, true = [0] * classes, [0] * classes, [0] * classes
    for t, p in pixels(pairs):
        if t != 255:
            true[t] += 1
            correct[t] += t == p
            if p < classes:
                predicted[p] += 1
    union = [p + t - c for c, p, t in zip(correct, predicted, true, strict=True)]
    iou = {c: Fraction(correct[c], union[c]) for c in range(classes) if union[c]}
    recall = {c: Fraction(correct[c], true[c]) for c in range(classes) if true[c]}
    precision = {c: Fraction(correct[c], predicted[c]) for c in range(classes) if predicted[c]}
    dice = {c: Fraction(2 * correct[c], predicted[c] + true[c]) for c in iou}
    both = [(precision[c], recall[c]) for c in recall if precision.get(c)]
    return {
        "mIoU": average(iou.values()),
        "mAcc": average(recall.values()),
        "aAcc": Fraction(sum(correct), sum(true)),
        "fwIoU": sum(Fraction(true[c], sum(true)) * iou[c] for c in recall),
        "mDice": average(dice.values()),
        "mFscore": average([2 * p * r / (p + r) for p, r in both]),
        "mPrecision": average(precision.values()),
        "mRecall": average(recall.values()),
        "mIoU_present": average([iou[c] for c in recall]),
    }, iou


def pixels(pairs):
    for target, prediction in pairs:
        yield from zip(target.ravel().tolist(), prediction.ravel().tolist(), strict=True)


def average(values):
    return sum(values) / len(values)
