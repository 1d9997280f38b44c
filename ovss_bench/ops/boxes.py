"""Bounding boxes of the outlines in heat maps (CLIP-ES, FreeCP)."""

import cv2
import numpy as np


def outline_boxes(heat: np.ndarray, threshold: float = 0.4) -> list[tuple[int, int, int, int]]:
    """A map (h, w) with values in 0..1 -> (x0, y0, x1, y1) of each outline of its foreground, those of holes included. The ends
    are exclusive and at most w - 1 and h - 1, as in the official codes, so the last row and column are in no box. One empty box
    if there is no foreground."""
    heat = (255 * heat).astype(np.uint8)
    foreground = (heat > int(threshold * heat.max())).astype(np.uint8)
    outlines = cv2.findContours(foreground, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    height, width = heat.shape
    rectangles = map(cv2.boundingRect, outlines)
    return [(x, y, min(x + w, width - 1), min(y + h, height - 1)) for x, y, w, h in rectangles] or [(0, 0, 0, 0)]


def box_masks(heat: np.ndarray, threshold: float = 0.4) -> np.ndarray:
    """Maps (..., h, w) -> (..., h, w) bool: the union of the boxes of each."""
    masks = np.zeros(heat.shape, bool)
    for index in np.ndindex(heat.shape[:-2]):
        for x0, y0, x1, y1 in outline_boxes(heat[index], threshold):
            masks[index][y0:y1, x0:x1] = True
    return masks
