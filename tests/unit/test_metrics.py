"""Counts and metrics against mmseg's real IoUMetric and against fractions from scratch (metrics.md section 1)."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmseg.evaluation import IoUMetric

from ovss_bench.evaluation.confusion import confusion, total
from ovss_bench.evaluation.metrics import areas, class_metrics, metrics


@pytest.fixture(scope="module", autouse=True)
def quiet_mmseg():
    MMLogger.get_current_instance().setLevel("ERROR")


def random_maps(seed, classes, images=4, absent=(), predicted_only=(), ignored=0.1, no_class=0.0):
    """(truth, prediction) pairs of different sizes: right on about half of the pixels."""
    rng = np.random.RandomState(seed)
    allowed = [c for c in range(classes) if c not in absent]
    true = [c for c in allowed if c not in predicted_only]
    pairs = []
    for _ in range(images):
        size = rng.randint(1, 40, 2)
        truth = rng.choice(true, size).astype(np.uint8)
        prediction = np.where(rng.rand(*size) < 0.5, truth, rng.choice(allowed, size)).astype(np.uint16)
        prediction[rng.rand(*size) < no_class] = classes
        truth[rng.rand(*size) < ignored] = 255
        pairs.append((truth, prediction))
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


def counted(pairs, classes):
    return total((confusion(truth, prediction, classes) for truth, prediction in pairs), classes)


def mmseg_metric(pairs, classes):
    metric = IoUMetric(iou_metrics=["mIoU"])
    metric.dataset_meta = {"classes": [str(c) for c in range(classes)]}
    for truth, prediction in pairs:
        sample = {
            "gt_sem_seg": torch.from_numpy(truth.astype(np.int64)),
            "pred_sem_seg": torch.from_numpy(prediction.astype(np.int64)),
        }
        metric.process({}, [{key: {"data": value[None]} for key, value in sample.items()}])
    return metric


@pytest.mark.parametrize("name", CASES)
def test_counts_equal_mmsegs(name):
    pairs, classes = of(name)
    correct, predicted, true = areas(counted(pairs, classes))
    results = mmseg_metric(pairs, classes).results
    intersection, union, prediction, label = (sum(parts).numpy() for parts in zip(*results, strict=True))
    assert np.array_equal(correct, intersection)
    assert np.array_equal(predicted, prediction)
    assert np.array_equal(true, label)
    assert np.array_equal(predicted + true - correct, union)


@pytest.mark.parametrize("name", CASES)
def test_printed_values_equal_mmsegs(name):
    pairs, classes = of(name)
    matrix, metric = counted(pairs, classes), mmseg_metric(pairs, classes)
    expected = metric.compute_metrics(metric.results)
    ours = metrics(matrix)
    assert {key: round(100 * ours[key], 2) for key in expected} == pytest.approx(expected, abs=1e-5)
    areas_of_mmseg = [sum(parts) for parts in zip(*metric.results, strict=True)]
    per_class = metric.total_area_to_metrics(*areas_of_mmseg)
    for key, values in class_metrics(matrix).items():
        np.testing.assert_allclose(np.round(100 * values, 2), np.round(100 * per_class[key], 2), rtol=0, atol=1e-5)


def from_scratch(pairs, classes):
    """The formulas of metrics.md in exact fractions, pixel by pixel."""
    correct, predicted, true = [0] * classes, [0] * classes, [0] * classes
    for truth, prediction in pairs:
        for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
            if t != 255:
                true[t] += 1
                correct[t] += t == p
                if p < classes:
                    predicted[p] += 1
    union = [p + t - c for c, p, t in zip(correct, predicted, true, strict=True)]
    iou = {c: Fraction(correct[c], union[c]) for c in range(classes) if union[c]}
    accuracy = [Fraction(correct[c], true[c]) for c in range(classes) if true[c]]
    return {
        "mIoU": sum(iou.values()) / len(iou),
        "mAcc": sum(accuracy) / len(accuracy),
        "aAcc": Fraction(sum(correct), sum(true)),
        "fwIoU": sum(Fraction(true[c], sum(true)) * iou[c] for c in range(classes) if true[c]),
    }, iou


@pytest.mark.parametrize("name", CASES)
def test_formulas_are_exact(name):
    pairs, classes = of(name)
    expected, iou = from_scratch(pairs, classes)
    matrix = counted(pairs, classes)
    assert metrics(matrix) == pytest.approx({key: float(value) for key, value in expected.items()}, abs=1e-9)
    per_class = class_metrics(matrix)["IoU"]
    assert set(np.flatnonzero(~np.isnan(per_class))) == set(iou)
    assert per_class[list(iou)] == pytest.approx([float(value) for value in iou.values()], abs=1e-9)


def test_worked_check():
    truth, prediction = np.array([[0, 255, 1], [0, 2, 2]]), np.array([[0, 0, 1], [1, 2, 3]])
    matrix = total([confusion(truth, prediction, 5)], 5)
    correct, predicted, true = areas(matrix)
    assert correct.tolist() == [1, 1, 1, 0, 0]
    assert (predicted + true - correct).tolist() == [2, 2, 2, 1, 0]
    per_class = class_metrics(matrix)
    np.testing.assert_array_equal(per_class["IoU"], [0.5, 0.5, 0.5, 0, np.nan])
    np.testing.assert_array_equal(per_class["Acc"], [0.5, 1, 0.5, np.nan, np.nan])
    expected = {"mIoU": 37.5, "mAcc": 66.67, "aAcc": 60.0, "fwIoU": 50.0}
    assert {key: round(100 * value, 2) for key, value in metrics(matrix).items()} == expected


@pytest.mark.parametrize("images", [0, 1, 3])
def test_nothing_counted_gives_nan(images):
    pairs = [(np.full((5, 6), 255, np.uint8), np.zeros((5, 6), np.uint16))] * images
    values = metrics(counted(pairs, 4), unseen=[1], background=0)
    assert set(values) == {"mIoU", "mAcc", "aAcc", "fwIoU", "mIoU_seen", "mIoU_unseen", "hIoU"}
    assert all(math.isnan(value) for value in values.values())


def test_seen_unseen_and_harmonic():
    pairs, classes = of("absent")
    unseen = (2, 5, 7, 19)
    _, iou = from_scratch(pairs, classes)
    new = [iou[c] for c in unseen if c in iou]
    for background in (None, 1):
        old = [value for c, value in iou.items() if c not in unseen and c != background]
        s, u = sum(old) / len(old), sum(new) / len(new)
        values = metrics(counted(pairs, classes), unseen, background)
        expected = {"mIoU_seen": s, "mIoU_unseen": u, "hIoU": 2 * s * u / (s + u)}
        assert {key: values[key] for key in expected} == pytest.approx({key: float(v) for key, v in expected.items()}, abs=1e-9)
    assert "hIoU" not in metrics(counted(pairs, classes))


def test_harmonic_of_two_zeros_is_zero():
    matrix = np.array([[0, 5, 0], [5, 0, 0]])
    assert metrics(matrix, unseen=[1])["hIoU"] == 0


def test_records_are_sorted_and_complete():
    (truth, prediction), classes = CASES["everything"][0], CLASSES["everything"]
    records = confusion(truth, prediction, classes)
    keys = list(zip(records["truth"].tolist(), records["prediction"].tolist(), strict=True))
    assert keys == sorted(set(keys))
    assert records["pixels"].sum() == (truth != 255).sum()


def test_totals_beyond_single_precision_stay_exact():
    truth = np.zeros((2048, 2048), np.uint8)
    prediction = truth.astype(np.uint16)
    prediction[0, 0] = 1
    matrix = total([confusion(truth, prediction, 2)] * 5, 2)
    assert matrix.tolist() == [[5 * 2048**2 - 5, 5, 0], [0, 0, 0]]


def test_another_ignore_index():
    truth, prediction = np.array([[0, 1, 2]]), np.array([[0, 1, 1]])
    assert total([confusion(truth, prediction, 3, ignore_index=2)], 3).sum() == 2
