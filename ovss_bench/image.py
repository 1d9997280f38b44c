"""Reading, resizing and normalising images as the official evaluation code does: what mmcv does with cv2, without mmcv, which
imports torch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from .errors import OvssError, unknown

if TYPE_CHECKING:
    from torch import Tensor

# Mean and standard deviation of RGB in 0..255: CLIP's as the SCLIP family rounds them (clip.md section 2), exact, ImageNet's.
STATISTICS = {
    "clip": ((122.771, 116.746, 104.094), (68.501, 66.632, 70.323)),
    "clip_exact": tuple(
        tuple(255 * value for value in values)
        for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # openai/CLIP clip/clip.py
    ),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}

RESIZE_RULES = ("keep_ratio", "patch_multiple", "square", "square_bilinear", "center_crop", "none")


def read_image(path: str | Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB: any mode and depth that cv2 reads, turned as its EXIF tag says, alpha dropped.

    Raises OvssError for a missing, unreadable or truncated file (of which cv2 would paint the missing part grey).
    """
    try:
        data = Path(path).read_bytes()
        if not _has_end(data):
            Image.open(io.BytesIO(data)).load()
    except Exception as error:  # of damaged files Pillow raises nearly anything
        reason = str(error) or type(error).__name__
        raise OvssError(f"image {path} cannot be read: {reason}. Copy or download it again.") from error
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
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


def check_image(image: np.ndarray) -> None:
    """Raises OvssError for an array that is no RGB image of 8 bits."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        hint = ""
        if image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 4)):
            hint = " A picture of Pillow may be grey or have alpha: Image.fromarray(array)."
        elif image.dtype != np.uint8:
            hint = " Scale it to 0..255 and round: array.round().astype(numpy.uint8)."
        raise OvssError(
            f"expected an RGB image (height, width, 3) of type uint8, not {image.shape} of type {image.dtype}.{hint}"
        )


def resize(image: np.ndarray, rule: str, short_side: int, long_side: int, patch: int) -> np.ndarray:
    """Resizes (H, W, 3) uint8 by a named rule.

    `keep_ratio`: the factor min(long_side/long, short_side/short), cv2 bilinear, sides int(x*f + 0.5) (mmcv's `Resize`).
    `patch_multiple`: each side to the multiple of `patch` nearest to its length at a short side of short_side, Pillow bicubic
    (CLIPer).
    `square`: both sides become short_side, Pillow bicubic with antialiasing (GEM's own protocol).
    `square_bilinear`: both sides become short_side, cv2 bilinear (CLIP-DIY).
    `center_crop`: short side to short_side, Pillow bicubic, then the square in the middle (CLIPtrase; torchvision's rounding).
    `none`: unchanged.
    """
    check_image(image)
    if not all(isinstance(side, int) and side > 0 for side in (short_side, long_side, patch)):
        raise OvssError(f"short_side={short_side}, long_side={long_side}, patch={patch}: expected positive whole numbers.")
    height, width = image.shape[:2]
    if rule == "keep_ratio":
        factor = min(long_side / max(height, width), short_side / min(height, width))
        height, width = (max(int(side * factor + 0.5), 1) for side in (height, width))
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    if rule == "square_bilinear":
        return cv2.resize(image, (short_side, short_side), interpolation=cv2.INTER_LINEAR)
    if rule == "none":
        return image
    picture = Image.fromarray(image)
    if rule == "square":
        return np.array(picture.resize((short_side, short_side), Image.Resampling.BICUBIC))
    if rule == "patch_multiple":
        factor = short_side / min(height, width)
        height, width = (max(int(side * factor / patch + 0.5), 1) * patch for side in (height, width))
        return np.array(picture.resize((width, height), Image.Resampling.BICUBIC))
    if rule == "center_crop":
        return _center_crop(picture, short_side, Image.Resampling.BICUBIC)
    raise unknown("resize rule", rule, RESIZE_RULES)


def result_size(scored_at: str, original: tuple[int, int], resized: tuple[int, int]) -> tuple[int, int]:
    """(height, width) at which a label map is compared with the truth: `original`, `resized` (what the network sees), or
    `short_448` (CLIP-DIY: the truth at a short side of 448)."""
    if scored_at == "short_448":
        return _short_side(original, 448)
    return original if scored_at == "original" else resized


def resize_truth(truth: np.ndarray, rule: str, size: tuple[int, int]) -> np.ndarray:
    """Labels (H, W) at the original size -> at the `size` of a result, nearest: the middle square for an image resized by
    `center_crop`, else the whole."""
    if truth.shape == size and rule != "center_crop":
        return truth
    picture = Image.fromarray(truth.astype(np.int32))
    if rule == "center_crop":
        return _center_crop(picture, size[0], Image.Resampling.NEAREST)
    return np.array(picture.resize(size[::-1], Image.Resampling.NEAREST))


def _short_side(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """torchvision's `Resize` of the short side: the long one is cut to whole pixels."""
    long = int(short_side * max(size) / min(size))
    return (short_side, long) if size[0] <= size[1] else (long, short_side)


def _center_crop(picture: Image.Image, side: int, filter: Image.Resampling) -> np.ndarray:
    height, width = _short_side((picture.height, picture.width), side)
    top, left = round((height - side) / 2), round((width - side) / 2)
    return np.array(picture.resize((width, height), filter))[top : top + side, left : left + side]


def normalize(image: np.ndarray, statistics: str) -> Tensor:
    """(3, H, W) float32: (x - mean) / std of uint8 RGB in 0..255.

    In NumPy, since PyTorch's work in a reader thread leaves threads of OpenMP behind; once there are more of them than cores,
    all that PyTorch does in parallel waits for them to wake up (a composition took three times as long).
    """
    import torch

    check_image(image)
    if statistics not in STATISTICS:
        raise unknown("statistics", statistics, STATISTICS)
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in STATISTICS[statistics])
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    pixels -= mean
    pixels /= std
    return torch.from_numpy(pixels)
