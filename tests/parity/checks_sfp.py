"""SFP: outliers, the similarities of the middle block, cosines with each detector, and label maps by windows."""

import re

import torch
from torch import Tensor

import ovss_bench as ob
from ovss_bench.ops.outliers import mend

from .common import load_clip, segment
from .reference import Reference

METHODS = ("sfp",)
INPUTS = ("query_features_c",)
DETECTORS = {"SOM": "attention", "L2": "norm", "LOF": "lof"}


def segmentor(reference: Reference, array: str) -> ob.Segmentor:
    prose = " ".join(reference.about(array))
    stated = dict(re.findall(r"\b(logit_scale|area_thd|pm)[ =]'?([\w.]*\w)", prose))
    given = reference.hyperparameters | stated
    return ob.build_segmentor(
        "sfp",
        clip=load_clip(reference.seed("weights", 11)),
        vocabulary=ob.Vocabulary.from_features(queries(reference, array), group=reference.case["group"], background=True),
        window=given["slide_crop"],
        stride=given["slide_stride"],
        logit_scale=float(given["logit_scale"]),
        area_threshold=float(given["area_thd"] or 0),
        pamr_steps=given["pamr_steps"],
        purify=given["purify"],
        detector=DETECTORS[given["pm"]],
        max_outliers=given["max_outliers"],
        cls_factor=given["res_cls"] * given["res_scale"],
        cls_weight=given["res_cls"],
        similarity=given["similarity_threshold"],
    )


def queries(reference: Reference, array: str) -> Tensor:
    stored = "query_features_c" in " ".join(reference.about(array))
    return torch.from_numpy(reference.arrays["query_features_c"]) if stored else reference.queries(array)


def window_logits(reference: Reference, array: str) -> Tensor:
    return segmentor(reference, array).patch_logits(ob.WindowBatch(reference.pixels("square")))[0]


def square(reference: Reference, array: str) -> tuple:
    """The segmentor and the trunk of the square window."""
    own = segmentor(reference, array)
    return own, own.trunk(ob.WindowBatch(reference.pixels("square")))


def outliers(reference: Reference, array: str) -> Tensor:
    own, trunk = square(reference, array)
    order = own.attended(trunk)[0].argsort(descending=True)
    numbers = order[own.outliers(trunk)[0][order]]
    return torch.stack([numbers // trunk.grid[1], numbers % trunk.grid[1]], 1)


def middle_similarities(reference: Reference, array: str) -> Tensor:
    own, trunk = square(reference, array)
    purified = mend(trunk.states[own.reference_block][:, 1:], own.outliers(trunk), trunk.grid, isolated=0.0)
    return own.similarities(purified)[0, ::4]


def prediction(reference: Reference, array: str) -> ob.Prediction:
    return segment(reference, segmentor(reference, array))


CHECKS = [
    ("square_logits.*", window_logits, (1e-5, 0)),
    ("outliers", outliers, 1.0),
    ("pre_sim", middle_similarities, (1e-5, 0)),
    ("label_map.*", lambda reference, array: prediction(reference, array).label_map, None),
    ("final_scores.*", lambda reference, array: prediction(reference, array).scores, (1e-3, 0)),
]
