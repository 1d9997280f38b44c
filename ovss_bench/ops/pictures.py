"""Resampling of pictures and masks by the libraries that the official code uses, and clean-up of masks."""

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from PIL import Image


def stretch(picture: np.ndarray, size: tuple[int, int], rule: Literal["lanczos", "bicubic", "bilinear"]) -> np.ndarray:
    """(h, w) or (h, w, 3) uint8 -> (H, W, ...), by Pillow (Lanczos, bicubic; antialiased) or OpenCV (bilinear)."""
    height, width = size
    if rule == "bilinear":
        return cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling[rule.upper()]))


def cleaned(mask: np.ndarray, original: np.ndarray, least: float = 0.5) -> np.ndarray:
    """A refined mask (H, W) bool with its holes filled; empty if its IoU with the original mask is below `least`."""
    from scipy.ndimage import binary_fill_holes

    filled = np.asarray(binary_fill_holes(mask))
    union = np.count_nonzero(filled | original)
    return filled & (np.count_nonzero(filled & original) >= least * union)


def masks_at(masks: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Masks (h, w) bool -> (n, H, W) bool: above half of the maximum after bicubic resizing, so an empty mask stays empty."""
    grey = [stretch(mask.astype(np.uint8) * 255, size, "bicubic") for mask in masks]
    return np.stack([each > each.max() / 2 for each in grey]) if len(grey) else np.zeros((0, *size), bool)


def in_frame(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) of an image of this size in SAM's square frame: its long side is `side`."""
    factor = side / max(size)
    return max(int(size[0] * factor + 0.5), 1), max(int(size[1] * factor + 0.5), 1)
