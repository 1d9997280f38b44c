"""What methods need beside CLIP, by kind and name: vision features, region and foreground maps, diffusion attention, banks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ..files import code, digest, user_path
from ..image import image_key

# What a method may take beside CLIP, and the module whose function load_<its last part> loads it. A run imports what it needs,
# and only that code counts for it (runs/code.py).
MODULES = {
    "vfm": "encoders.vision",
    "regions": "auxiliary.regions",
    "foreground": "auxiliary.foreground",
    "diffusion": "encoders.diffusion",
    "bank": "auxiliary.bank",
}
SOURCES = tuple(MODULES)


class NamedSource:
    """The thing that a recipe names: an entry of configs/vision, regions, foreground or diffusion, or a file. It is loaded when
    it is first used, so that a method runs as far as it can without; then it is that thing. `feature` is the rule of
    `vision.py` by which a vision encoder gives features."""

    def __init__(self, kind: str, name: str, feature: str | None, precision: str, device: str) -> None:
        self.named = (kind, name, feature, precision, device)

    @cached_property
    def loaded(self) -> Any:
        return _load(*self.named)

    def __call__(self, *arguments: Any) -> Any:
        return self.loaded(*arguments)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.loaded, attribute)


def named_source(kind: str, name: str, feature: str | None, precision: str, device: str) -> NamedSource:
    """Segmentors that name the same share it, unless its file or folder has changed."""
    changed = Path(name).stat().st_mtime_ns if Path(name).exists() else None
    return _named_source(kind, name, feature, precision, device, changed)


@lru_cache(maxsize=64)
def _named_source(kind: str, name: str, feature: str | None, precision: str, device: str, changed: int | None) -> NamedSource:
    return NamedSource(kind, name, feature, precision, device)


def _load(kind: str, name: str, feature: str | None, precision: str, device: str) -> Any:
    module = MODULES[kind]
    load = getattr(import_module(f"ovss_bench.{module}"), f"load_{module.rpartition('.')[2]}")
    options = {"vfm": {"feature": feature, "precision": precision}, "diffusion": {"precision": precision}}
    return load(name, device=device, **options.get(kind, {}))


def describe(source: Any) -> str:
    """What a recipe notes of a source that was given as an object: its digest if it has one, else what it is called."""
    own = getattr(source, "digest", None)
    kind = source if hasattr(source, "__qualname__") else type(source)
    return f"given: {own[:16] if own else f'{kind.__module__}.{kind.__qualname__}'}"


def stated(name: str | None, source: Any) -> dict[str, Any]:
    """What a result says of a source that its recipe calls `name`. Of region maps in a folder, also whose they are."""
    facts = {"name": name, "digest": getattr(source, "digest", None), "stand_in": getattr(source, "stand_in", False)}
    more = {key: getattr(source, key, None) for key in ("generator", "unconfirmed")}
    return facts | {key: value for key, value in more.items() if value is not None}


class FeatureCache:
    """Keeps arrays that depend on an image alone in a folder, by content, so that later runs find them.

    The key is made of a digest of what made the array, of the code, and of the image's bytes: another setting or another image
    never gets it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = user_path(folder)

    def __call__(self, maker: str, image: np.ndarray, compute: Callable[[], Any]) -> Any:
        import torch  # tools that read results import this module for its names only

        from ..cache import read_entry, write_entry

        key = digest(maker, code("auxiliary", "encoders", "ops", "segmentors", "image.py"), image_key(image))
        path = self.folder / key[:2] / f"{key}.safetensors"
        entry = read_entry(path)
        if entry is not None:
            with np.load(BytesIO(entry["npz"].numpy())) as file:
                return file["array"]
        array = compute()
        if isinstance(array, np.ndarray):  # lists of attention maps are too large to keep
            packed = BytesIO()
            np.savez_compressed(packed, array=array)
            write_entry(path, {"npz": torch.frombuffer(packed.getbuffer(), dtype=torch.uint8)})
        return array
