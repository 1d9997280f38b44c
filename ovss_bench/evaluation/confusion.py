"""Confusion counts: sparse triplets per image, a matrix in total. All metrics except boundary IoU are computed from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

# Stored results use these field names.
DTYPE = np.dtype([("truth", np.uint16), ("prediction", np.uint16), ("pixels", np.uint32)])
Records = Mapping[str, np.ndarray]  # image id -> records


def confusion(target: np.ndarray, prediction: np.ndarray, classes: int, ignore_index: int = 255) -> np.ndarray:
    """The non-zero confusion counts of one image as sorted records of `DTYPE`.

    `target` (the ground truth) and `prediction` are (H, W) integers. Ignored pixels (target `ignore_index`) are counted as
    target `classes`. Prediction `classes` means "no class": a miss for the true class, but a false positive for none.
    """
    rows = np.where(target == ignore_index, classes, target).astype(np.int64)
    pixels = np.bincount((rows * (classes + 1) + prediction).ravel())
    used = np.flatnonzero(pixels)
    records = np.empty(len(used), DTYPE)
    records["truth"], records["prediction"] = np.divmod(used, classes + 1)
    records["pixels"] = pixels[used]
    return records


def total(images: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """(C+1, C+1) int64: rows are targets, the last one ignored pixels; columns are predictions, the last one "no class"."""
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    for records in images:
        np.add.at(matrix, (records["truth"], records["prediction"]), records["pixels"].astype(np.int64))
    return matrix
