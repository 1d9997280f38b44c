"""The arrays of FreeCP, a step on several base methods."""

from functools import cache

import torch
from torch import Tensor

import ovss_bench as ob
from ovss_bench.inference.engine import make_context, predict
from ovss_bench.ops.windows import SlidingWindow
from ovss_bench.segmentors.steps.freecp import Purification

from . import seeded
from .common import load_clip
from .reference import Reference

METHODS = ("freecp",)
INPUTS = ("query_features_c",)
BASES = {"ClearCLIP": "clearclip", "SCLIP": "sclip", "MaskCLIP": "maskclip", "GEM": "gem", "vanilla": "clip"}
IN_NAMES = {base.lower(): base for base in BASES}  # the ends of the arrays' names


def freecp(reference: Reference, array: str, **values: object) -> Purification:
    given, queries = reference.hyperparameters, reference.queries("_c" if "_c" in array else array)
    named = [IN_NAMES[part] for part in array.split("_") if part in IN_NAMES]
    group, background = reference.case["group"], given["with_bkg"]
    if array.endswith("nobkg"):
        group, background = list(range(len(queries))), False
    base = BASES[(named or [given["model_type"]])[0]]
    options = {"rp_thres": given["rp_thres"], "ap_thres": given["ap_thres"], "box_threshold": given["box_threshold"]}
    options |= {"crop_side": given["crop_side"], "cam_scale": float(given["logit_scale"])}
    options |= {"ap_thres": 1.01} if array.endswith("rponly") else {}
    options |= {"short_side": reference.case["short_side"], "stride": given["slide_stride"], "pad": "none"}
    options["window"] = "whole" if array.endswith("whole") else given["slide_crop"] or "whole"
    segmentor = ob.build_segmentor(
        base,
        refine="freecp",
        clip=load_clip(reference.seed("weights", 11)),
        vocabulary=ob.Vocabulary.from_features(queries, group=group, background=background),
        **options | values,
    )
    descriptions = seeded.query_features(reference.seed("descriptions", 32), len(queries))
    segmentor.described = descriptions[segmentor.vocabulary.foreground]
    return segmentor


def window(reference: Reference, array: str) -> tuple[Purification, ob.WindowBatch, Tensor]:
    """The segmentor, a window, and the cosines of the base method."""
    segmentor = freecp(reference, array)
    batch = ob.WindowBatch(reference.pixels("rect" if array.startswith("rect") else "square"))
    return segmentor, batch, super(Purification, segmentor).patch_logits(batch)


def logits(reference: Reference, array: str) -> Tensor:
    return window(reference, array)[2][0]


def class_logits(reference: Reference, array: str) -> Tensor:
    segmentor, batch, _ = window(reference, array)
    return segmentor.text @ segmentor.window_embeddings(batch)[0]


def affinity(reference: Reference, array: str) -> Tensor:
    segmentor, batch, _ = window(reference, array)
    return segmentor.affinity(segmentor.trunk(batch))[0, :: 8 if array.endswith("gem") else 4]


def cams(reference: Reference, array: str) -> Tensor:
    segmentor, _, cosines = window(reference, array)
    return (segmentor.cam_scale * cosines[0]).softmax(0)


def refined(reference: Reference, array: str) -> Tensor:
    segmentor, batch, cosines = window(reference, array)
    return segmentor.refined(cosines, segmentor.trunk(batch))[1][0]


def consistency(reference: Reference, array: str) -> Tensor:
    segmentor, batch, cosines = window(reference, array)
    return segmentor.agreement(*segmentor.refined(cosines, segmentor.trunk(batch)))[0]


@cache
def of_image(reference: Reference, array: str) -> tuple[Tensor, Tensor]:
    """Of all windows of the image: the kept classes (B, 2, K), and the overlaps of those after the first step (B, K, K)."""
    segmentor = freecp(reference, array)
    scene = make_context(reference.image, segmentor)
    pixels = torch.stack(SlidingWindow.by(segmentor.recipe, *scene.resized.shape[:2], 16).cut(scene.pixels))
    batch = ob.WindowBatch(pixels)
    cosines = super(Purification, segmentor).patch_logits(batch)
    probabilities, maps = segmentor.refined(cosines, segmentor.trunk(batch))
    kept = segmentor.agreement(probabilities, maps) > segmentor.rp_thres
    overlap = segmentor.overlaps(maps) * (kept[:, :, None] & kept[:, None])
    return torch.stack([kept, segmentor.unambiguous(maps, kept, batch)], 1), overlap


def kept(reference: Reference, array: str) -> Tensor:
    return of_image(reference, array)[0].byte()


def overlap(reference: Reference, array: str) -> Tensor:
    return of_image(reference, array)[1]


def prediction(reference: Reference, array: str) -> ob.Prediction:
    """By the engine: `ob.segment` would build the segmentor again, without the seeded descriptions."""
    ((_, (found,)),) = predict([freecp(reference, array)], [("image", reference.image)], keep_scores=True)
    return found


def label_map(reference: Reference, array: str) -> Tensor:
    return prediction(reference, array).label_map


def final_scores(reference: Reference, array: str) -> Tensor:
    step = 2 if array.endswith("_c") else 1
    return prediction(reference, array).scores[:, ::step, ::step]


CHECKS = [
    ("(square|rect)_logits.*", logits, (1e-5, 0)),
    ("class_logits", class_logits, (1e-5, 0)),
    ("affinity.*", affinity, (1e-6, 0)),
    ("square_cams_c", cams, (1e-5, 0)),
    ("square_refined_c", refined, (1e-3, 0)),  # stretching a nearly constant map magnifies rounding
    ("square_consistency_c", consistency, (1e-4, 0)),
    ("kept_c", kept, 1.0),
    ("overlap_c", overlap, (1e-4, 0)),
    ("label_map.*", label_map, 0.999),  # a threshold on rounded maps may flip
    ("final_scores.*", final_scores, (2e-3, 0)),
]
