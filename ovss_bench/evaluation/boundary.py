"""Boundary IoU (Cheng et al., CVPR 2021, arXiv 2103.16562) as LPOSS and CorrCLIP v2 compute it: IoU of the inner edges of each
class. It is computed from label maps, not from confusion records."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt

import numpy as np

from .metrics import divide, mean

DTYPE = np.dtype([("class", np.uint16), ("intersection", np.uint32), ("union", np.uint32)])
RATIO = 0.02  # width of the edges relative to the image's diagonal


def boundary_counts(target: np.ndarray, prediction: np.ndarray, classes: int, ignore_index: int = 255) -> np.ndarray:
    """Sorted records (class, intersection, union) of one image, in pixels, for the classes that occur or are predicted.

    `target` and `prediction` are (H, W) integers. Ignored pixels belong to no class in either map, so the borders of ignored
    regions are edges in both maps. A prediction of `classes` means "no class".
    """
    import cv2

    counted = target != ignore_index
    seen = [np.bincount(labels[counted], minlength=classes)[:classes] for labels in (target, prediction)]
    width = max(1, round(RATIO * sqrt(target.shape[0] ** 2 + target.shape[1] ** 2)))
    records = []
    for c in np.flatnonzero(seen[0] + seen[1]):
        masks = [((labels == c) & counted).view(np.uint8) for labels in (target, prediction)]
        # The class lies within this box, so cropping leaves its edges unchanged.
        x, y, w, h = cv2.boundingRect(masks[0] | masks[1])
        g, d = (edge(mask[y : y + h, x : x + w], width) for mask in masks)
        records.append((c, np.count_nonzero(g & d), np.count_nonzero(g | d)))
    return np.array(records, DTYPE)


def edge(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask (H, W) uint8 that `width` erosions with a 3 x 3 kernel remove; the outside counts as empty."""
    import cv2

    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return mask - cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]


def boundary_total(images: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """(2, C) int64: intersection and union per class over all images."""
    result = np.zeros((2, classes), np.int64)
    for records in images:
        for row, name in zip(result, ("intersection", "union"), strict=True):
            np.add.at(row, records["class"], records[name].astype(np.int64))
    return result


def mean_boundary_iou(counts: np.ndarray) -> float:
    """mBoundaryIoU from `boundary_total`: the mean over the classes that occur or are predicted; NaN if there are none."""
    return mean(divide(*counts))
