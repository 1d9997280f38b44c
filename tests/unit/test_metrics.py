"""Counts and rules against mmseg's real IoUMetric, against naive loops over pixels, and worked by hand (metrics.md)."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmseg.evaluation import IoUMetric

from ovss_bench.evaluation.confusion import confusion, total
from ovss_bench.evaluation.metrics import CONDITIONS, RULES, DatasetFacts, areas, class_metrics, harmonic_mean, metrics
from ovss_bench.evaluation.per_image import image_areas, per_image


@pytest.fixture(scope="module", autouse=True)
def quiet_mmseg():
    MMLogger.get_current_instance().setLevel("ERROR")


def random_maps(seed, classes, images=4, absent=(), predicted_only=(), ignored=0.1, no_class=0.0, dtype=np.uint8):
    """(truth, prediction) pairs of different sizes: right on about half of the pixels."""
    rng = np.random.RandomState(seed)
    allowed = [c for c in range(classes) if c not in absent]
    true = [c for c in allowed if c not in predicted_only]
    pairs = []
    for _ in range(images):
        size = rng.randint(1, 40, 2)
        truth = rng.choice(true, size).astype(dtype)
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


MMSEG = ("mIoU", "mDice", "mFscore")
# What every data set has, and what only some have.
ALWAYS = {"mIoU", "mAcc", "aAcc", "fwIoU", "mDice", "mFscore", "mPrecision", "mRecall"}
ALWAYS |= {"mIoU_present", "mIoU_cliper", "mAcc_cliper", "mIoU_cliptrase"}
SPLIT = {"mIoU_seen", "mIoU_unseen", "hIoU"}


def of(name):
    return CASES[name], CLASSES[name]


def counted(pairs, classes, ignore_index=255):
    return total((confusion(truth, prediction, classes, ignore_index) for truth, prediction in pairs), classes)


def mmseg_metric(pairs, classes, metric="mIoU"):
    metric = IoUMetric(iou_metrics=[metric])
    metric.dataset_meta = {"classes": [str(c) for c in range(classes)]}
    for truth, prediction in pairs:
        sample = {
            "gt_sem_seg": torch.from_numpy(truth.astype(np.int64)),
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
    assert any((truth == 255).any() and (prediction == 255).any() for truth, prediction in pairs)
    pairs = [
        (np.where(np.arange(truth.size).reshape(truth.shape) % 7, truth, 65535), prediction) for truth, prediction in pairs
    ]
    metric = mmseg_metric(pairs, classes)  # as the official configurations have it: ignore_index=255, labels of 65535
    areas_of_mmseg = [sum(parts).double() for parts in zip(*metric.results, strict=True)]
    values = metrics(counted(pairs, classes, 65535), DatasetFacts(ignore_index=65535))
    iou = metric.total_area_to_metrics(*areas_of_mmseg)["IoU"]
    assert values["mIoU_quirk255"] == pytest.approx(np.nanmean(iou), rel=1e-15, abs=0)
    assert iou[255] == 0
    assert values["mIoU_quirk255"] < values["mIoU"]


# Loops over pixels.


def from_scratch(pairs, classes):
    """The formulas of metrics.md in exact fractions, pixel by pixel."""
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
    for truth, prediction in pairs:
        yield from zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True)


def average(values):
    return sum(values) / len(values)


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
    """Mean IoU of the classes with truth and mean accuracy of all labels, as metrics.md 3.3 states them."""
    labels = range(len(matrix))
    true = [sum(matrix[c]) for c in labels]
    predicted = [sum(row[c] for row in matrix) for c in labels]
    iou = [matrix[c][c] / (true[c] + predicted[c] - matrix[c][c] + epsilon) for c in labels if true[c]]
    return average(iou), average([matrix[c][c] / (true[c] + epsilon) for c in labels])


@pytest.mark.parametrize("name", CASES)
def test_cliper_without_background(name):
    """Its labels are ours plus one; 0 is the background, which truth never is and "no class" is; 0 and 255 are ignored."""
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


# By hand.

WORKED = (np.array([[0, 255, 1], [0, 2, 2]]), np.array([[0, 0, 1], [1, 2, 3]]))  # metrics.md section 1: 5 classes


def test_worked_check():
    matrix = counted([WORKED], 5)
    correct, predicted, true = areas(matrix)
    assert correct.tolist() == [1, 1, 1, 0, 0]
    assert (predicted + true - correct).tolist() == [2, 2, 2, 1, 0]
    per_class = class_metrics(matrix)
    np.testing.assert_array_equal(per_class["IoU"], [0.5, 0.5, 0.5, 0, np.nan])
    np.testing.assert_array_equal(per_class["Acc"], [0.5, 1, 0.5, np.nan, np.nan])
    expected = {
        "mIoU": 37.5,
        "mAcc": 66.67,
        "aAcc": 60.0,
        "fwIoU": 50.0,
        "mDice": 50.0,  # (2/3 + 2/3 + 2/3 + 0) / 4
        "mFscore": 66.67,  # the class that is only predicted is left out
        "mPrecision": 62.5,  # (1 + 1/2 + 1 + 0) / 4
        "mRecall": 66.67,
        "mIoU_present": 50.0,
        "mIoU_cliper": 50.0,  # 1 / 2.00001
        "mAcc_cliper": 33.33,  # 2 / 6: classes 3 and 4 and label 0 enter as 0
        "mIoU_cliptrase": 49.75,  # 1 / 2.01
    }
    assert {key: round(100 * value, 2) for key, value in metrics(matrix).items()} == expected


def test_worked_check_with_background():
    values = metrics(counted([WORKED], 5), DatasetFacts(background=0))
    assert values["mAcc_cliper"] == pytest.approx(2 / 5, abs=1e-5)
    # The ignored pixel was predicted as class 0, the background: two right of three true pixels.
    assert values["mIoU_cliptrase"] == pytest.approx((2 / 3.01 + 1 / 2.01 + 1 / 2.01) / 3)
    values = metrics(counted([WORKED], 5), DatasetFacts(background=1))
    # Background 1: one right, predicted twice, true twice.
    assert values["mIoU_cliptrase"] == pytest.approx((1 / 3.01 + 1 / 3.01 + 1 / 2.01) / 3)


def test_no_class_is_a_miss_and_nobodys_false_positive():
    values = metrics(counted([(np.array([[0, 0, 1, 1]]), np.array([[0, 2, 1, 1]]))], 2))
    assert values["mIoU"] == pytest.approx((1 / 2 + 1) / 2)
    assert values["mIoU_cliper"] == pytest.approx((1 / 2.00001 + 2 / 2.00001) / 2)
    assert values["mIoU_cliptrase"] == pytest.approx((1 / 2.01 + 2 / 2.01) / 2)


def test_two_classes():
    truth, prediction = np.array([[0, 0, 0, 0, 1, 1, 255]]), np.array([[0, 0, 0, 1, 1, 0, 1]])
    matrix = counted([(truth, prediction)], 2)
    values = metrics(matrix, DatasetFacts(background=0))
    assert values["Specificity"] == 3 / 4
    assert values["Sensitivity"] == 1 / 2
    assert "IoU_object" not in values
    values = metrics(matrix, DatasetFacts(background=0, object_class=1))
    assert values["IoU_object"] == 1 / 3
    assert values["mIoU"] == pytest.approx((3 / 5 + 1 / 3) / 2)


def test_classes_of_interest():
    """A class of interest that is only predicted counts as 0, one that is nowhere not at all (MESS)."""
    matrix = counted([WORKED], 5)
    assert metrics(matrix, DatasetFacts(interest=(1, 3, 4)))["CoI_mIoU"] == (1 / 2 + 0) / 2
    assert metrics(matrix, DatasetFacts(interest=(1,)))["CoI_mIoU"] == 1 / 2
    assert math.isnan(metrics(matrix, DatasetFacts(interest=(4,)))["CoI_mIoU"])


def test_quirk_of_16_bit_labels():
    # 65535 is predicted as class 1: in the union of that class, not ignored.
    truth, prediction = np.array([[0, 65535], [1, 1]], np.uint16), np.array([[0, 1], [1, 0]])
    values = metrics(counted([(truth, prediction)], 2, 65535), DatasetFacts(ignore_index=65535))
    assert values["mIoU"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert values["mIoU_quirk255"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    # Truth 255 is dropped with what is predicted there (0 and 255); 255 is still punished where it is predicted elsewhere.
    truth, prediction = np.array([[255, 255, 0, 0, 1]], np.uint16), np.array([[255, 0, 0, 255, 1]])
    values = metrics(counted([(truth, prediction)], 256, 65535), DatasetFacts(ignore_index=65535))
    assert values["mIoU"] == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert values["mIoU_quirk255"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    # ... and left out where it is not.
    values = metrics(counted([(truth[:, :3], prediction[:, :3])], 256, 65535), DatasetFacts(ignore_index=65535))
    assert values["mIoU_quirk255"] == 1


def test_quirk_of_255_classes_keeps_the_ignored_pixels():
    """With 255 classes the row of ignored pixels is number 255, but no class is."""
    truth, prediction = np.array([[65535, 254]], np.uint16), np.array([[254, 254]])
    values = metrics(counted([(truth, prediction)], 255, 65535), DatasetFacts(ignore_index=65535))
    assert values["mIoU_quirk255"] == 1 / 2


def test_per_image_by_hand():
    first = confusion(np.array([[0, 0, 1, 1]]), np.array([[0, 0, 1, 2]]), 3)  # IoU 1, 1/2, 0 (only predicted)
    second = confusion(np.array([[0, 0, 255]]), np.array([[0, 3, 2]]), 3)  # IoU 1/2
    empty = confusion(np.array([[255]]), np.array([[1]]), 3)
    assert image_areas(second, 3).tolist() == [[1, 0, 0], [1, 0, 0], [2, 0, 0]]
    assert per_image([first, second, empty], 3) == {
        "mIoU_per_image": (3 / 4 + 1 / 2) / 2,
        "mIoU_per_image_predicted": (1 / 2 + 1 / 2) / 2,
        "mIoU_per_class_per_image": (3 / 4 + 1 / 2) / 2,
    }


@pytest.mark.parametrize("images", [0, 2])
def test_per_image_of_nothing_is_nan(images):
    records = [confusion(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint16), 3)] * images
    assert all(math.isnan(value) for value in per_image(records, 3).values())


def test_seen_unseen_and_harmonic():
    pairs, classes = of("absent")
    unseen = (2, 5, 7, 19)
    _, iou = from_scratch(pairs, classes)
    new = [iou[c] for c in unseen if c in iou]
    for background in (None, 1):
        old = [value for c, value in iou.items() if c not in unseen and c != background]
        s, u = average(old), average(new)
        values = metrics(counted(pairs, classes), DatasetFacts(background=background, unseen=unseen))
        expected = {"mIoU_seen": s, "mIoU_unseen": u, "hIoU": 2 * s * u / (s + u)}
        assert {key: values[key] for key in expected} == pytest.approx(
            {key: float(v) for key, v in expected.items()}, abs=1e-12
        )


def test_harmonic_of_zegclip():
    """Its README, VOC, inductive: S 91.9, U 77.8."""
    assert round(harmonic_mean(91.9, 77.8), 1) == 84.3


def test_harmonic_of_two_zeros_is_zero():
    matrix = np.array([[0, 5, 0], [5, 0, 0], [0, 0, 0]])
    assert metrics(matrix, DatasetFacts(unseen=(1,)))["hIoU"] == 0


# Which rules apply.


def test_rules_that_apply():
    matrix = counted(*of("everything"))
    assert set(metrics(matrix)) == ALWAYS
    assert set(metrics(matrix, DatasetFacts(unseen=(1,)))) == ALWAYS | SPLIT
    assert set(metrics(matrix, DatasetFacts(interest=(1,)))) == ALWAYS | {"CoI_mIoU"}
    assert set(metrics(matrix, DatasetFacts(object_class=0))) == ALWAYS | {"IoU_object"}
    assert set(metrics(matrix, DatasetFacts(ignore_index=65535))) == ALWAYS | {"mIoU_quirk255"}
    everything = DatasetFacts(background=0, unseen=(1,), object_class=1, interest=(1,), ignore_index=65535)
    assert list(metrics(np.ones((3, 3), np.int64), everything)) == list(RULES)


def test_every_rule_is_described_and_needs_what_is_known():
    for entry in RULES.values():
        assert entry.formula.__doc__
        assert entry.needs in CONDITIONS
    assert {entry.needs for entry in RULES.values()} == set(CONDITIONS)


@pytest.mark.parametrize("images", [0, 1, 3])
def test_nothing_counted_gives_nan(images):
    pairs = [(np.full((5, 6), 255, np.uint8), np.zeros((5, 6), np.uint16))] * images
    facts = DatasetFacts(unseen=(1,), object_class=1, interest=(0, 1))
    values = metrics(counted(pairs, 2), facts)
    assert set(values) == set(RULES) - {"mIoU_quirk255"}
    assert all(math.isnan(value) for value in values.values())


def test_ignored_pixels_that_rules_count():
    """The two rules that read the row of ignored pixels have figures where nothing else is."""
    pairs = [(np.full((2, 2), 65535, np.uint16), np.array([[0, 0], [0, 1]]))]
    values = metrics(counted(pairs, 3, 65535), DatasetFacts(background=0, ignore_index=65535))
    assert {name for name, value in values.items() if not math.isnan(value)} == {"mIoU_cliptrase", "mIoU_quirk255"}
    assert values["mIoU_cliptrase"] == pytest.approx(3 / 4.01)
    assert values["mIoU_quirk255"] == 0


# Counts.


@pytest.mark.parametrize("name", CASES)
def test_halves_sum_to_the_whole(name):
    pairs, classes = of(name)
    halves = counted(pairs[::2], classes) + counted(pairs[1::2], classes)
    assert np.array_equal(halves, counted(pairs, classes))
    assert halves.dtype == np.int64
    assert halves.shape == (classes + 1, classes + 1)


def test_records_are_sorted_and_complete():
    (truth, prediction), classes = CASES["everything"][0], CLASSES["everything"]
    records = confusion(truth, prediction, classes)
    keys = list(zip(records["truth"].tolist(), records["prediction"].tolist(), strict=True))
    assert keys == sorted(set(keys))
    assert records["pixels"].sum() == truth.size
    assert records["pixels"][records["truth"] == classes].sum() == (truth == 255).sum()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_847_classes_in_16_bits(dtype):
    truth = np.array([[846, 846, 255], [65535, 65535, 0]], np.uint16).astype(dtype)
    prediction = np.array([[846, 847, 255], [846, 847, 1]], np.uint16)
    records = confusion(truth, prediction, 847, 65535)
    assert records.tolist() == [(0, 1, 1), (255, 255, 1), (846, 846, 1), (846, 847, 1), (847, 846, 1), (847, 847, 1)]
    matrix = total([records, records], 847)
    assert matrix.sum() == 12
    assert matrix[847, 847] == matrix[846, 846] == 2


def test_8_bit_labels_with_a_16_bit_ignore_index():
    assert confusion(np.array([[0, 255]], np.uint8), np.array([[0, 255]]), 256, 65535).tolist() == [(0, 0, 1), (255, 255, 1)]


def test_totals_beyond_single_precision_stay_exact():
    truth = np.zeros((2048, 2048), np.uint8)
    prediction = truth.astype(np.uint16)
    prediction[0, 0] = 1
    matrix = total([confusion(truth, prediction, 2)] * 5, 2)
    assert matrix.tolist() == [[5 * 2048**2 - 5, 5, 0], [0, 0, 0], [0, 0, 0]]


def test_another_ignore_index():
    truth, prediction = np.array([[0, 1, 2]]), np.array([[0, 1, 1]])
    matrix = total([confusion(truth, prediction, 3, ignore_index=2)], 3)
    assert areas(matrix)[2].tolist() == [1, 1, 0]
    assert matrix[3].tolist() == [0, 1, 0, 0]
