"""Prompts for SAM from a coarse segmentation (Trident)."""

from collections.abc import Iterator

import numpy as np


def class_prompts(
    labels: np.ndarray, scores: np.ndarray, least: float = 0.0, minimal_area: int = 1
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each class of labels (h, w) with a score of at least `least` somewhere: its number, and for each of its 8-connected
    components of `minimal_area` pixels or more the box (n, 4), as first and last (x1, y1, x2, y2), and the place (n, 2) of the
    best score, as (x, y). `scores` (C, h, w); labels beyond C are no class."""
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
