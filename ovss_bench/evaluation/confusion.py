"""Integer confusion counts, per image as sparse triplets and in total as a matrix, from which metrics are derived."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

DTYPE = np.dtype([("truth", np.uint16), ("prediction", np.uint16), ("pixels", np.uint32)])


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int, ignore_index: int = 255) -> np.ndarray:
    """The non-zero confusion counts of one image as records (truth, prediction, pixels), sorted.

    `truth` and `prediction` (H, W) integers. Pixels whose truth is `ignore_index` are counted apart, as truth `classes`. A
    prediction of `classes` means "no class": a miss for the true class, nobody's false positive.
    """
    rows = np.where(truth == ignore_index, classes, truth).astype(np.int64)
    pixels = np.bincount((rows * (classes + 1) + prediction).ravel())
    used = np.flatnonzero(pixels)
    records = np.empty(len(used), DTYPE)
    records["truth"], records["prediction"] = np.divmod(used, classes + 1)
    records["pixels"] = pixels[used]
    return records


def total(images: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """(C+1, C+1) int64: rows truth, the last one ignored pixels; columns prediction, the last one "no class"."""
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    for records in images:
        np.add.at(matrix, (records["truth"], records["prediction"]), records["pixels"].astype(np.int64))
    return matrix
