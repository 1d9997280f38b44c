"""What methods need beside CLIP, by kind and name: vision features, region and foreground maps, diffusion attention, banks."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..files import digest, write_atomic

SOURCES = ("vfm", "regions", "foreground", "diffusion", "bank")


@lru_cache(maxsize=8)
def load_source(kind: str, name: str, feature: str | None, precision: str, device: str) -> Any:
    """The thing that a recipe names: an entry of configs/vision, regions, foreground or diffusion, or a file. Segmentors that
    name the same share it. `feature` is the rule of `vision.py` by which a vision encoder gives features."""
    if kind == "vfm":
        from .vision import load_vision

        return load_vision(name, feature=feature, precision=precision, device=device)
    if kind == "regions":
        from .regions import load_regions

        return load_regions(name, device=device)
    if kind == "foreground":
        from .foreground import load_foreground

        return load_foreground(name, device=device)
    if kind == "diffusion":
        from .diffusion import load_diffusion

        return load_diffusion(name, precision=precision, device=device)
    from .bank import load_bank

    return load_bank(name, device=device)


def describe(source: Any) -> str:
    """What a recipe notes of a source that was given as an object: its digest if it has one, else what it is called."""
    own = getattr(source, "digest", None)
    kind = source if hasattr(source, "__qualname__") else type(source)
    return f"given: {own[:16] if own else f'{kind.__module__}.{kind.__qualname__}'}"


class Cached:
    """A source of one array per image (region map, foreground map, ...) that keeps its results in a folder, by content.

    The key is made of the source's `digest` and the image's bytes, so another setting or another image never gets them.
    """

    def __init__(self, source: Callable[[np.ndarray], np.ndarray], folder: str | Path) -> None:
        self.source, self.folder, self.digest = source, Path(folder), source.digest

    def __call__(self, image: np.ndarray) -> np.ndarray:
        key = digest(self.digest, repr(image.shape), image.tobytes())
        path = self.folder / key[:2] / f"{key}.npz"
        if path.is_file():
            with np.load(path) as file:
                return file["array"]
        array = self.source(image)
        write_atomic(path, lambda temporary: np.savez_compressed(temporary, array=array))
        return array
