"""Boundary IoU against its definition, worked by hand and naively."""

import math

import numpy as np
import pytest

from ovss_bench.evaluation.boundary import boundary_counts, boundary_total, edge, mean_boundary_iou
from ovss_bench.evaluation.metrics import divide


def naive(target, prediction, classes, ignore_index=255):
    """The definition on whole maps: erode once after another, by the minimum of nine shifts of the map framed with zeros."""
    prediction = np.where(target == ignore_index, ignore_index, prediction)
    steps = max(1, round(0.02 * math.sqrt(target.shape[0] ** 2 + target.shape[1] ** 2)))
    records = []
    for c in range(classes):
        edges = []
        for labels in (target, prediction):
            mask = eroded = np.pad(labels == c, 1)
            for _ in range(steps):
                framed = np.pad(eroded, 1)
                h, w = mask.shape
                eroded = np.min([framed[y : y + h, x : x + w] for y in range(3) for x in range(3)], 0)
            edges.append((mask & ~eroded)[1:-1, 1:-1])
        if (target == c).any() or (prediction == c).any():
            records.append((c, int((edges[0] & edges[1]).sum()), int((edges[0] | edges[1]).sum())))
    return records


def blobs(seed, size, classes, ignore_index=255):
    """Target and prediction of rectangles, some of them ignored, and some "no class"."""
    rng = np.random.RandomState(seed)
    maps = []
    for _ in range(2):
        labels = np.full(size, rng.randint(classes))
        for _ in range(12):
            y, x = rng.randint(0, size[0]), rng.randint(0, size[1])
            h, w = rng.randint(size[0]) + 1, rng.randint(size[1]) + 1
            labels[y : y + h, x : x + w] = rng.randint(classes + 1)
        maps.append(labels)
    target, prediction = maps[0], np.where(rng.rand(*size) < 0.7, maps[0], maps[1])
    return np.where(target == classes, ignore_index, target), prediction.astype(np.uint16)


@pytest.mark.parametrize(
    ("size", "classes", "ignore_index"),
    [((5, 7), 3, 255), ((60, 80), 6, 255), ((90, 97), 4, 65535), ((150, 1), 2, 255), ((120, 160), 3, 255)],
)
@pytest.mark.parametrize("seed", range(4))
def test_counts_equal_the_definition(size, classes, ignore_index, seed):
    target, prediction = blobs(seed, size, classes, ignore_index)
    maps = target, prediction, classes, ignore_index
    assert boundary_counts(*maps).tolist() == naive(*maps)


def test_by_hand():
    """A 4 x 4 square in 6 x 6 pixels, predicted one pixel to the right: 12 edge pixels each. The columns 2-4 of both are true;
    of their edges the upper and lower rows agree (3 + 3), and nothing else."""
    target, prediction = np.zeros((6, 6), int), np.zeros((6, 6), int)
    target[1:5, 1:5] = 1
    prediction[1:5, 2:6] = 1
    records = boundary_counts(target, prediction, 3)
    assert records[records["class"] == 1].tolist() == [(1, 6, 18)]
    assert records["class"].tolist() == [0, 1]  # the third class is nowhere


def test_borders_of_the_image_are_edges():
    target = np.zeros((10, 10), int)
    assert boundary_counts(target, target, 1).tolist() == [(0, 36, 36)]


def test_width_grows_with_the_diagonal():
    target = np.zeros((60, 80), int)  # diagonal 100: two pixels
    assert boundary_counts(target, target, 1).tolist() == [(0, 60 * 80 - 56 * 76, 60 * 80 - 56 * 76)]
    assert edge(np.ones((5, 5), np.uint8), 1).sum() == 16
    assert edge(np.ones((5, 5), np.uint8), 3).sum() == 25


def test_rims_of_ignored_places_are_edges_of_both():
    target = np.zeros((9, 9), int)
    target[4, 4] = 255
    prediction = np.zeros((9, 9), int)
    prediction[4, 4] = 1  # not counted, and class 1 is not there at all
    assert boundary_counts(target, prediction, 2).tolist() == [(0, 32 + 8, 32 + 8)]


def test_mean_over_classes_that_occur_or_are_predicted():
    target, prediction = np.zeros((4, 4), int), np.zeros((4, 4), int)
    prediction[:, 3] = 1
    # Class 0: the 4 x 4 but their inner 2 x 2 against the 4 x 3 but their inner 2 x 1. Class 1 is only predicted, 2 nowhere.
    total = boundary_total([boundary_counts(target, prediction, 3)], 3)
    assert total.tolist() == [[8, 0, 0], [14, 4, 0]]
    np.testing.assert_array_equal(divide(*total), [8 / 14, 0, np.nan])
    assert mean_boundary_iou(total) == pytest.approx((8 / 14 + 0) / 2)


def test_no_class_has_no_edge():
    target, prediction = np.zeros((4, 4), int), np.full((4, 4), 2)
    assert boundary_counts(target, prediction, 2).tolist() == [(0, 0, 12)]


def test_halves_sum_to_the_whole():
    images = [boundary_counts(*blobs(seed, (40, 50), 5), 5) for seed in range(6)]
    assert np.array_equal(boundary_total(images[:3], 5) + boundary_total(images[3:], 5), boundary_total(images, 5))
    assert boundary_total(images, 5).dtype == np.int64


@pytest.mark.parametrize("images", [0, 2])
def test_nothing_counted_gives_nan(images):
    records = boundary_counts(np.full((5, 6), 255), np.zeros((5, 6), int), 3)
    assert len(records) == 0
    assert math.isnan(mean_boundary_iou(boundary_total([records] * images, 3)))
