"""Integer confusion counts, per image as sparse triplets and in total as a matrix; everything else is derived from them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..errors import OvssError

DTYPE = np.dtype([("truth", np.uint16), ("prediction", np.uint16), ("pixels", np.uint32)])


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int, ignore_index: int = 255) -> np.ndarray:
    """The non-zero confusion counts of one image as records (truth, prediction, pixels), sorted.

    `truth` and `prediction` (H, W) integers; pixels whose truth is `ignore_index` don't count. A prediction of `classes`
    means "no class": a miss for the true class, nobody's false positive. Raises OvssError if the sizes differ.
    """
    if truth.shape != prediction.shape:
        raise OvssError(
            f"the label map is {truth.shape[0]} x {truth.shape[1]} pixels (height x width), the image "
            f"{prediction.shape[0]} x {prediction.shape[1]}."
        )
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
