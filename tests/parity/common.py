"""From the description of a case to calls of the library: what the checks of all methods share."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import ovss_bench as ob

from . import seeded
from .reference import Reference

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


def segment(reference: Reference, segmentor: ob.Segmentor, **given) -> ob.Prediction:
    """The image of the case through the whole pipeline, at the case's size and threshold."""
    given |= {name: reference.case[name] for name in ("short_side", "threshold")}
    return ob.segment(segmentor, reference.image, **given)


def prediction(reference: Reference, array: str) -> ob.Prediction:
    return segment(reference, build(reference, array), **settings(reference, array, per_call=True))


def label_map(reference: Reference, array: str) -> Tensor:
    return prediction(reference, array).label_map


def final_scores(reference: Reference, array: str) -> Tensor:
    return prediction(reference, array).scores


def principal_queries(reference: Reference, segmentor: ob.Segmentor) -> Tensor:
    """The text features of the arrays whose names end in _c, made as their description says: the plain ones projected onto the
    leading four principal directions of the patch features that the segmentor has of the square window."""
    seen, original = [], segmentor.compare
    segmentor.compare = lambda embeddings, grid: seen.append(embeddings) or original(embeddings, grid)
    segmentor.patch_logits(ob.WindowBatch(reference.pixels("square")))
    patches = F.normalize(seen[-1][0], dim=-1)
    directions = torch.linalg.svd(patches - patches.mean(0), full_matrices=False)[2][:4]
    queries = seeded.query_features(reference.seed("queries", 31), reference.case["queries"])
    return F.normalize(queries @ directions.T @ directions, dim=-1)


def compare(actual: Tensor, expected: np.ndarray, tolerance: tuple[float, float] | float | None) -> None:
    """Numbers to a tolerance, label maps on a share of the pixels: 99.95 % unless given. Masks may be stored as packed bits."""
    actual = actual.numpy()
    if actual.dtype == bool and expected.dtype == np.uint8 and actual.shape[:-1] == expected.shape[:-1]:
        expected = np.unpackbits(expected, -1, count=actual.shape[-1])
    assert actual.shape == expected.shape
    if tolerance is None or isinstance(tolerance, float):
        assert np.mean(actual == expected) >= (tolerance or 0.9995)
    else:
        absolute, relative = tolerance
        np.testing.assert_allclose(actual, expected.astype(np.float32), atol=absolute, rtol=relative)
