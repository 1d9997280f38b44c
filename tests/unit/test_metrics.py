"""Rules against mmseg's IoUMetric and against naive loops over pixels."""

from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmseg.evaluation import IoUMetric

from ovss_bench.evaluation.confusion import confusion
from ovss_bench.evaluation.metrics import DatasetFacts, areas, class_metrics, metrics
from ovss_bench.evaluation.per_image import per_image
from unit.label_maps import CASES, average, counted, from_scratch, of, pixels, random_maps


@pytest.fixture(scope="module", autouse=True)
def quiet_mmseg():
    MMLogger.get_current_instance().setLevel("ERROR")


MMSEG = ("mIoU", "mDice", "mFscore")


def mmseg_metric(pairs, classes, metric="mIoU"):
    metric = IoUMetric(iou_metrics=[metric])
    metric.dataset_meta = {"classes": [str(c) for c in range(classes)]}
    for target, prediction in pairs:
        sample = {
            "gt_sem_seg": torch.from_numpy(target.astype(np.int64)),
            "pred_sem_seg": torch.from_numpy(prediction.astype(np.int64)),
        }
        metric.process({}, [{key: {"data": value[None]} for key, value in sample.items()}])
    return metric


# mmseg.


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


@pytest.mark.parametrize("rules", MMSEG)
@pytest.mark.parametrize("name", CASES)
def test_printed_values_equal_mmsegs(name, rules):
    pairs, classes = of(name)
    matrix, metric = counted(pairs, classes), mmseg_metric(pairs, classes, rules)
    expected = metric.compute_metrics(metric.results)
    ours = metrics(matrix)
    assert set(expected) <= set(ours)
    assert {key: round(100 * ours[key], 2) for key in expected} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("rules", MMSEG)
@pytest.mark.parametrize("name", CASES)
def test_unrounded_values_equal_mmsegs_in_double_precision(name, rules):
    pairs, classes = of(name)
    matrix, metric = counted(pairs, classes), mmseg_metric(pairs, classes, rules)
    sums = [sum(parts).double() for parts in zip(*metric.results, strict=True)]
    expected = metric.total_area_to_metrics(*sums, [rules])
    ours = metrics(matrix)
    assert ours["aAcc"] == expected.pop("aAcc").item()
    for key, values in expected.items():
        assert values.dtype == np.float64
        if key in ("IoU", "Acc"):
            np.testing.assert_array_equal(class_metrics(matrix)[key], values)
        assert ours["m" + key] == pytest.approx(np.nanmean(values), rel=1e-15, abs=0)  # sums may run in another order


@pytest.mark.parametrize("no_class", [0, 0.1])
def test_quirk_of_16_bit_labels_equals_mmsegs(no_class):
    classes = 300
    pairs = random_maps(
        9, classes, images=12, absent=(7, 290), predicted_only=(3, 299), ignored=0, no_class=no_class, dtype=np.uint16
    )
    assert any((target == 255).any() and (prediction == 255).any() for target, prediction in pairs)
    pairs = [
        (np.where(np.arange(target.size).reshape(target.shape) % 7, target, 65535), prediction) for target, prediction in pairs
    ]
    metric = mmseg_metric(pairs, classes)  # as the official configurations have it: ignore_index=255, labels of 65535
    areas_of_mmseg = [sum(parts).double() for parts in zip(*metric.results, strict=True)]
    values = metrics(counted(pairs, classes, 65535), DatasetFacts(ignore_index=65535))
    iou = metric.total_area_to_metrics(*areas_of_mmseg)["IoU"]
    assert values["mIoU_quirk255"] == pytest.approx(np.nanmean(iou), rel=1e-15, abs=0)
    assert iou[255] == 0
    assert values["mIoU_quirk255"] < values["mIoU"]


