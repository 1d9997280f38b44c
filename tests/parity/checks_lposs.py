"""LPOSS and LPOSS+: MaskCLIP's cosines, propagated scores of the patches, label maps and scores."""

import re
from unittest import mock

from torch import Tensor

import ovss_bench as ob
from ovss_bench.encoders.vision import VisionEncoder, load_vision
from ovss_bench.ops.graphs import propagate_patches

from . import seeded
from .common import load_clip
from .reference import Reference

METHODS = ("lposs",)
SAME = ("alpha", "gamma", "k", "sigma", "pix_dist_pow", "tau", "r", "cg_tol", "cg_maxiter")


def dino(reference: Reference) -> VisionEncoder:
    """As the description says in words: dino_state_dict(SEED, NAME=NUMBER, ...) with NUMBER heads, LayerNorm eps NUMBER."""
    prose = reference.info["inputs"]["dino"]
    (seed,), (heads,), (eps,) = (re.findall(p, prose) for p in (r"_dict\((\d+)", r"(\d+) heads", r"eps ([\d.e-]+)"))
    sizes = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", prose)}
    state = seeded.dino_state_dict(reference.seed("dino", int(seed)), **sizes)
    return load_vision(state_dict=state, heads=int(heads), layer_norm_eps=float(eps), feature="v")


def segmentor(reference: Reference, array: str) -> ob.Segmentor:
    given = reference.hyperparameters
    queries = reference.queries(array)
    if array.endswith("_logits"):  # the rows that the case picks are for the image
        queries = seeded.query_features(reference.seed("queries", 31), reference.case["queries"])
    return ob.build_segmentor(
        "lposs_plus" if array.endswith("_plus") else "lposs",
        clip=load_clip(reference.seed("weights", 11), activation="gelu"),
        vocabulary=ob.Vocabulary.from_features(queries, group=reference.case["group"], background=True),
        vfm=dino(reference),
        window=given["crop"],
        stride=given["stride"],
        short_side=reference.case["short_side"],
        **{name: given[name] for name in SAME},
    )


def window_logits(reference: Reference, array: str) -> Tensor:
    shape = array.removesuffix("_logits")
    return segmentor(reference, array).patch_logits(ob.WindowBatch(reference.pixels(shape)))[0]


def propagated_patches(reference: Reference, array: str) -> Tensor:
    seen = []

    def watched(*given) -> Tensor:
        seen.append(propagate_patches(*given))
        return seen[-1]

    with mock.patch("ovss_bench.segmentors.lposs.propagate_patches", watched):
        prediction(reference, array)
    return seen[0]


def prediction(reference: Reference, array: str) -> ob.Prediction:
    return ob.segment(segmentor(reference, array), reference.image)


CHECKS = [
    ("(square|rect)_logits", window_logits, (1e-5, 0)),
    ("propagated_patches", propagated_patches, (1e-5, 1e-4)),
    ("label_map.*", lambda reference, array: prediction(reference, array).label_map, 0.999),
    ("final_scores.*", lambda reference, array: prediction(reference, array).scores, (1e-3, 1e-3)),
]
