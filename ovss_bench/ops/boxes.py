"""Boxes around the parts of a map where it is high, by OpenCV's contours (CLIP-ES, training-free TagCLIP). On the CPU."""

import cv2
import numpy as np


def to_unit_range(maps: np.ndarray) -> np.ndarray:
    """(..., h, w) stretched to 0..1; 0 where a map is constant (the official division by zero gives NaN)."""
    maps = maps - maps.min((-2, -1), keepdims=True)
    highest = maps.max((-2, -1), keepdims=True)
    return np.divide(maps, highest, out=np.zeros_like(maps), where=highest > 0)


def in_boxes(stretched: np.ndarray, threshold: float) -> np.ndarray:
    """A map (h, w) in 0..1 -> (h, w) bool: inside the bounding box of any 8-connected part above `threshold` times the maximum.

    In whole numbers up to 255, as published. The boxes of contours inside other contours change nothing. The last row and
    column are in no box, as published: ends are exclusive, and at most the index of the last row or column.
    """
    height, width = stretched.shape
    levels = (stretched * 255).astype(np.uint8)
    high = (levels > int(threshold * levels.max())).astype(np.uint8)
    inside = np.zeros((height, width), bool)
    for left, top, columns, rows, _ in cv2.connectedComponentsWithStats(high, connectivity=8)[2][1:]:
        inside[top : min(top + rows, height - 1), left : min(left + columns, width - 1)] = True
    return inside


def tight_box(members: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns of the box around a mask (h, w), without the last row and column of the map as in `in_boxes`; None if it
    is empty."""
    box = []
    for axis in (1, 0):
        (found,) = np.nonzero(members.any(axis))
        if not len(found) or found[0] >= min(found[-1] + 1, members.shape[1 - axis] - 1):
            return None
        box.append(slice(int(found[0]), int(min(found[-1] + 1, members.shape[1 - axis] - 1))))
    return box[0], box[1]
