"""GLA-CLIP with a tiny DINO."""

import re

import torch
from torch import Tensor

import ovss_bench as ob

from .checks_proxyclip import dino
from .common import build, segment
from .reference import Reference

METHODS = ("gla_clip",)
INPUTS = ("query_features_c",)
# Official name of a setting -> ours.
OURS = {
    "initial_crit_pos": "rho",
    "beta_alpha": "shift_growth",
    "gamma_alpha": "scale_growth",
    "mini_iters": "iterations",
    "KV_token_extension": "extension",
    "proxy_sim": "proxies",
    "dynamic_beta": "dynamic_shift",
    "dynamic_gamma": "dynamic_scale",
    "pad_multiple": "pad_multiple",
    "slide_crop": "window",
    "slide_stride": "stride",
    "logit_scale": "logit_scale",
}


def gla_clip(reference: Reference, array: str) -> ob.Segmentor:
    given = reference.hyperparameters | reference.settings(array)
    options = {ours: given[official] for official, ours in OURS.items() if official in given}
    options = {name: float(value) if "growth" in name else value for name, value in options.items()}
    queries = f"{array.partition('_c')[0]}_c" if "_c_" in array else array
    return build(reference, queries, "gla_clip", **{"vfm": dino(reference, "tokens")} | options)


def windows_of(reference: Reference, array: str) -> tuple[ob.Segmentor, ob.WindowBatch]:
    """The segmentor and the windows of an array: one alone, or all of the image."""
    segmentor = gla_clip(reference, array)
    if not array.startswith("slide"):
        return segmentor, ob.WindowBatch(reference.pixels("rect" if array.startswith("rect") else "square"))
    segmentor = segmentor.with_recipe(segmentor.recipe.override(short_side=reference.case["short_side"]))
    context = ob.make_context(reference.image, segmentor)
    windows = ob.SlidingWindow.by(segmentor.recipe, *context.resized.shape[:2], segmentor.clip.patch_size)
    return segmentor, ob.WindowBatch(torch.stack(windows.cut(context.pixels)))


def logits(reference: Reference, array: str) -> Tensor:
    segmentor, windows = windows_of(reference, array)
    return segmentor.image_logits(windows)[0]


def counts(reference: Reference, array: str) -> Tensor:
    segmentor, windows = windows_of(reference, array)
    features = windows.once(segmentor.vfm)
    keys = segmentor.keys(features).flatten(0, 1)
    found = segmentor.anchors(keys, slice(0, len(keys)))[1].view(-1, *features.shape[2:])
    return found if array.startswith("slide") else found[0]


def attention(reference: Reference, array: str) -> Tensor:
    segmentor, windows = windows_of(reference, array)
    keys = segmentor.keys(windows.once(segmentor.vfm))
    rows = segmentor.attention(keys.flatten(0, 1), slice(0, keys[..., 0].numel()), len(keys))
    about = " ".join(reference.about(array))
    if array.startswith("slide"):
        return rows[int(re.findall(r"patch (\d+)", about)[-1]) :: keys.shape[1]]
    return rows[:: int(re.findall(r"rows 0,(\d+)", about)[-1])]


def prediction(reference: Reference, array: str) -> ob.Prediction:
    return segment(reference, gla_clip(reference, array))


CHECKS = [
    (".*_logits.*", logits, (1e-5, 0)),
    ("square_counts", counts, 0.999),
    ("slide_counts", counts, 0.999),  # pairs within rounding of rho may fall on either side
    (".*_attention", attention, (1e-5, 0)),
    ("label_map.*", lambda reference, array: prediction(reference, array).label_map, None),
    ("final_scores", lambda reference, array: prediction(reference, array).scores, (5e-3, 0)),
    ("final_scores_c", lambda reference, array: prediction(reference, array).scores[:, ::2, ::2], (5e-3, 0)),
]
