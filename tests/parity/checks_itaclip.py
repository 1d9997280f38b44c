"""ITACLIP: mixed texts, cosines with image engineering, and label maps by windows."""

import torch
import torch.nn.functional as F
from torch import Tensor

import ovss_bench as ob
from ovss_bench.inference.engine import predict
from ovss_bench.ops.image_engineering import FLIPS

from . import seeded
from .common import load_clip
from .reference import Reference

METHODS = ("itaclip",)
INPUTS = ("query_features_c",)


def segmentor(reference: Reference, array: str) -> ob.Segmentor:
    given, case = reference.hyperparameters, reference.case
    queries = seeded.query_features(reference.seed("queries", 31), case["queries"])
    own = ob.build_segmentor(
        "itaclip",
        clip=load_clip(reference.seed("weights", 11)),
        vocabulary=ob.Vocabulary.from_features(queries, group=case["group"], background=True),
        img_engineering=given["img_engineering"],
        img_eng_coefficient=given["img_eng_coefficient"],
        def_coefficient=given["def_coefficient"],
        short_side=case["short_side"],
        window=given["slide_crop"],
        stride=given["slide_stride"],
        pamr_steps=given["pamr_steps"],
        pamr_dilations=tuple(given["pamr_stride"]),
        logit_scale=given["logit_scale"],
        area_threshold=given["area_thd"] or 0.0,
        threshold=case["threshold"],
    )
    if array.endswith("_c"):
        own._text = torch.from_numpy(reference.arrays["query_features_c"])
    else:
        auxiliary = seeded.query_features(reference.seed("auxiliary_queries", 32), max(case["group"]))
        own._text = own.mix_texts(queries, auxiliary)
    return own


def first_category(reference: Reference, array: str) -> Tensor:
    """Of the copies that keep their orientation."""
    own = segmentor(reference, array)
    own.img_eng_coefficient = 1.0
    return own.patch_logits(ob.WindowBatch(reference.pixels(array.partition("_")[0])))[0]


def flips(reference: Reference, array: str) -> Tensor:
    own, pixels = segmentor(reference, array), reference.pixels("square")
    count = len(reference.arrays[array][0])
    return torch.cat([own.window_logits(ob.WindowBatch(pixels.flip(axis)))[:, :count] for axis in FLIPS])


def combined(reference: Reference, array: str) -> Tensor:
    own, pixels = segmentor(reference, array), reference.pixels("square")
    cosines = own.patch_logits(ob.WindowBatch(pixels))
    return F.interpolate(cosines, pixels.shape[2:], mode="bilinear")[0, :, ::16, ::16]


def prediction(reference: Reference, array: str) -> ob.Prediction:
    """Not by `ob.segment`, which encodes the texts again."""
    images = [("image", reference.image)]
    ((_, (prediction,)),) = predict([segmentor(reference, array)], images, pad_last=False, keep_scores=True)
    return prediction


CHECKS = [
    ("text_features", lambda reference, array: segmentor(reference, array).text, (1e-6, 0)),
    ("square_logits_flips", flips, (1e-5, 0)),
    ("(square|rect)_logits", first_category, (1e-5, 0)),
    ("square_combined", combined, (1e-5, 0)),
    ("label_map.*", lambda reference, array: prediction(reference, array).label_map, 0.999),
    ("final_scores", lambda reference, array: prediction(reference, array).scores, (1e-3, 0)),
]
