"""What people hand over in Python, as the loop wants it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .errors import OvssError
from .files import user_path
from .hyperparameters import MOST
from .image import check_image, read_image

DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of more than 8 bits


def as_image(image: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an array of that form, a path, or a picture of Pillow, which is turned as its EXIF tag says; alpha
    is dropped. Raises OvssError for anything else."""
    if isinstance(image, np.ndarray):
        check_image(image)
        return np.ascontiguousarray(image)
    if isinstance(image, str | Path):
        return read_image(user_path(image))
    if isinstance(image, Image.Image):
        return _from_picture(image)
    hint = "; one image at a time" if isinstance(image, list | tuple) else ""
    raise OvssError(
        f"expected an RGB image: a path, a picture of Pillow, or a NumPy array (height, width, 3) of type uint8, not "
        f"{type(image).__name__}{hint}."
    )


def _from_picture(picture: Image.Image) -> np.ndarray:
    if 0 in picture.size:
        raise OvssError(f"expected an RGB image, this one has {picture.height} x {picture.width} pixels.")
    if picture.mode == "F":
        raise OvssError("expected an RGB image, this one is of floating point. Scale it to 0..255 and convert it to uint8.")
    try:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode not in DEEP:
            return np.array(picture.convert("RGB"))
    except Exception as error:  # of damaged files, which are only decoded here, Pillow raises nearly anything
        raise OvssError(f"the image cannot be decoded: {str(error) or type(error).__name__}. Copy it again.") from error
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > 65535:
        raise OvssError(f"the image holds {values.min()} to {values.max()}, not 16 bits. Scale it to 0..255 as uint8.")
    with tempfile.TemporaryDirectory() as folder:  # 16 bits become 8 as they do from a file
        path = Path(folder) / "image.png"
        Image.fromarray(values.astype(np.uint16)).save(path)
        try:
            return read_image(path)
        except OvssError as error:
            raise OvssError(str(error).replace(f"image {path}", "the image")) from error


def as_size(size: Any, name: str = "output_size") -> tuple[int, int] | None:
    """(height, width) in pixels, or None. Raises OvssError for anything else."""
    if size is None:
        return None
    whole = isinstance(size, tuple | list | np.ndarray) and len(size) == 2
    if not whole or not all(isinstance(side, int | np.integer) and not isinstance(side, bool) for side in size):
        raise OvssError(f"{name}={size!r}: expected (height, width), two whole numbers of pixels.")
    if not all(1 <= side <= MOST for side in size):
        raise OvssError(f"{name}={tuple(size)}: expected (height, width), each 1 to {MOST} pixels.")
    return int(size[0]), int(size[1])
