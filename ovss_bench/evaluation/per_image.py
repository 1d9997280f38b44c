"""Means of per-image IoU. No official code reports them; they show whether only a few images cause a difference."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .metrics import divide


def image_areas(records: np.ndarray, classes: int) -> np.ndarray:
    """(3, C) int64: correct, predicted and true pixels per class in one image, without ignored pixels."""
    counted = records[records["truth"] < classes]
    correct = counted[counted["truth"] == counted["prediction"]]
    result = np.zeros((3, classes + 1), np.int64)
    np.add.at(result[0], correct["truth"], correct["pixels"].astype(np.int64))
    np.add.at(result[1], counted["prediction"], counted["pixels"].astype(np.int64))
    np.add.at(result[2], counted["truth"], counted["pixels"].astype(np.int64))
    return result[:, :classes]


def per_image(images: Iterable[np.ndarray], classes: int) -> dict[str, float]:
    """Three means from the confusion records of all images:

    - `mIoU_per_image`: the mean over images of the mean IoU of the classes that occur in the image;
    - `mIoU_per_image_predicted`: the same, but classes that are only predicted count as 0;
    - `mIoU_per_class_per_image`: the mean over classes of the mean IoU over the images in which the class occurs.

    Images whose pixels are all ignored are excluded; the means are NaN if no image remains.
    """
    sums, occurrences = np.zeros(classes), np.zeros(classes, np.int64)
    means: list[tuple[float, float]] = []  # per image: over the classes that occur, over those that occur or are predicted
    for records in images:
        correct, predicted, true = image_areas(records, classes)
        iou = divide(correct, predicted + true - correct)  # (C,)
        contained = np.where(true > 0, iou, np.nan)
        means.append((float(_mean(contained)), float(_mean(iou))))
        sums += np.nan_to_num(contained)
        occurrences += true > 0
    occurring, either = np.array(means, np.float64).reshape(-1, 2).T
    return {
        "mIoU_per_image": float(_mean(occurring)),
        "mIoU_per_image_predicted": float(_mean(either)),
        "mIoU_per_class_per_image": float(_mean(divide(sums, occurrences))),
    }


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean of the values that are not NaN."""
    return divide(np.nansum(values), (~np.isnan(values)).sum())
