"""Reads, resizes and normalises images as official evaluation code does, with mmcv's cv2 calls, without importing torch."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from .errors import OvssError, reading, unknown
from .files import digest, user_path
from .types import MAX_SIDE

if TYPE_CHECKING:
    from torch import Tensor

# Mean and standard deviation of RGB in 0..255: CLIP's as rounded by SCLIP and its forks, CLIP's exact values, ImageNet's.
STATISTICS = {
    "clip": ((122.771, 116.746, 104.094), (68.501, 66.632, 70.323)),
    "clip_exact": tuple(
        tuple(255 * value for value in values)
        for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # openai/CLIP clip/clip.py
    ),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}

AGAIN = "Copy or download it again."
DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of more than 8 bits
# An image with 99 % of its values below a quarter of the 16-bit range (63 of 255 after division by 256) does not use 16 bits.
DARK = 1 << 14
RESIZE_RULES = ("keep_ratio", "patch_multiple", "square", "square_bilinear", "center_crop", "up_to_patch", "none")


def read_image(path: str | Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, rotated by its EXIF tag. As in cv2, a fourth band (alpha, infrared) is dropped and 16-bit values are
    divided by 256. Raises OvssError for a missing, unreadable or truncated file (cv2 would fill the missing part with grey),
    and for images that `refuse_ambiguous` refuses."""
    with reading(f"image {path}", AGAIN):
        return _read(f"image {path}", Path(path).read_bytes())


def _read(name: str, data: bytes) -> np.ndarray:
    refuse_ambiguous(name, data)
    if not _has_end(data):
        try:
            Image.open(io.BytesIO(data)).load()
        except UnidentifiedImageError as error:
            raise ValueError("Pillow does not know its format" if data else "it is empty") from error
    image = _decode(data, cv2.IMREAD_COLOR)
    if image is None:
        raise OvssError(f"{name} is not an image that OpenCV can decode ({len(data)} bytes). {AGAIN}")
    return np.ascontiguousarray(image[..., ::-1])


def _decode(data: bytes, flag: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    except cv2.error:
        return None


def refuse_ambiguous(name: str, data: bytes) -> None:
    """Raises OvssError for images without an obvious conversion to 8 bits: five bands or more; floating-point, signed or 32-bit
    numbers; 10, 12 or 14 bits; 16 bits of which only the lower part is used (12-bit sensors, reflectances), which cv2's
    division by 256 would turn black. An entirely black image is accepted."""
    is_tiff = data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    if found := _unusual_tiff(data) if is_tiff else _unusual(data):
        hint = "Save it as RGB or grey of 8 bits a band, scaled as your method or data set requires."
        raise OvssError(f"{name} holds {found}, which has no unambiguous conversion to 8 bits. {hint}")


def _unusual(data: bytes) -> str:
    """Describes the pixel values of an image in any format but TIFF; "" for 8 bits."""
    if data[:2] in (b"\xff\xd8", b"BM") or data[:4] in (b"GIF8", b"RIFF"):
        return ""
    if data[:4] == b"\x89PNG" and data[24:25] <= b"\x08":
        return ""
    netpbm = re.match(rb"P[2356]\s+(?:#[^\n]*\n\s*)*\d+\s+\d+\s+(\d+)\s", data)
    if netpbm and int(netpbm[1]) not in (255, 65535):
        return f"values up to {int(netpbm[1])}, neither 8 nor 16 bits"
    return _unusual_values(data)


def _unusual_tiff(data: bytes) -> str:
    """Describes the pixel values of a TIFF file according to its header; "" for 8 bits."""
    file = io.BytesIO(data)
    try:
        directory = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if b"+" in data[:4] else 8])  # BigTIFF has the plus
        file.seek(directory.next)
        directory.load(file)
        bands, bits = int(directory.get(277, 1)), set(directory.get(258, (1,)))
        kinds, colours, extra = set(directory.get(339, (1,))), directory.get(262), directory.get(338, (0,))
    except Exception:  # a damaged file is reported when it is decoded
        return ""
    one_colour = colours in (0, 1) and bands > 1 and not (bands == 2 and extra[0] in (1, 2))  # 1 and 2 are alpha
    if bands > 4 or one_colour:
        return f"{bands} bands that its header does not declare as red, green and blue"
    if colours in (8, 9, 10):
        return "CIE Lab colours"
    if kinds & {2, 3}:
        return f"{'floating point' if 3 in kinds else 'signed'} numbers of {max(bits)} bits"
    if bits - {1, 8, 16} and colours != 3:  # 3 is a palette
        return f"{max(bits)} bits a band"
    return _unusual_values(data) if max(bits) == 16 else ""


