"""The arrays of CLIP-DIY, with FOUND on a tiny DINO."""

import torch
from torch import Tensor

import ovss_bench as ob
from ovss_bench.auxiliary.foreground import Found
from ovss_bench.inference.engine import make_context

from . import seeded
from .common import load_clip
from .reference import Reference

METHODS = ("clip_diy",)


def found(reference: Reference) -> Found:
    """A tiny DINO and a decoder of two seeds."""
    state = seeded.dino_state_dict(reference.seed("features", 41), width=64, layers=4, patch_size=8)
    encoder = ob.load_vision(state_dict=state, heads=2, layer_norm_eps=1e-6, feature="k")
    weight = seeded.query_features(reference.seed("regions", 51), 1, 64).view(1, 64, 1, 1)
    return Found(encoder, weight, torch.zeros(1))


def clip_diy(reference: Reference, array: str) -> ob.Segmentor:
    """Every query is a class, the first the background: the method has no synonyms."""
    given = reference.hyperparameters
    return ob.build_segmentor(
        "clip_diy",
        clip=load_clip(reference.seed("weights", 11), activation="gelu"),
        vocabulary=ob.Vocabulary.from_features(reference.queries(array), background=True),
        foreground=found(reference),
        short_side=given["img_size"],
        **{name: given[name] for name in ("patch_sizes", "stride_divisor", "weights")},
    )


def patch_similarities(reference: Reference, array: str) -> Tensor:
    segmentor = clip_diy(reference, array)
    cosines = segmentor.patch_cosines(make_context(reference.image, segmentor))
    return torch.cat([grid.flatten(1) for grid in cosines], 1).T


def label_map(reference: Reference, array: str) -> Tensor:
    return ob.segment(clip_diy(reference, array), reference.image).label_map


def final_scores(reference: Reference, array: str) -> Tensor:
    return ob.segment(clip_diy(reference, array), reference.image).scores


def saliency(reference: Reference, array: str) -> Tensor:
    return torch.from_numpy(found(reference)(reference.image))


CHECKS = [
    ("patch_similarities", patch_similarities, (1e-5, 0)),
    ("saliency", saliency, (1e-5, 0)),
    ("label_map", label_map, None),
    ("final_scores", final_scores, (1e-3, 0)),
]
