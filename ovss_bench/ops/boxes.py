"""Bounding boxes of the contours of thresholded heat maps, by OpenCV on the CPU (CLIP-ES, TagCLIP, FreeCP)."""

import cv2
import numpy as np


def to_unit_range(maps: np.ndarray) -> np.ndarray:
    """(..., h, w) stretched to 0..1; 0 where a map is constant (the official division by zero gives NaN)."""
    maps = maps - maps.min((-2, -1), keepdims=True)
    highest = maps.max((-2, -1), keepdims=True)
    return np.divide(maps, highest, out=np.zeros_like(maps), where=highest > 0)


def outline_boxes(heat: np.ndarray, threshold: float = 0.4) -> list[tuple[int, int, int, int]]:
    """A map (h, w) with values in 0..1 -> (x0, y0, x1, y1) of each contour of its foreground, including those of holes. Ends
    are exclusive and at most w - 1 and h - 1, as in the official code: no box contains the last row or column. Without
    foreground, one empty box."""
    heat = (255 * heat).astype(np.uint8)
    foreground = (heat > int(threshold * heat.max())).astype(np.uint8)
    outlines = cv2.findContours(foreground, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    height, width = heat.shape
    rectangles = map(cv2.boundingRect, outlines)
    return [(x, y, min(x + w, width - 1), min(y + h, height - 1)) for x, y, w, h in rectangles] or [(0, 0, 0, 0)]


def in_boxes(heat: np.ndarray, threshold: float = 0.4) -> np.ndarray:
    """Maps (..., h, w) with values in 0..1 -> (..., h, w) bool: inside any of the `outline_boxes`."""
    inside = np.zeros(heat.shape, bool)
    for index in np.ndindex(heat.shape[:-2]):
        for x0, y0, x1, y1 in outline_boxes(heat[index], threshold):
            inside[index][y0:y1, x0:x1] = True
    return inside


def tight_box(members: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns of the bounding box of a mask (h, w); like `outline_boxes`, it never contains the last row or column of
    the map. None if it is empty."""
    box = []
    for axis in (1, 0):
        (inside,) = np.nonzero(members.any(axis))
        if not len(inside) or inside[0] >= (end := min(inside[-1] + 1, members.shape[1 - axis] - 1)):
            return None
        box.append(slice(int(inside[0]), int(end)))
    return box[0], box[1]
