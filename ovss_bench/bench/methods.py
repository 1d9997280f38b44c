"""A case for every registered method: its full cost for one image in memory, compared with the bare encoder passes it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config.recipe import compose_recipe, parts, segmentor_config
from ..config.registry import STEPS
from ..files import config_names, write_text
from ..inference.engine import predict
from ..ops.pictures import stretch
from ..segmentors.base import IMAGES_PER_PASS, Segmentor
from ..segmentors.build import build_segmentor
from ..segmentors.steps.floss import FLOSS
from ..types import WindowBatch
from .cases import Case, bare_encoder, clip_of, drawn_images, queries_of, stand_ins_of, taken
from .memory import peak_memory
from .names import measured_methods
from .official import has_official_loop, official_label_map
from .random_weights import CHECKPOINTS, random_checkpoint
from .stand_ins import Recorded, given_experts
from .watch import Watched, own_operations
from .ways import BARE, MEMORY_SIZE, METHOD, OFFICIAL, Ways

GIVEN = ":given"  # suffix of cases whose features or attention maps are given instead of computed
# Fewer passes for methods that have many: the ratio hardly depends on their number.
SHORTER = {"clip_diy": {"patch_sizes": (256, 128), "weights": (1.0, 1.0)}, "itaclip": {"stride": 112}}


def method_cases() -> list[str]:
    """The names of all cases: each registered method on CLIP or on a concept segmenter, and each step with a recipe; those with
    features or attention maps once more with GIVEN."""
    names = sorted([*measured_methods(), *(name for name in config_names("segmentor") if name in STEPS.names)])
    return [name + end for name in names for end in ("", GIVEN) if not end or {"vfm", "diffusion"} & taken(name)]


def method_ways(case: Case, folder: Path) -> Ways:
    """The ways to measure for the case's method, with its recipe for an unknown data set, without PAMR."""
    segmentor, image, encoders = _built(case, folder)
    stages, device = Watched(), segmentor.clip.device

    def run(image: Any = image) -> Tensor:
        outcome: Any
        with stages.watching():
            ((_, outcome),) = predict([segmentor], [(0, image)], batch=case.batch, pad_last=False, stages=stages)
        return outcome[0].label_map

    memory = peak_memory(lambda: run(stretch(image, MEMORY_SIZE, "bilinear")), device)
    passes, counts, labels = _needed_passes(segmentor, encoders, run)
    ways: dict[str, Callable[[], Any]] = {BARE: lambda: [each() for each in passes], METHOD: run}
    ways[BARE]()
    agreement: dict[str, Any] = {}

    def official() -> None:
        equal = official_label_map(segmentor, image).cpu() == labels
        agreement[segmentor.recipe.segmentor] = {"equal_pixels": 100 * float(equal.float().mean())}

    if case.official and has_official_loop(segmentor):
        ways[OFFICIAL] = official
    stages.clear()
    operations = partial(own_operations, stages.samples, segmentor.own_network)
    return Ways(ways, stages.seconds, agreement, device, memory, counts, operations, warm=True)


def _built(case: Case, folder: Path) -> tuple[Segmentor, Any, list[Recorded]]:
    """The method, a drawn image (H, W, 3) uint8, and the encoders that it uses besides CLIP."""
    (segmentor,), clip = case.segmentor, clip_of(case)
    method, kind, recipe = parts(segmentor)[1], segmentor_config(segmentor)[1], compose_recipe(segmentor, clip=clip.name)
    options = SHORTER.get(method, {}) | {"pamr_steps": 0} | case.recipe
    options = {name: value for name, value in options.items() if name not in kind.unused()}
    if method in CHECKPOINTS:
        options["checkpoint"] = random_checkpoint(method, clip, folder)
    if issubclass(kind, FLOSS):
        options["ranking"] = str(folder / "ranking.json")
        write_text(folder / "ranking.json", "{}")  # see `given_experts`
    if "own_texts" in recipe.hyperparameters:
        options["own_texts"] = False  # the checkpoint has other classes
    sources = stand_ins_of(segmentor, clip, case.given)
    dataset = drawn_images(case, folder)
    image = dataset.image(dataset.samples[0])
    vocabulary = queries_of(case, clip, image, background=case.threshold > 0 or "foreground" in sources)
    built = build_segmentor(segmentor, clip=clip, vocabulary=vocabulary, **options, **sources)
    if isinstance(built, FLOSS):
        built.classifiers = partial(given_experts, built)
    return built, image, [source for source in sources.values() if isinstance(source, Recorded)]


def _needed_passes(
    segmentor: Segmentor, encoders: list[Recorded], run: Callable[[], Tensor]
) -> tuple[list[Callable[[], Any]], dict[str, int], Tensor]:
    """The bare forward passes for everything that `run` encodes, each input once: open_clip's image tower for CLIP's windows of
    equal shape, other encoders, and the method's own network. Also the numbers of CLIP's windows and of other passes, and the
    label map."""
    clip, seen, embed = segmentor.clip, [], segmentor.clip.embed_patches

    def recorded(pixels: Tensor, position: str = "offset") -> Any:
        seen.append(pixels)
        return embed(pixels, position)

    clip.embed_patches = recorded  # of this segmentor's CLIP only; every pass of the tower begins with it
    for encoder in encoders:
        encoder.calls = []
    with _own_passes(segmentor) as passes:
        labels = run()
    del clip.embed_patches
    for encoder in encoders:
        for argument in map(_without_padding, encoder.calls or []):
            passes.append(lambda source=encoder.source, argument=argument: source(_fresh(argument)))
        encoder.calls = None
    counts = {"other_passes": len(passes)}
    windows: dict[torch.Size, dict[bytes, Tensor]] = {}
    for window in (window for pixels in seen for window in pixels):
        windows.setdefault(window.shape, {})[window.cpu().numpy().tobytes()] = window
    counts |= {"clip_windows": sum(map(len, windows.values()))}
    for shape, distinct in windows.items():
        encode = bare_encoder(clip, (shape[1] // clip.patch_size, shape[2] // clip.patch_size))
        for part in torch.stack(list(distinct.values())).split(IMAGES_PER_PASS):
            passes.append(lambda encode=encode, part=part: encode(part))
    return passes, counts, labels


@contextmanager
def _own_passes(segmentor: Segmentor) -> Iterator[list[Callable[[], Any]]]:
    """Collects the forward passes of the networks of a method with an `own_network`."""
    passes: list[Callable[[], Any]] = []

    def keep(network: nn.Module, arguments: tuple[Any, ...]) -> None:
        passes.append(torch.inference_mode()(lambda: network.forward(*arguments)))

    networks = [each for each in vars(segmentor).values() if isinstance(each, nn.Module)] if segmentor.own_network else []
    handles = [network.register_forward_pre_hook(keep) for network in networks]
    yield passes
    for handle in handles:
        handle.remove()


def _fresh(argument: Any) -> Any:
    """A batch without the features that encoders cache in it."""
    return replace(argument, shared={}) if isinstance(argument, WindowBatch) else argument


def _without_padding(argument: Any) -> Any:
    if not isinstance(argument, WindowBatch):
        return argument
    return replace(argument, pixels=argument.pixels[: len(argument.pixels) - argument.padding], trunk=None)
