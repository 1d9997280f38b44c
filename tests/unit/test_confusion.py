"""Confusion counts of images and their sums."""

import numpy as np
import pytest

from ovss_bench.evaluation.confusion import confusion, total
from ovss_bench.evaluation.metrics import areas
from unit.label_maps import CASES, CLASSES, counted, of

# Counts.


@pytest.mark.parametrize("name", CASES)
def test_halves_sum_to_the_whole(name):
    pairs, classes = of(name)
    halves = counted(pairs[::2], classes) + counted(pairs[1::2], classes)
    assert np.array_equal(halves, counted(pairs, classes))
    assert halves.dtype == np.int64
    assert halves.shape == (classes + 1, classes + 1)


def test_records_are_sorted_and_complete():
    (target, prediction), classes = CASES["everything"][0], CLASSES["everything"]
    records = confusion(target, prediction, classes)
    keys = list(zip(records["truth"].tolist(), records["prediction"].tolist(), strict=True))
    assert keys == sorted(set(keys))
    assert records["pixels"].sum() == target.size
    assert records["pixels"][records["truth"] == classes].sum() == (target == 255).sum()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_847_classes_in_16_bits(dtype):
    target = np.array([[846, 846, 255], [65535, 65535, 0]], np.uint16).astype(dtype)
    prediction = np.array([[846, 847, 255], [846, 847, 1]], np.uint16)
    records = confusion(target, prediction, 847, 65535)
    assert records.tolist() == [(0, 1, 1), (255, 255, 1), (846, 846, 1), (846, 847, 1), (847, 846, 1), (847, 847, 1)]
    matrix = total([records, records], 847)
    assert matrix.sum() == 12
    assert matrix[847, 847] == matrix[846, 846] == 2


def test_8_bit_labels_with_a_16_bit_ignore_index():
    assert confusion(np.array([[0, 255]], np.uint8), np.array([[0, 255]]), 256, 65535).tolist() == [(0, 0, 1), (255, 255, 1)]


def test_totals_beyond_single_precision_stay_exact():
    target = np.zeros((2048, 2048), np.uint8)
    prediction = target.astype(np.uint16)
    prediction[0, 0] = 1
    matrix = total([confusion(target, prediction, 2)] * 5, 2)
    assert matrix.tolist() == [[5 * 2048**2 - 5, 5, 0], [0, 0, 0], [0, 0, 0]]


def test_another_ignore_index():
    target, prediction = np.array([[0, 1, 2]]), np.array([[0, 1, 1]])
    matrix = total([confusion(target, prediction, 3, ignore_index=2)], 3)
    assert areas(matrix)[2].tolist() == [1, 1, 0]
    assert matrix[3].tolist() == [0, 1, 0, 0]
