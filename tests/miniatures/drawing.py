"""What all miniatures are made of: drawn scenes whose pieces stand for given classes, and archives."""

import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ovss_bench.datasets.demo.scenes import DEMO_CLOTHS, GROUNDS, draw_scene, void_border


def scene(seed: int, values: Sequence[int], size: tuple[int, int] = (96, 128), outline: int | None = None):
    """A scene of `size` (height, width): its image (H, W, 3) uint8 RGB and its label map int32, in which the ground is
    `values[0]` and the pieces are the others (up to about five show); `outline` is the value between pieces."""
    rng = np.random.RandomState(seed)
    cloths = [DEMO_CLOTHS[value % len(DEMO_CLOTHS)] for value in values[1:]]
    image, index = draw_scene(rng, *size, cloths, seed % len(GROUNDS), radius=(16, 30))
    label = np.array(values, np.int32)[index]
    if outline is not None:
        label[void_border(index)] = outline
    return image, label


def encoded(array: np.ndarray, format: str, palette: Sequence[int] | None = None, **options) -> bytes:
    """An image file of the array: uint8 (H, W) or (H, W, 3), uint16 (H, W)."""
    image = Image.fromarray(array)
    if palette is not None:
        image = image.convert("L")
        image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w") -> None:
    """`mode` as tarfile has it: w, w:gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
