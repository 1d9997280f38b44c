"""Every array that the official codes returned, computed again by the library."""

import re
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ovss_bench as ob
from ovss_bench.inference.engine import make_scene
from ovss_bench.inference.refine import affinity, pamr

from . import seeded
from .reference import METHODS, Reference

# Official name of a setting -> ours, and the value as we write it.
NAMES = {
    "area_thd": ("area_threshold", lambda share: share or 0.0),
    "arch": ("residual", lambda arch: arch == "vanilla"),
    "depth": ("depth", int),
    "gaussian_std": ("sigma", float),
    "ignore_residual": ("residual", lambda ignored: not ignored),
    "ks_thresh": ("key_smoothing", float),
    "logit_scale": ("logit_scale", float),
    "pamr_dilations": ("pamr_dilations", tuple),
    "pamr_steps": ("pamr_steps", int),
    "pd_thresh": ("prompt_denoising", float),
    "slide_crop": ("window", lambda side: side or "whole"),
    "slide_stride": ("stride", int),
    "ss_attn_iter": ("iterations", int),
    "ss_attn_temp": ("temperature", lambda factor: factor),
}
PER_CALL = {"window", "stride", "logit_scale"}  # given to `segment`; the rest to `build_segmentor`


def settings(reference: Reference, array: str, per_call: bool = False) -> dict:
    given = reference.settings(array)
    ours = {name: value(given[official]) for official, (name, value) in NAMES.items() if official in given}
    return {name: value for name, value in ours.items() if (name in PER_CALL) == per_call}


@cache
def load_clip(seed: int, **options) -> ob.DenseCLIP:
    return ob.load_clip(state_dict=seeded.clip_state_dict(seed), **options)


def build(reference: Reference, array: str, name: str | None = None, clip: dict | None = None, **overrides) -> ob.Segmentor:
    vocabulary = ob.Vocabulary.from_features(reference.queries(array), group=reference.case["group"], background=True)
    weights = load_clip(reference.seed("weights", 11), **(clip or {}))
    return ob.build_segmentor(
        name or reference.method, clip=weights, vocabulary=vocabulary, **settings(reference, array) | overrides
    )


def patch_logits(reference: Reference, array: str) -> Tensor:
    shape = "rect" if array.startswith("rect") else "square"
    return build(reference, array).patch_logits(ob.WindowBatch(reference.pixels(shape)))[0]


def official_maskclip(reference: Reference, array: str) -> Tensor:
    return build(reference, array, "maskclip_original").patch_logits(ob.WindowBatch(reference.pixels("square")))[0]


def prediction(reference: Reference, array: str) -> ob.Prediction:
    given = {name: reference.case[name] for name in ("short_side", "threshold")}
    return ob.segment(build(reference, array), reference.image, **given, **settings(reference, array, per_call=True))


def label_map(reference: Reference, array: str) -> Tensor:
    return prediction(reference, array).label_map


def final_scores(reference: Reference, array: str) -> Tensor:
    return prediction(reference, array).scores


def gem_heatmaps(reference: Reference, array: str) -> Tensor:
    side = int(array.rpartition("_")[2])
    segmentor = build(reference, array, "gem_original", short_side=side)
    scene = make_scene(reference.image, segmentor.recipe)
    pixels = seeded.clip_input(scene.resized)  # CLIP's statistics as GEM has them, not rounded as in the common pipeline
    maps = segmentor.patch_logits(ob.WindowBatch(pixels))
    return segmentor.refine(F.interpolate(maps, (side, side), mode="bilinear")[0], scene)[:, ::16, ::16]


def last_block(reference: Reference, array: str) -> tuple:
    """The segmentor, the last block and the tokens that enter it, on the square window."""
    segmentor = build(reference, array)
    trunk = segmentor.trunk(ob.WindowBatch(reference.pixels("square")))
    return segmentor, segmentor.clip.block(-1, trunk.grid), trunk.tokens


def tokens(reference: Reference, array: str) -> Tensor:
    segmentor, block, x = last_block(reference, array)
    return segmentor.clip.project(segmentor.last_block(block, x))[0, ::8]


