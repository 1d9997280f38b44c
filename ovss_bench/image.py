"""Reading, resizing and normalising images as the official evaluation code does (mmcv on cv2)."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import OvssError

# Mean and standard deviation of RGB in 0..255: CLIP's as rounded by the SCLIP family (clip.md section 2), MaskCLIP's own.
STATISTICS = {
    "clip": ((122.771, 116.746, 104.094), (68.501, 66.632, 70.323)),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}


def read_image(path: str | Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB: any mode and depth that cv2 reads, turned as its EXIF tag says, alpha dropped.

    Raises OvssError for a missing, unreadable or truncated file (of which cv2 would paint the missing part grey).
    """
    try:
        data = Path(path).read_bytes()
        if not _has_end(data):
            Image.open(io.BytesIO(data)).load()
    except OSError as error:
        raise OvssError(f"image {path} cannot be read: {error}. Copy or download it again.") from error
    try:
        image = mmcv.imfrombytes(data, flag="color", backend="cv2") if data else None
    except cv2.error:
        image = None
    if image is None:
        raise OvssError(f"image {path} is not an image that OpenCV can decode ({len(data)} bytes). Copy or download it again.")
    return np.ascontiguousarray(image[..., ::-1])


def _has_end(data: bytes) -> bool:
    """Whether the end marker of a JPEG or PNG file is there; a cheap test, a file that fails it is decoded by Pillow to be
    sure."""
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    if data.startswith(b"\x89PNG"):
        return b"IEND" in data[-64:]
    return False


def resize(image: np.ndarray, rule: str, short_side: int, long_side: int) -> np.ndarray:
    """Resizes (H, W, 3) uint8 by a named rule.

    `keep_ratio`: the factor min(long_side/long, short_side/short), cv2 bilinear, sides int(x*f + 0.5) (mmcv's `Resize`).
    `square`: both sides become short_side, Pillow bicubic with antialiasing (GEM's own protocol).
    `none`: unchanged.
    """
    if rule == "keep_ratio":
        factor = min(long_side / max(image.shape[:2]), short_side / min(image.shape[:2]))
        height, width = (max(int(side * factor + 0.5), 1) for side in image.shape[:2])
        return mmcv.imresize(image, (width, height), interpolation="bilinear", backend="cv2")
    if rule == "square":
        return np.array(Image.fromarray(image).resize((short_side, short_side), Image.Resampling.BICUBIC))
    return image


def normalize(image: np.ndarray, statistics: str) -> Tensor:
    """(3, H, W) float32: (x - mean) / std of uint8 RGB in 0..255."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in STATISTICS[statistics])
    return (torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() - mean) / std
