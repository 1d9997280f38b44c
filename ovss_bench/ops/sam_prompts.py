"""Prompts for SAM from a coarse segmentation (Trident)."""

from collections.abc import Iterator

import numpy as np


def class_prompts(
    labels: np.ndarray, scores: np.ndarray, least: float = 0.0, minimal_area: int = 1
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each class in `labels` (h, w) whose `scores` (C, h, w) reach `least`: its index; and of its 8-connected components of
    at least `minimal_area` pixels the boxes (n, 4), as inclusive (x1, y1, x2, y2), and the positions (n, 2) of the highest
    score, as (x, y). Labels of C and above belong to no class."""
    from skimage.measure import label, regionprops

    for c, of_class in enumerate(scores):
        if of_class.max() < least or not (labels == c).any():
            continue
        boxes, points = [], []
        for component in regionprops(np.asarray(label(labels == c, connectivity=2))):
            if component.area < minimal_area:
                continue
            top, left, bottom, right = component.bbox
            inside = component.image * of_class[top:bottom, left:right]
            y, x = np.unravel_index(inside.argmax(), inside.shape)
            boxes.append((left, top, right - 1, bottom - 1))
            points.append((left + x, top + y))
        if boxes:
            yield c, np.array(boxes, np.float32), np.array(points, np.float32)