def cls_embedding(reference: Reference, array: str) -> Tensor:
    return tokens(reference, array)[0]


def last_ln1(reference: Reference, array: str) -> Tensor:
    _, block, x = last_block(reference, array)
    return block.ln_1(x)[0, ::8]


def attention_mean(reference: Reference, array: str) -> Tensor:
    """Attending to the identity returns the attention itself."""
    segmentor, block, x = last_block(reference, array)
    q, k, _ = block.qkv(block.ln_1(x))
    identity = torch.eye(x.shape[1]).expand(*q.shape[:2], -1, -1)
    return segmentor.mix(q, k, identity, block.grid).mean(1)[0, ::4]


def pamr_refined(reference: Reference, array: str) -> Tensor:
    guide, mask = reference.pamr_inputs()
    if array == "refined_fullsize":
        mask = F.interpolate(mask[None], guide.shape[1:], mode="bilinear")[0]
    given = settings(reference, array)
    return pamr(guide, mask, given["pamr_steps"], given["pamr_dilations"])


def pamr_affinity(reference: Reference, array: str) -> Tensor:
    return affinity(reference.pamr_inputs()[0], settings(reference, array)["pamr_dilations"])[:, ::4, ::4]


# Names of arrays -> how to compute them, and the tolerance: absolute, relative.
CHECKS = [
    ("(square|rect)_logits.*", patch_logits, (1e-5, 0)),
    ("official_logits", official_maskclip, (1e-6, 0)),  # 1e-5 would not tell the original's LayerNorm epsilon from CLIP's
    ("official_refined", official_maskclip, (1e-6, 1e-4)),  # not cosines: up to 30, and values around 0
    ("label_map.*", label_map, None),
    ("final_scores", final_scores, (1e-3, 0)),
    ("gem_heatmaps_.*", gem_heatmaps, (1e-5, 0)),
    ("tokens", tokens, (1e-4, 0)),
    ("cls_embedding", cls_embedding, (1e-4, 0)),
    ("last_ln1", last_ln1, (1e-4, 0)),
    ("attention_mean", attention_mean, (1e-5, 0)),
    ("refined.*", pamr_refined, (1e-5, 0)),
    ("affinity", pamr_affinity, (1e-5, 0)),
]


def compare(actual: Tensor, expected: np.ndarray, tolerance: tuple[float, float] | None) -> None:
    """Numbers to a tolerance, label maps on 99.95 % of the pixels."""
    actual = actual.numpy()
    assert actual.shape == expected.shape
    if tolerance is None:
        assert np.mean(actual == expected) >= 0.9995
    else:
        absolute, relative = tolerance
        np.testing.assert_allclose(actual, expected.astype(np.float32), atol=absolute, rtol=relative)


def arrays() -> Iterator[tuple[str, str]]:
    for method in METHODS:
        yield from ((method, array) for array in Reference(method).arrays or ["(no such file)"])


@pytest.mark.parametrize(("method", "array"), arrays())
def test_agrees_with_the_official_code(method: str, array: str) -> None:
    reference = Reference(method)
    known = [(compute, tolerance) for pattern, compute, tolerance in CHECKS if re.fullmatch(pattern, array)]
    assert known, f"{reference.path} {array}: no test computes it"
    compute, tolerance = known[0]
    compare(compute(reference, array), reference.arrays[array], tolerance)


@pytest.mark.parametrize("array", ["official_logits", "official_refined"])
def test_activation_and_epsilon_may_come_with_the_weights(array: str) -> None:
    """The original MaskCLIP, said to `load_clip` instead of in the recipe."""
    reference = Reference("maskclip")
    segmentor = build(reference, array, clip={"activation": "gelu", "layer_norm_eps": 1e-6}, position="size")
    tolerance = next(tolerance for name, _, tolerance in CHECKS if name == array)
    compare(segmentor.patch_logits(ob.WindowBatch(reference.pixels("square")))[0], reference.arrays[array], tolerance)
