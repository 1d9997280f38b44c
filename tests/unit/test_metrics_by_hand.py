"""Rules worked out by hand, and which of them apply to a data set."""

import math

import numpy as np
import pytest

from ovss_bench.evaluation.confusion import confusion
from ovss_bench.evaluation.metrics import CONDITIONS, RULES, DatasetFacts, areas, class_metrics, harmonic_mean, metrics
from ovss_bench.evaluation.per_image import image_areas, per_image
from unit.label_maps import average, counted, from_scratch, of

# What every data set has, and what only some have.
ALWAYS = {"mIoU", "mAcc", "aAcc", "fwIoU", "mDice", "mFscore", "mPrecision", "mRecall"}

ALWAYS |= {"mIoU_present", "mIoU_cliper", "mAcc_cliper", "mIoU_cliptrase"}

SPLIT = {"mIoU_seen", "mIoU_unseen", "hIoU"}

# By hand.

WORKED = (np.array([[0, 255, 1], [0, 2, 2]]), np.array([[0, 0, 1], [1, 2, 3]]))  # 5 classes


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
    target, prediction = np.array([[0, 0, 0, 0, 1, 1, 255]]), np.array([[0, 0, 0, 1, 1, 0, 1]])
    matrix = counted([(target, prediction)], 2)
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
    target, prediction = np.array([[0, 65535], [1, 1]], np.uint16), np.array([[0, 1], [1, 0]])
    values = metrics(counted([(target, prediction)], 2, 65535), DatasetFacts(ignore_index=65535))
    assert values["mIoU"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert values["mIoU_quirk255"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    # Truth 255 is dropped with what is predicted there (0 and 255); 255 is still punished where it is predicted elsewhere.
    target, prediction = np.array([[255, 255, 0, 0, 1]], np.uint16), np.array([[255, 0, 0, 255, 1]])
    values = metrics(counted([(target, prediction)], 256, 65535), DatasetFacts(ignore_index=65535))
    assert values["mIoU"] == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert values["mIoU_quirk255"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    # ... and left out where it is not.
    values = metrics(counted([(target[:, :3], prediction[:, :3])], 256, 65535), DatasetFacts(ignore_index=65535))
    assert values["mIoU_quirk255"] == 1


def test_quirk_of_255_classes_keeps_the_ignored_pixels():
    """With 255 classes the row of ignored pixels is number 255, but no class is."""
    target, prediction = np.array([[65535, 254]], np.uint16), np.array([[254, 254]])
    values = metrics(counted([(target, prediction)], 255, 65535), DatasetFacts(ignore_index=65535))
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
