"""Intervals: their coverage, their values against the formulas in metrics.py, and their speed on large data sets."""

import tracemalloc

import numpy as np
import pytest

import ovss_bench as ob
from ovss_bench.evaluation.bootstrap import Interval, class_counts, interval, mean_iou_and_gradient, paired_interval
from ovss_bench.evaluation.confusion import DTYPE, confusion, total
from ovss_bench.evaluation.metrics import RULES, DatasetFacts, metrics

FACTS = DatasetFacts(background=0, unseen=(2, 3), interest=(1, 2))


def records(cells, pixels, classes):
    """Confusion records of distinct cells (indices into the flattened matrix)."""
    cells, first = np.unique(cells, return_index=True)
    result = np.empty(len(cells), DTYPE)
    result["truth"], result["prediction"] = np.divmod(cells, classes + 1)
    result["pixels"] = np.asarray(pixels)[first]
    return result


def drawn(seed, images, classes, cells):
    """Counts of images, of `cells` cells each at random and the diagonals of their classes."""
    rng, result = np.random.default_rng(seed), []
    for _ in range(images):
        truth = rng.integers(classes, size=cells)
        guess = np.where(rng.random(cells) < 0.5, truth, rng.integers(classes + 1, size=cells))
        result.append(records(truth * (classes + 1) + guess, rng.integers(1, 30000, cells), classes))
    return result


def by_id(images):
    return {f"image {i:05d}": each for i, each in enumerate(images)}


def population(seed, images, classes):
    """(a, b): two segmentors' counts of the same images. Images hold two to six classes, some are easier than others, classes
    too; `b` finds a little more than `a` and shares its mistakes."""
    rng, runs = np.random.default_rng(seed), ([], [])
    quality = np.linspace(0.3, 0.9, classes)
    for _ in range(images):
        present = rng.choice(classes, rng.integers(2, 7), replace=False)
        size, ease = rng.lognormal(7, 0.8, len(present)), rng.normal(0, 0.1)
        found = np.clip(quality[present] + ease + rng.normal(0, 0.1, len(present)), 0.02, 0.98)
        lost = rng.choice(classes + 1, len(present))
        for run, share in zip(runs, (found, np.clip(found + rng.normal(0.01, 0.06, len(present)), 0.01, 0.99)), strict=True):
            cells = np.concatenate([present * (classes + 2), present * (classes + 1) + lost])
            run.append(records(cells, np.concatenate([size * share, size * (1 - share)]).round() + 1, classes))
    return runs


@pytest.mark.parametrize("kind", ["one run", "difference"])
def test_95_percent_intervals_cover_the_truth_in_95_percent_of_2000_simulated_sets(kind):
    classes, sets, images = 10, 2000, 80
    a, b = population(1, 3000, classes)
    truth = [metrics(total(run, classes))["mIoU"] for run in (a, b)]
    rng, covered = np.random.default_rng(2), 0
    for _ in range(sets):
        chosen = rng.integers(len(a), size=images)
        if kind == "one run":
            found, wanted = interval([a[i] for i in chosen], classes, replicates=300), truth[0]
        else:
            both = (by_id([run[i] for i in chosen]) for run in (a, b))
            found, wanted = paired_interval(*both, classes, replicates=300), truth[1] - truth[0]
        covered += found.low <= wanted <= found.high
    assert 0.93 <= covered / sets <= 0.97


def with_pieces_lost(seed, images, classes):
    """The counts with a piece of any size of one class, in every image, taken for the next class."""
    rng, result = np.random.default_rng(seed), []
    for each in images:
        cells, pixels = each["truth"] * (classes + 1) + each["prediction"], each["pixels"].astype(np.int64)
        right = rng.choice(np.flatnonzero(each["truth"] == each["prediction"]))
        wrong = each["truth"][right] * (classes + 1) + (each["truth"][right] + 1) % classes
        lost = int(pixels[right] * rng.uniform(0.05, 1))
        pixels[right] -= lost
        if (cells == wrong).any():
            pixels[cells == wrong] += lost
        else:
            cells, pixels = np.append(cells, wrong), np.append(pixels, lost)
        result.append(records(cells, pixels, classes))
    return result


@pytest.mark.parametrize("kind", ["noise", "pieces lost"])
def test_intervals_cover_where_few_images_differ(kind):
    """1 to 8 of 100, on average; simulated sets without a difference are left out, as such runs are identical."""
    classes, images = 10, 100
    a, b = population(17, 2000, classes)
    if kind == "pieces lost":
        b = with_pieces_lost(18, a, classes)
    sums = [class_counts(run, classes).sum(axis=0) for run in (a, b)]
    rng, sets, covered = np.random.default_rng(19), 0, 0
    for share in np.repeat([0.01, 0.02, 0.04, 0.08], 150):
        truth = np.diff(mean_iou_and_gradient(np.stack([sums[0], (1 - share) * sums[0] + share * sums[1]]))[0]).item()
        chosen, other = rng.integers(len(a), size=images), rng.random(images) < share
        if not other.any():
            continue
        runs = [a[i] for i in chosen], [(b if new else a)[i] for i, new in zip(chosen, other, strict=True)]
        found = paired_interval(*map(by_id, runs), classes, replicates=100)
        sets, covered = sets + 1, covered + (found.low <= truth <= found.high)
        assert other.sum() > 6 or found.low <= 0 <= found.high
    assert covered / sets >= 0.93


