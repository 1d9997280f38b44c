"""Means over images of per-image IoU: no official code reports them, but they show whether few images cause a difference."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .metrics import divide


def image_areas(records: np.ndarray, classes: int) -> np.ndarray:
    """(3, C) int64: correct, predicted and true pixels per class of one image, without ignored pixels."""
    counted = records[records["truth"] < classes]
    correct = counted[counted["truth"] == counted["prediction"]]
    result = np.zeros((3, classes + 1), np.int64)
    np.add.at(result[0], correct["truth"], correct["pixels"].astype(np.int64))
    np.add.at(result[1], counted["prediction"], counted["pixels"].astype(np.int64))
    np.add.at(result[2], counted["truth"], counted["pixels"].astype(np.int64))
    return result[:, :classes]


def per_image(images: Iterable[np.ndarray], classes: int) -> dict[str, float]:
    """From the confusion records of all images:

    - `mIoU_per_image`: the mean over images of the mean IoU of the classes that occur in the image;
    - `mIoU_per_image_predicted`: the same, but classes that are only predicted count as 0;
    - `mIoU_per_class_per_image`: the mean over classes of the mean IoU over the images in which the class occurs.

    Images without a counted pixel are left out; NaN if there are no others.
    """
    parts = [image_areas(records, classes) for records in images]
    correct, predicted, true = np.stack(parts, 1) if parts else np.zeros((3, 0, classes), np.int64)
    iou = divide(correct, predicted + true - correct)  # (images, C)
    contained = np.where(true > 0, iou, np.nan)
    return {
        "mIoU_per_image": float(_means(_means(contained, 1), 0)),
        "mIoU_per_image_predicted": float(_means(_means(iou, 1), 0)),
        "mIoU_per_class_per_image": float(_means(_means(contained, 0), 0)),
    }


def _means(values: np.ndarray, axis: int) -> np.ndarray:
    """Means along an axis of the values that are not NaN."""
    return divide(np.nansum(values, axis), (~np.isnan(values)).sum(axis))
