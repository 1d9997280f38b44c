"""CLIPtrase: cosines, the correlation, its clusters, and the vote on the centre crop."""

from torch import Tensor

import ovss_bench as ob

from . import seeded
from .common import load_clip
from .reference import Reference

METHODS = ("cliptrase",)


def segmentor(reference: Reference, array: str) -> ob.Segmentor:
    given, queries = reference.hyperparameters, reference.queries(array)
    if array.endswith("_logits"):  # the rows that the case picks are for the image
        queries = seeded.query_features(reference.seed("queries", 31), reference.case["queries"])
    return ob.build_segmentor(
        "cliptrase",
        clip=load_clip(reference.seed("weights", 11)),
        vocabulary=ob.Vocabulary.from_features(queries, group=reference.case["group"], background=True),
        short_side=given["image_size"],
        logit_scale=given["logit_scale"],
        eps=given["dbscan_eps"],
        min_samples=given["dbscan_min_samples"],
        ratio=given["ratio"],
        median=given["median_size"],
    )


def window_logits(reference: Reference, array: str) -> Tensor:
    pixels = reference.pixels(array.removesuffix("_logits"))
    return segmentor(reference, array).patch_logits(ob.WindowBatch(pixels))[0]


def denoised_correlation(reference: Reference, array: str) -> Tensor:
    own = segmentor(reference, array)
    (state,) = own.trunk(ob.WindowBatch(reference.pixels("square"))).states.values()
    return own.correlation(state[0])


def clusters(reference: Reference, array: str) -> tuple:
    """The segmentor, and of the image the correlation, its clusters and the scene."""
    own = segmentor(reference, array)
    scene = ob.make_context(reference.image, own)
    correlation = own.correlation(own.state(scene))
    return own, correlation, own.clusters(correlation), scene


def dbscan_labels(reference: Reference, array: str) -> Tensor:
    return clusters(reference, array)[2]


def cluster_map(reference: Reference, array: str) -> Tensor:
    own, *rest = clusters(reference, array)
    return own.voting_regions(*rest)


def label_map(reference: Reference, array: str) -> Tensor:
    """The official labels count the foreground classes from 0; the background is the last."""
    own = segmentor(reference, array)
    return (ob.segment(own, reference.image).label_map - 1) % len(own.vocabulary.classes)


def final_scores(reference: Reference, array: str) -> Tensor:
    return ob.segment(segmentor(reference, array), reference.image).scores


CHECKS = [
    ("(square|rect)_logits", window_logits, (1e-5, 0)),
    ("denoised_correlation", denoised_correlation, (1e-5, 0)),
    ("dbscan_labels", dbscan_labels, 1.0),
    ("cluster_map", cluster_map, 0.999),
    ("label_map", label_map, 0.999),
    ("final_scores", final_scores, (1e-3, 1e-3)),
]