@pytest.mark.parametrize("rule", RULES)
def test_values_are_those_of_the_rules(rule):
    classes = 2 if rule in ("Specificity", "Sensitivity") else 6
    facts = DatasetFacts(background=0, object_class=1) if classes == 2 or rule == "IoU_object" else FACTS
    a, b = drawn(3, 12, classes, 8), drawn(4, 12, classes, 8)
    value_a, value_b = (float(RULES[rule].formula(total(run, classes), facts)) for run in (a, b))
    found = interval(a, classes, rule, facts)
    assert found.value == pytest.approx(value_a, abs=1e-12)
    assert 0 <= found.low < found.value < found.high <= 1
    difference = paired_interval(by_id(a), by_id(b), classes, rule, facts)
    assert difference.value == pytest.approx(value_b - value_a, abs=1e-12)
    assert difference.low < difference.value < difference.high


def test_counts_are_intersections_and_unions():
    rng = np.random.default_rng(5)
    truth, prediction = (
        rng.choice([0, 1, 3, 255], (9, 30, 40)),
        rng.integers(5, size=(9, 30, 40)),
    )  # 4 classes; 2 is only predicted
    images = [confusion(*maps, 4) for maps in zip(truth, prediction, strict=True)]
    counts = class_counts(images, 4).toarray()
    for i in range(9):
        for c in range(4):
            mine, yours = (truth[i] == c), (prediction[i] == c) & (truth[i] != 255)
            assert counts[i, [c, 4 + c]].tolist() == [(mine & yours).sum(), (mine | yours).sum()]


def test_gradients_are_those_of_the_figure():
    sums = class_counts(drawn(6, 3, 5, 9), 5).toarray() + np.r_[np.zeros(5), np.full(5, 1e4)]
    _, slopes = mean_iou_and_gradient(sums)
    for column in range(10):
        step = np.zeros(10)
        step[column] = 1.0
        rise = (mean_iou_and_gradient(sums + step)[0] - mean_iou_and_gradient(sums - step)[0]) / 2
        assert rise == pytest.approx(slopes[:, column], rel=1e-5)


def test_the_same_input_gives_the_same_bounds_in_any_order_of_ids():
    a, b = by_id(drawn(7, 300, 8, 10)), by_id(drawn(8, 300, 8, 10))
    first = paired_interval(a, b, 8)
    assert paired_interval(dict(reversed(a.items())), b, 8) == first
    assert paired_interval(a, b, 8, seed=1) != first
    back = paired_interval(b, a, 8)
    assert (back.value, back.low, back.high) == pytest.approx((-first.value, -first.high, -first.low), abs=1e-12)


def test_runs_of_equal_counts_do_not_differ():
    a = by_id(drawn(9, 10, 8, 10))
    assert paired_interval(a, a, 8) == Interval(0, 0, 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("images", [2, 3, 8])
def test_few_images_give_bounds_that_the_figure_can_have(images):
    a, b = drawn(15, images, 8, 10), drawn(16, images, 8, 10)
    apart = [records(np.array([c * 10]), np.array([9]), 8) for c in range(images)]  # every class in an image of its own
    for run in (a, b, apart):
        found = interval(run, 8)
        assert 0 <= found.low <= found.value <= found.high <= 1
    difference = paired_interval(by_id(a), by_id(b), 8)
    assert -1 <= difference.low < difference.value < difference.high <= 1


def test_a_change_in_one_image_of_many_is_no_difference_and_bounded():
    a, other = drawn(10, 200, 8, 10), drawn(11, 1, 8, 10)
    found = paired_interval(by_id(a), by_id([*a[:-1], *other]), 8)
    assert found.low < 0 < found.high or found.value == 0
    assert max(-found.low, found.high) < 20 * abs(found.value)


@pytest.mark.parametrize("rule", ["mIoU", "fwIoU"])
def test_one_image_has_no_interval(rule):
    a = drawn(12, 1, 8, 10)
    found = interval(a, 8, rule)
    assert found.value == pytest.approx(metrics(total(a, 8))[rule])
    assert np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize("rule", ["mIoU", "fwIoU"])
def test_without_counted_pixels_there_is_nothing(rule):
    ignored = records([4 * 5], [9], 4)
    for images in ([], [ignored, ignored]):
        found = interval(images, 4, rule)
        assert np.isnan([found.value, found.low, found.high]).all()


@pytest.mark.parametrize("which", ["first", "second"])
def test_images_of_one_run_only_are_named(which):
    a = by_id(drawn(13, 8, 4, 5))
    less = {name: each for name, each in a.items() if name != "image 00003"}
    runs = (less, a) if which == "first" else (a, less)
    with pytest.raises(ob.OvssError, match=rf"1 of 8 images are not in the {which} run: image 00003\."):
        paired_interval(*runs, 4)
    with pytest.raises(ob.OvssError, match=r"8 of 8 images are not in the first run: image 00000, .*, \.\.\."):
        paired_interval({}, a, 4)


@pytest.mark.parametrize(("images", "classes", "cells"), [(5000, 171, 60), (2000, 847, 100)])
def test_large_data_sets_take_little_memory(images, classes, cells):
    run = drawn(14, images, classes, cells)
    tracemalloc.start()
    found = interval(run, classes)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.low < found.value < found.high
    assert peak < 150 * 2**20
