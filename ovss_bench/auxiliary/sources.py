"""Auxiliary models, which methods use besides CLIP, by kind and name; and the cache of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ..files import code, digest, user_path
from ..image import image_key
from ..types import ImageContext
from . import MODULES

STAGES = {"vfm": "vision encoder", "regions": "regions", "foreground": "foreground", "diffusion": "diffusion", "sam": "SAM"}


class NamedSource:
    """An auxiliary model by name: an entry of configs/vision, regions, foreground, diffusion, sam or concepts, or a path.
    It is loaded on first use; attributes and calls are those of the loaded model. `feature`: see `VisionEncoder`."""

    def __init__(self, kind: str, name: str, feature: str | None, precision: str, device: str) -> None:
        self.named = (kind, name, feature, precision, device)

    @cached_property
    def loaded(self) -> Any:
        kind, name, feature, precision, device = self.named
        options: dict[str, dict[str, Any]] = {each: {"precision": precision} for each in ("diffusion", "concepts")}
        options["vfm"] = {"feature": feature, "precision": precision}
        return _function("load", kind)(name, device=device, **options.get(kind, {}))

    def __call__(self, *arguments: Any) -> Any:
        return self.loaded(*arguments)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.loaded, attribute)


def check_source(kind: str, name: str) -> None:
    """Raises the OvssError that loading a model by this name would, as far as is known without its weights."""
    _function("find", kind)(name)


def _function(verb: str, kind: str) -> Callable[..., Any]:
    module = MODULES[kind]
    return getattr(import_module(f"ovss_bench.{module}"), f"{verb}_{module.rpartition('.')[2]}")


def named_source(kind: str, name: str, feature: str | None, precision: str, device: str) -> NamedSource:
    """The model of a name, which segmentors share unless its file or folder has changed."""
    file = user_path(str(name).removesuffix("@image"))  # see encoders.vision.OncePerImage
    changed = file.stat().st_mtime_ns if file.exists() else None
    feature = feature if kind == "vfm" else None
    return _named_source(kind, name, feature, precision, device, changed)


@lru_cache(maxsize=64)
def _named_source(kind: str, name: str, feature: str | None, precision: str, device: str, changed: int | None) -> NamedSource:
    return NamedSource(kind, name, feature, precision, device)


def stages_of(sources: Mapping[str, Any]) -> dict[int, str]:
    """The stages in which the calls of auxiliary models are measured, see `Stages.sources`."""
    return {id(source): STAGES[kind] for kind, source in sources.items() if kind in STAGES}


def describe(source: Any) -> str:
    """How a recipe records a model that was passed as an object: by its digest if it has one, else by its qualified name."""
    known = getattr(source, "digest", None)
    kind = source if hasattr(source, "__qualname__") else type(source)
    return f"given: {known[:16] if known else f'{kind.__module__}.{kind.__qualname__}'}"


def stated(name: str | None, source: Any) -> dict[str, Any]:
    """A result's record of the model that its recipe calls `name`; for a folder of region maps, also their generator."""
    facts = {"name": name, "digest": getattr(source, "digest", None), "stand_in": getattr(source, "stand_in", False)}
    more = {key: getattr(source, key, None) for key in ("generator", "unconfirmed")}
    return facts | {key: value for key, value in more.items() if value is not None}


class FeatureCache:
    """Keeps arrays that depend on one image in a folder, by the digest of `maker` (weights, settings), code and image."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = user_path(folder)

    def __call__(self, maker: str, image: np.ndarray, compute: Callable[[], Any]) -> Any:
        import torch  # deferred: tools that read results import this module for its names only

        from ..cache import read_entry, write_entry

        # `ImageContext.once` asks for outputs of auxiliary models alone: editing a method does not invalidate them.
        methods = () if compute.__module__ == ImageContext.__module__ else ("segmentors",)
        key = digest(maker, code("auxiliary", "encoders", "ops", "image.py", *methods), image_key(image))
        path = self.folder / key[:2] / f"{key}.safetensors"
        if (entry := read_entry(path)) is not None:
            with np.load(BytesIO(entry["npz"].numpy().tobytes())) as file:
                return file["array"]
        array = compute()
        if isinstance(array, np.ndarray):  # lists of attention maps are too large to keep
            packed = BytesIO()
            np.savez_compressed(packed, array=array)
            write_entry(path, {"npz": torch.frombuffer(packed.getbuffer(), dtype=torch.uint8)})
        return array
