"""`build_segmentor`: a segmentor by name, with its recipe and its auxiliary models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..auxiliary import SOURCES
from ..auxiliary.sources import describe, named_source
from ..config.plugin_errors import plugin_errors
from ..config.recipe import Recipe, compose_recipe, segmentor_config
from ..encoders.clip import DenseCLIP
from ..encoders.clip_loading import load_spec
from ..encoders.clip_spec import ClipSpec
from ..encoders.no_clip import NoCLIP
from ..errors import OvssError
from ..torch_defaults import ordinary_torch
from ..vocabulary import Vocabulary
from .base import Segmentor
from .hooks import check_declarations


@ordinary_torch()
def build_segmentor(
    name: str,
    *,
    clip: DenseCLIP | str | Path | None = None,
    vocabulary: Vocabulary | Sequence[str | Sequence[str]],
    **overrides: Any,
) -> Segmentor:
    """A segmentor of configs/segmentor, or a registered one, with its recipe for this CLIP.

    `clip`: a loaded CLIP, or NAME, NAME:TAG or a file to load in the recipe's precision; a segmentor that uses none takes only
    the device of a loaded one. `vocabulary`: a Vocabulary, or the names of the classes (a text or a list of synonyms for each),
    used with the recipe's templates.

    Other keywords override recipe values and hyperparameters. `vfm`, `regions`, `foreground`, `diffusion`, `sam`, `bank` and
    `concepts` take a name or the model itself: `vfm` a callable WindowBatch -> (B, C, h, w) features; `regions` image (H, W, 3)
    uint8 -> (H, W) integer ids, 0 for unsegmented; `foreground` image -> (H, W) in 0..1; `diffusion` image -> list of
    (heads, N, N) attention maps; `sam` image -> `Encoded` of auxiliary/sam.py; `bank` a RegionBank; `concepts` (image,
    K prompts) -> logits of masks (K, N, h, w), semantic maps (K, h, w), objects (K, N) and presence (K,). `text` and `refine`
    add steps of other methods, one or a list, in order (configs/step). Raises OvssError for unknown names and invalid values.
    """
    given = {kind: overrides[kind] for kind in SOURCES if not isinstance(overrides.get(kind), str | None)}
    overrides |= {kind: describe(source) for kind, source in given.items()}
    for kind, source in given.items():
        if not callable(source) and kind != "bank":
            raise OvssError(f"{kind}={source!r}: expected a name, or a callable (see build_segmentor).")
    if not segmentor_config(name)[1].uses_clip:
        clip = NoCLIP(next(filter(None, (getattr(model, "device", None) for model in (*given.values(), clip))), "cpu"))
    if not isinstance(clip, DenseCLIP | str | Path):
        raise OvssError(f"clip: expected a loaded CLIP, its name or a file, not {type(clip).__name__}.")
    chosen = clip if isinstance(clip, DenseCLIP) else ClipSpec.of(clip)
    recipe = compose_recipe(
        name, clip=chosen.name if isinstance(chosen, DenseCLIP) else chosen.label, overrides=overrides, origin="argument"
    )
    loaded = chosen if isinstance(chosen, DenseCLIP) else load_spec(chosen, recipe.precision)
    if isinstance(vocabulary, list | tuple):
        if "names" in overrides:
            raise OvssError(
                f"names={overrides['names']!r} has no effect: the vocabulary lists the names. Leave it out, or give "
                "dataset.vocabulary(names) as the vocabulary."
            )
        vocabulary = Vocabulary.from_names(vocabulary, templates=recipe.templates)
    if not isinstance(vocabulary, Vocabulary):
        raise OvssError(f"vocabulary: expected a Vocabulary or a list of class names, not {type(vocabulary).__name__}.")
    if overrides.get("templates", vocabulary.templates) != vocabulary.templates:
        raise OvssError(
            f"templates={overrides['templates']!r} has no effect: the vocabulary was made with {vocabulary.templates!r}. "
            "Make the vocabulary with these templates, or give a list of class names as the vocabulary."
        )
    return instantiate(segmentor_config(recipe.segmentor)[1], loaded, vocabulary, recipe, given)


def instantiate(
    method: type[Segmentor], clip: DenseCLIP, vocabulary: Vocabulary, recipe: Recipe, given: Mapping[str, Any] | None = None
) -> Segmentor:
    """The method with a composed recipe and its auxiliary models: those `given`, else those that the recipe names."""
    values, sources = recipe.hyperparameters, dict(given or {})
    for kind in SOURCES:
        if values.get(kind) and kind not in sources:
            precision = "fp32" if kind in method.in_fp32 else clip.precision
            sources[kind] = named_source(kind, values[kind], values.get("feature"), precision, str(clip.device))
    with plugin_errors(f"segmentor '{recipe.segmentor}'", method):
        segmentor = method(clip, vocabulary, recipe, sources)
    return check_declarations(segmentor)
