"""The arrays of CLIPer, with stand-ins for the self-attention of Stable Diffusion."""

import re
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

import ovss_bench as ob

from . import seeded
from .common import build
from .reference import Reference

METHODS = ("cliper",)


@lru_cache(maxsize=1)
def diffusion_attention(offset: int) -> list[Tensor]:
    """Two maps for each of two layers, the same for every image."""
    heads = []
    for seed in (41, 141, 241, 341):
        features = F.normalize(seeded.feature_map(seed + offset, 16, 64, 64)[0].flatten(1).T, dim=1)
        heads.append((20 * features @ features.T).softmax(1))
    return [torch.stack(heads[:2]), torch.stack(heads[2:])]


def cliper(reference: Reference, array: str, **options) -> ob.Segmentor:
    """The segmentor as the description of the case has it; its one threshold stands for both of the method."""
    given = reference.hyperparameters
    own = {name: given[name] for name in ("select_layer", "fuse_feature", "attention_thr", "is_normalize", "logit_scale")}
    threshold = reference.case["threshold"]
    thresholds = {"bkg_thre": threshold, "score_threshold": threshold}
    sizes = {"short_side": reference.case["short_side"]}
    return build(reference, array, **({"diffusion": None} | sizes | own | thresholds | options))


def last_layer_logits(reference: Reference, array: str) -> Tensor:
    shape = "rect" if array.startswith("rect") else "square"
    return cliper(reference, array).patch_logits(ob.WindowBatch(reference.pixels(shape)))[0]


def fused_attention(reference: Reference, array: str) -> Tensor:
    segmentor = cliper(reference, array)
    return segmentor.layers(ob.WindowBatch(reference.pixels("square")), segmentor.rows)[1][0]


def segmentation(reference: Reference, array: str) -> Tensor:
    return cliper(reference, array, window="whole").segmentation(reference.pixels("square")[0])


def prediction(reference: Reference, array: str) -> ob.Prediction:
    """With windows, and with compensation unless the name of the array denies it."""
    window, stride = re.findall(r"\d+", reference.hyperparameters["sliding_crop_size"])[:2]
    compensated = not array.endswith("nofgc")
    diffusion = (lambda _: diffusion_attention(reference.offset)) if compensated else None
    return ob.segment(cliper(reference, array, diffusion=diffusion, window=int(window), stride=int(stride)), reference.image)


def label_map(reference: Reference, array: str) -> Tensor:
    return prediction(reference, array).label_map


def final_scores(reference: Reference, array: str) -> Tensor:
    return prediction(reference, array).scores


CHECKS = [
    ("(square|rect)_logits", last_layer_logits, (1e-5, 0)),
    ("fused_attention", fused_attention, (1e-6, 0)),
    ("square_seg", segmentation, (1e-5, 0)),
    ("label_map.*", label_map, None),
    ("final_scores", final_scores, (1e-3, 0)),
]