@pytest.mark.parametrize("name", CASES)
def test_formulas_are_exact(name):
    pairs, classes = of(name)
    expected, iou = from_scratch(pairs, classes)
    matrix = counted(pairs, classes)
    ours = metrics(matrix)
    assert {key: ours[key] for key in expected} == pytest.approx({k: float(v) for k, v in expected.items()}, abs=1e-12)
    per_class = class_metrics(matrix)["IoU"]
    assert set(np.flatnonzero(~np.isnan(per_class))) == set(iou)
    assert per_class[list(iou)] == pytest.approx([float(value) for value in iou.values()], abs=1e-12)


def matrix_of_repository(labels, count, ignored):
    """A (count, count) matrix as a repository fills it, pixel by pixel, from (label, prediction) in its own numbering."""
    cells = Counter(pair for pair in labels if pair[0] not in ignored)
    return [[cells[label, prediction] for prediction in range(count)] for label in range(count)]


def with_epsilon(matrix, epsilon):
    """Mean IoU of the classes that occur and mean accuracy of all labels, with an epsilon in the denominators."""
    labels = range(len(matrix))
    true = [sum(matrix[c]) for c in labels]
    predicted = [sum(row[c] for row in matrix) for c in labels]
    iou = [matrix[c][c] / (true[c] + predicted[c] - matrix[c][c] + epsilon) for c in labels if true[c]]
    return average(iou), average([matrix[c][c] / (true[c] + epsilon) for c in labels])


@pytest.mark.parametrize("name", CASES)
def test_cliper_without_background(name):
    """Its labels are ours plus one; 0 is the background, our "no class", and not in the target; 0 and 255 are ignored."""
    pairs, classes = of(name)
    rng = np.random.RandomState(0)
    labels = [(rng.choice([0, 255]) if t == 255 else t + 1, 0 if p == classes else p + 1) for t, p in pixels(pairs)]
    expected = with_epsilon(matrix_of_repository(labels, classes + 1, (0, 255)), 1e-5)
    ours = metrics(counted(pairs, classes))
    assert (ours["mIoU_cliper"], ours["mAcc_cliper"]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "name", sorted(set(CASES) - {"no_class", "everything"})
)  # a background class is always there to fall back on
def test_cliper_with_background(name):
    pairs, classes = of(name)
    expected = with_epsilon(matrix_of_repository(pixels(pairs), classes, (255,)), 1e-5)
    ours = metrics(counted(pairs, classes), DatasetFacts(background=0))
    assert (ours["mIoU_cliper"], ours["mAcc_cliper"]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"no_class", "everything"}))
@pytest.mark.parametrize("background", [None, 0])
def test_cliptrase(name, background):
    """Without a background class, labels out of range are left out. With one it is the last, and 255 means it."""
    pairs, classes = of(name)
    if background is None:
        labels = ((t, p) for t, p in pixels(pairs) if t < classes)
    else:
        labels = ((classes - 1 if t in (0, 255) else t - 1, classes - 1 if p == 0 else p - 1) for t, p in pixels(pairs))
    expected, _ = with_epsilon(matrix_of_repository(labels, classes, ()), 0.01)
    ours = metrics(counted(pairs, classes), DatasetFacts(background=background))
    assert ours["mIoU_cliptrase"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_per_image_from_scratch(name):
    pairs, classes = of(name)
    present, both, by_class = [], [], {}
    for pair in pairs:
        _, iou = from_scratch([pair], classes)
        inside = {c: iou[c] for c in iou if (pair[0] == c).any()}
        present.append(average(inside.values()))
        both.append(average(iou.values()))
        for c, value in inside.items():
            by_class.setdefault(c, []).append(value)
    expected = (average(present), average(both), average([average(values) for values in by_class.values()]))
    ours = per_image([confusion(*pair, classes) for pair in pairs], classes)
    assert list(ours) == ["mIoU_per_image", "mIoU_per_image_predicted", "mIoU_per_class_per_image"]
    assert list(ours.values()) == pytest.approx([float(value) for value in expected], abs=1e-12)
