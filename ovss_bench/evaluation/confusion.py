"""Integer confusion counts, per image as sparse triplets and in total as a matrix; everything else is derived from them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

DTYPE = np.dtype([("truth", np.uint16), ("prediction", np.uint16), ("pixels", np.uint32)])


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int, ignore_index: int = 255) -> np.ndarray:
    """The non-zero confusion counts of one image as records (truth, prediction, pixels), sorted.

    `truth` and `prediction` (H, W) integers; pixels whose truth is `ignore_index` don't count. A prediction of `classes`
    means "no class": a miss for the true class, nobody's false positive.
    """
    counted = truth != ignore_index
    cells = truth[counted].astype(np.int64) * (classes + 1) + prediction[counted]
    pixels = np.bincount(cells, minlength=classes * (classes + 1))
    used = np.flatnonzero(pixels)
    records = np.empty(len(used), DTYPE)
    records["truth"], records["prediction"] = np.divmod(used, classes + 1)
    records["pixels"] = pixels[used]
    return records


def total(images: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """(C, C+1) int64: rows truth, columns prediction, the last column "no class"."""
    matrix = np.zeros((classes, classes + 1), np.int64)
    for records in images:
        np.add.at(matrix, (records["truth"], records["prediction"]), records["pixels"].astype(np.int64))
    return matrix
