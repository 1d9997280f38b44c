"""A case for every registered method: its full cost for one image in memory, against the bare encoder passes that it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..auxiliary.sources import SOURCES
from ..config.recipe import compose_recipe
from ..config.registry import SEGMENTORS
from ..inference.engine import predict
from ..segmentors.base import IMAGES_PER_PASS, Segmentor
from ..segmentors.build import build_segmentor
from ..stages import Stages
from ..types import WindowBatch
from .cases import Case, bare_encoder, clip_of, drawn_images, queries_of
from .official import has_official_loop, official_label_map
from .stand_ins import Recorded, stand_in
from .ways import BARE, OFFICIAL, Ways

METHOD = "method"
GIVEN = ":given"  # ends the name of a case whose features or attention maps are given instead of computed
NEED_WEIGHTS = ("clip_dinoiser", "maskclip_plus", "pacl", "tagclip")  # trained; random weights of their sizes are not at hand
# Fewer passes for methods with many: the ratio hardly depends on their number.
SHORTER = {"clip_diy": {"patch_sizes": (256, 128), "weights": (1.0, 1.0)}}


def method_cases() -> list[str]:
    """A case for each registered method on CLIP, apart from those of NEED_WEIGHTS, and another one with GIVEN for those with
    features or attention maps."""
    names = sorted(name for name, method in SEGMENTORS.module_dict.items() if method.uses_clip and name not in NEED_WEIGHTS)
    return [name + end for name in names for end in ("", GIVEN) if not end or {"vfm", "diffusion"} & taken(name)]


def taken(method: str) -> set[str]:
    """The kinds of auxiliary models that a method requires, or that its recipe names."""
    values = compose_recipe(method).hyperparameters
    return {kind for kind in SOURCES if kind in SEGMENTORS.get(method).requires or values.get(kind)}


def method_ways(case: Case, folder: Path) -> Ways:
    """The ways to measure for the case's method, in its own recipe for an unknown data set, without PAMR."""
    segmentor, image, encoders = _built(case, folder)
    stages = Stages()

    def run() -> Tensor:
        outcome: Any
        ((_, outcome),) = predict([segmentor], [(0, image)], batch=case.batch, pad_last=False, stages=stages)
        return outcome[0].label_map

    passes, labels = _needed_passes(segmentor, encoders, run)
    ways: dict[str, Callable[[], Any]] = {BARE: lambda: [each() for each in passes], METHOD: run}
    agreement = {}
    if case.official and has_official_loop(segmentor):
        ways[OFFICIAL] = lambda: official_label_map(segmentor, image)
        equal = official_label_map(segmentor, image).cpu() == labels
        agreement = {segmentor.recipe.segmentor: {"equal_pixels": 100 * float(equal.float().mean())}}
    return Ways(ways, stages.seconds, agreement, segmentor.clip.device)


def _built(case: Case, folder: Path) -> tuple[Segmentor, Any, list[Recorded]]:
    """The method, a drawn image (H, W, 3) uint8, and the encoders that it has beside CLIP."""
    (method,), clip = case.segmentor, clip_of(case)
    recipe = compose_recipe(method, clip=clip.name)
    options = SHORTER.get(method, {}) | {"pamr_steps": 0} | case.recipe
    options = {name: value for name, value in options.items() if name not in SEGMENTORS.get(method).unused()}
    feature = recipe.hyperparameters.get("feature")
    sources = {kind: stand_in(kind, clip, feature, case.given) for kind in taken(method) if kind != "bank"}
    dataset = drawn_images(case, folder)
    image = dataset.image(dataset.samples[0])
    vocabulary = queries_of(case, clip, image, background=case.threshold > 0 or "foreground" in sources)
    segmentor = build_segmentor(method, clip=clip, vocabulary=vocabulary, **options, **sources)
    return segmentor, image, [source for source in sources.values() if isinstance(source, Recorded)]


def _needed_passes(
    segmentor: Segmentor, encoders: list[Recorded], run: Callable[[], Tensor]
) -> tuple[list[Callable[[], Any]], Tensor]:
    """The bare forward passes for what `run` encodes, each input once: open_clip's image tower for CLIP's windows of equal
    shape, and the encoders beside it; and the label map."""
    clip, seen, trunk = segmentor.clip, [], segmentor.clip.trunk

    def recorded(pixels: Tensor, *arguments: Any, **options: Any) -> Any:
        seen.append(pixels)
        return trunk(pixels, *arguments, **options)

    clip.trunk = recorded  # of this object, which is the segmentor's own
    for encoder in encoders:
        encoder.calls = []
    labels = run()
    del clip.trunk
    windows: dict[torch.Size, dict[bytes, Tensor]] = {}
    for window in (window for pixels in seen for window in pixels):
        windows.setdefault(window.shape, {})[window.cpu().numpy().tobytes()] = window
    passes: list[Callable[[], Any]] = []
    for shape, distinct in windows.items():
        encode = bare_encoder(clip, (shape[1] // clip.patch_size, shape[2] // clip.patch_size))
        for part in torch.stack(list(distinct.values())).split(IMAGES_PER_PASS):
            passes.append(lambda encode=encode, part=part: encode(part))
    for encoder in encoders:
        for argument in map(_without_padding, encoder.calls or []):
            passes.append(lambda source=encoder.source, argument=argument: source(_fresh(argument)))
        encoder.calls = None
    return passes, labels


def _fresh(argument: Any) -> Any:
    """A batch without the features that encoders keep in it."""
    return replace(argument, shared={}) if isinstance(argument, WindowBatch) else argument


def _without_padding(argument: Any) -> Any:
    if not isinstance(argument, WindowBatch):
        return argument
    return replace(argument, pixels=argument.pixels[: len(argument.pixels) - argument.padding], trunk=None)
