"""`build_segmentor`: a segmentor by name, with its recipe and what it needs beside CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..encoders.clip import DenseCLIP
from ..encoders.sources import SOURCES, describe, named_source
from ..ordinary import ordinary_torch
from ..recipe import Recipe, compose_recipe, segmentor_config
from ..vocabulary import Vocabulary
from .base import Segmentor


@ordinary_torch()
def build_segmentor(name: str, *, clip: DenseCLIP, vocabulary: Vocabulary, **overrides: Any) -> Segmentor:
    """A segmentor of configs/segmentor, or a registered one, with its recipe for this CLIP.

    Keywords override recipe values and hyperparameters. `vfm`, `regions`, `foreground`, `diffusion` and `bank` take a name or
    the thing itself: `vfm` a callable WindowBatch -> (B, C, h, w) features; `regions` image (H, W, 3) uint8 -> (H, W) integer
    ids, 0 for unsegmented; `foreground` image -> (H, W) in 0..1; `diffusion` image -> list of (heads, N, N) attention maps;
    `bank` a RegionBank. Raises OvssError for unknown names and bad values.
    """
    given = {kind: overrides[kind] for kind in SOURCES if not isinstance(overrides.get(kind), str | None)}
    overrides |= {kind: describe(source) for kind, source in given.items()}
    recipe = compose_recipe(name, clip=clip.name, overrides=overrides, origin="argument")
    return instantiate(segmentor_config(name)[1], clip, vocabulary, recipe, given)


def instantiate(
    method: type[Segmentor], clip: DenseCLIP, vocabulary: Vocabulary, recipe: Recipe, given: Mapping[str, Any] | None = None
) -> Segmentor:
    """The method with a composed recipe; what is not `given` of its sources is that which the recipe names."""
    own = recipe.hyperparameters
    sources = dict(given or {})
    for kind in SOURCES:
        if own.get(kind) and kind not in sources:
            sources[kind] = named_source(kind, own[kind], own.get("feature"), clip.precision, str(clip.device))
    return method(clip, vocabulary, recipe, sources)
