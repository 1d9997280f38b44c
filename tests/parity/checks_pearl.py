"""PEARL: cosines, the mean attention, the propagation's system and solution, and label maps with and without it."""

from unittest import mock

import torch
from torch import Tensor

import ovss_bench as ob
from ovss_bench.ops.solve import conjugate_gradients

from .common import load_clip, principal_queries, segment
from .reference import Reference

METHODS = ("pearl",)


def segmentor(reference: Reference, array: str) -> ob.Segmentor:
    given = reference.settings(array).get
    usual = reference.hyperparameters
    grid = usual["grid_for_c_arrays"] if array.endswith("_c") else usual["grid"]
    crop = given("slide_crop", usual["slide_crop"])
    return ob.build_segmentor(
        "pearl",
        clip=load_clip(reference.seed("weights", 11)),
        vocabulary=ob.Vocabulary.from_features(queries(reference, array), group=reference.case["group"], background=True),
        residual=usual["arch"] == "vanilla",
        strategy=usual["attn_strategy"],
        alpha_kk=float(given("alpha_kk", usual["alpha_kk"])) if usual["use_kk"] else 0.0,
        align_solver=usual["align_solver"],
        polar_iters=usual["polar_iters"],
        tlp=usual["tlp"] == "on" and not array.endswith("notlp"),
        grid=given("grid", grid),
        tau_s=float(usual["tau_S"]),
        diag_boost=float(usual["diag_boost"]),
        ke_img=float(usual["ke_img"]),
        cg_iters=usual["cg_iters"],
        logit_scale=usual["logit_scale"],
        window=crop or "whole",
        **({"stride": usual["slide_stride"]} if crop else {}),
    )


def queries(reference: Reference, array: str) -> Tensor:
    """Those of the arrays with `_c` in their names are an array."""
    return reference.queries("_c" if "_c" in array else array)


def window_logits(reference: Reference, array: str) -> Tensor:
    shape = "rect" if array.startswith("rect") else "square"
    return segmentor(reference, array).patch_logits(ob.WindowBatch(reference.pixels(shape)))[0]


def attention_mean(reference: Reference, array: str) -> Tensor:
    """Attending to the identity returns the attention itself."""
    own = segmentor(reference, array)
    trunk = own.trunk(ob.WindowBatch(reference.pixels("square")))
    block = own.clip.block(-1, trunk.grid)
    q, k, _ = block.qkv(block.ln_1(trunk.tokens))
    return own.mix(q, k, torch.eye(q.shape[2]).expand(*q.shape[:2], -1, -1), trunk.grid).mean(1)[0, ::4]


def propagation(reference: Reference, array: str) -> tuple[Tensor, Tensor]:
    """The system's start and its solution for the image."""
    seen = []

    def watched(operator, right, start, **options) -> Tensor:
        seen.append((start, conjugate_gradients(operator, right, start, **options)))
        return seen[-1][1]

    with mock.patch("ovss_bench.ops.laplacian.conjugate_gradients", watched):
        segment(reference, segmentor(reference, array))
    return seen[0]


def query_features(reference: Reference, array: str) -> Tensor:
    return principal_queries(reference, segmentor(reference, "square_logits"))


def prediction(reference: Reference, array: str) -> ob.Prediction:
    return segment(reference, segmentor(reference, array))


CHECKS = [
    ("(square|rect)_logits.*", window_logits, (1e-5, 0)),
    ("attention_mean", attention_mean, (1e-5, 0)),
    ("query_features_c", query_features, (1e-5, 0)),
    ("tlp_in_c", lambda reference, array: propagation(reference, array)[0], (1e-5, 0)),
    ("tlp_out_c", lambda reference, array: propagation(reference, array)[1], (1e-4, 0)),
    ("label_map.*", lambda reference, array: prediction(reference, array).label_map, 0.999),
    ("final_scores.*", lambda reference, array: prediction(reference, array).scores, (1e-3, 0)),
]
