"""Confusion counts, per image as sparse triplets, in total as a matrix. All metrics but boundary IoU are computed from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

# Field names of stored results.
DTYPE = np.dtype([("truth", np.uint16), ("prediction", np.uint16), ("pixels", np.uint32)])
Records = Mapping[str, np.ndarray]  # the records of images by their id


def confusion(target: np.ndarray, prediction: np.ndarray, classes: int, ignore_index: int = 255) -> np.ndarray:
    """The non-zero confusion counts of one image as sorted records of `DTYPE`.

    `target` (the ground truth) and `prediction` are (H, W) integers. Ignored pixels (target `ignore_index`) are counted as a
    target of `classes`. A prediction of `classes` means "no class": a miss for the true class and no class's false positive.
    """
    rows = np.where(target == ignore_index, classes, target).astype(np.int64)
    pixels = np.bincount((rows * (classes + 1) + prediction).ravel())
    used = np.flatnonzero(pixels)
    records = np.empty(len(used), DTYPE)
    records["truth"], records["prediction"] = np.divmod(used, classes + 1)
    records["pixels"] = pixels[used]
    return records


def total(images: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """(C+1, C+1) int64: rows are the target, the last one ignored pixels; columns the prediction, the last one "no class"."""
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    for records in images:
        np.add.at(matrix, (records["truth"], records["prediction"]), records["pixels"].astype(np.int64))
    return matrix