def _unusual_values(data: bytes) -> str:
    """Describes the decoded pixel values of an image; "" for 8 bits."""
    stored = _decode(data, cv2.IMREAD_UNCHANGED)
    if stored is None or stored.dtype == np.uint8:
        return ""
    if stored.dtype != np.uint16:
        return f"values of type {stored.dtype}"
    colours = stored[..., :3] if stored.ndim == 3 else stored  # alpha is bright everywhere
    typical = int(np.percentile(colours[colours > 0], 99)) if colours.any() else DARK
    if typical >= DARK:
        return ""
    return f"16 bits a band, but 99 % of its values are below {typical + 1} of 65536 ({typical >> 8} of 255)"


def _has_end(data: bytes) -> bool:
    """Whether a JPEG or PNG file contains its end marker. The test is cheap: Pillow decodes only the files that fail it."""
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    if data.startswith(b"\x89PNG"):
        return b"IEND" in data[-64:]
    return False


def check_image(image: np.ndarray) -> None:
    """Raises OvssError for an array that is not an 8-bit RGB image."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        hint = ""
        if image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 4)):
            hint = " For grey images or alpha, pass a Pillow image: Image.fromarray(array)."
        elif image.dtype != np.uint8:
            hint = " Scale it to 0..255 and round: array.round().astype(numpy.uint8)."
        found = f"{image.shape} of type {image.dtype}"
        raise OvssError(f"expected an RGB image (height, width, 3) of type uint8, not {found}.{hint}")


def resize(image: np.ndarray, rule: str, short_side: int, long_side: int, patch: int) -> np.ndarray:
    """Resizes (H, W, 3) uint8 by a named rule.

    `keep_ratio`: the factor min(long_side/long, short_side/short), cv2 bilinear, sides int(x*f + 0.5) (mmcv's `Resize`).
    `patch_multiple`: short side to short_side, then each side to the nearest multiple of `patch`, Pillow bicubic (CLIPer).
    `square`: both sides become short_side, Pillow bicubic with antialiasing (GEM's protocol).
    `square_bilinear`: both sides become short_side, cv2 bilinear (CLIP-DIY).
    `center_crop`: short side to short_side, Pillow bicubic, then the central square (CLIPtrase; torchvision's rounding).
    `up_to_patch`: each side up to the next multiple of `patch`, Pillow bicubic (training-free TagCLIP).
    `none`: unchanged.
    """
    check_image(image)
    if not all(isinstance(side, int) and side > 0 for side in (short_side, long_side, patch)):
        raise OvssError(f"short_side={short_side}, long_side={long_side}, patch={patch}: expected positive integers.")
    height, width = image.shape[:2]
    if rule == "keep_ratio":
        factor = min(long_side / max(height, width), short_side / min(height, width))
        height, width = (max(int(side * factor + 0.5), 1) for side in (height, width))
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    if rule == "square_bilinear":
        return cv2.resize(image, (short_side, short_side), interpolation=cv2.INTER_LINEAR)
    if rule == "none":
        return image
    if rule == "center_crop":
        return _center_crop(Image.fromarray(image), short_side, Image.Resampling.BICUBIC)
    if rule == "up_to_patch":
        height, width = (side + -side % patch for side in (height, width))
    elif rule == "patch_multiple":
        factor = short_side / min(height, width)
        height, width = (max(int(side * factor / patch + 0.5), 1) * patch for side in (height, width))
    elif rule == "square":
        height = width = short_side
    else:
        raise unknown("resize rule", rule, RESIZE_RULES)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def result_size(scored_at: str, original: tuple[int, int], resized: tuple[int, int]) -> tuple[int, int]:
    """(height, width) at which a label map is compared with the ground truth: `original`, `resized` (the network's input), or
    `short_448` (CLIP-DIY: the original resized to a short side of 448)."""
    if scored_at == "short_448":
        return _short_side(original, 448)
    return original if scored_at == "original" else resized


def resize_target(target: np.ndarray, rule: str, size: tuple[int, int]) -> np.ndarray:
    """Ground truth (H, W), resized by nearest neighbour to the `size` of a result; for `center_crop`, its central square."""
    if target.shape == size and rule != "center_crop":
        return target
    picture = Image.fromarray(target.astype(np.int32))
    if rule == "center_crop":
        return _center_crop(picture, size[0], Image.Resampling.NEAREST)
    return np.array(picture.resize((size[1], size[0]), Image.Resampling.NEAREST))


def _short_side(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """torchvision's `Resize` of the short side: the long side is rounded down."""
    long = int(short_side * max(size) / min(size))
    return (short_side, long) if size[0] <= size[1] else (long, short_side)


def _center_crop(picture: Image.Image, side: int, resample: Image.Resampling) -> np.ndarray:
    height, width = _short_side((picture.height, picture.width), side)
    top, left = round((height - side) / 2), round((width - side) / 2)
    return np.array(picture.resize((width, height), resample))[top : top + side, left : left + side]


def normalize(image: np.ndarray, statistics: str) -> Tensor:
    """(3, H, W) float32: (x - mean) / std of uint8 RGB in 0..255. Computed in NumPy: in reader threads, PyTorch would leave
    OpenMP threads behind, which slow down all its parallel code once they outnumber the cores (composition threefold)."""
    import torch

    check_image(image)
    if statistics not in STATISTICS:
        raise unknown("statistics", statistics, STATISTICS)
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in STATISTICS[statistics])
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    pixels -= mean
    pixels /= std
    return torch.from_numpy(pixels)


def as_image(image: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an array, a path or a Pillow image (rotated by its EXIF tag, without alpha). Raises OvssError for
    anything else."""
    if isinstance(image, np.ndarray):
        check_image(image)
        return np.ascontiguousarray(image)
    if isinstance(image, str | Path):
        return read_image(user_path(image))
    if isinstance(image, Image.Image):
        return _from_picture(image)
    found = type(image).__name__ + ("; one image at a time" if isinstance(image, list | tuple) else "")
    raise OvssError(
        f"expected an RGB image: a path, a Pillow image, or an array (height, width, 3) of type uint8, not {found}."
    )


def _from_picture(picture: Image.Image) -> np.ndarray:
    if 0 in picture.size:
        raise OvssError(f"expected an RGB image, this one has {picture.height} x {picture.width} pixels.")
    if picture.mode == "F":
        raise OvssError("expected an RGB image, this one is floating point. Scale it to 0..255 and convert it to uint8.")
    with reading("the image", AGAIN):  # Pillow decodes a file when its pixels are first used
        picture = ImageOps.exif_transpose(picture)
        if picture.mode not in DEEP:
            return np.array(picture.convert("RGB"))
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > 65535:
        raise OvssError(f"the image holds {values.min()} to {values.max()}, not 16 bits. Scale it to 0..255 as uint8.")
    buffer = io.BytesIO()  # converts to 8 bits in the same way as for files
    Image.fromarray(values.astype(np.uint16)).save(buffer, "PNG")
    return _read("the image", buffer.getvalue())


def as_size(size: Any, name: str = "output_size") -> tuple[int, int] | None:
    """(height, width) in pixels, or None. Raises OvssError for anything else."""
    if size is None:
        return None
    is_pair = isinstance(size, tuple | list | np.ndarray) and len(size) == 2
    whole = is_pair and all(isinstance(side, int | np.integer) and not isinstance(side, bool) for side in size)
    if not whole or not all(1 <= side <= MAX_SIDE for side in size):
        raise OvssError(f"{name}={size!r}: expected (height, width), two integers of 1 to {MAX_SIDE} pixels.")
    return int(size[0]), int(size[1])


def image_key(image: np.ndarray) -> str:
    """SHA-256 of an image's shape and bytes: its key in folders of regions and features."""
    return digest(repr(image.shape), image.tobytes())
