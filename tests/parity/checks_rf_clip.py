"""RF-CLIP: what is smoothed, the guide's similarities, the mean attention, clusters, cosines, and label maps by windows."""

import re

import torch
from torch import Tensor

import ovss_bench as ob
from ovss_bench.ops.attention import cosine_matrix

from . import seeded
from .common import load_clip, segment
from .reference import Reference

METHODS = ("rf_clip",)
INPUTS = ("query_features_c",)
SAME = ("sigma", "h_threshold", "global_semantics_weight", "mean_vector_weight", "pamr_steps")


def segmentor(reference: Reference, array: str, queries: Tensor | None = None) -> ob.Segmentor:
    prose = " ".join(reference.about(array))
    given = reference.hyperparameters | reference.settings(array)
    given |= dict(re.findall(r"\b(strategy)=(\w+)", prose))
    wide = {name: given[name] for name in ("width", "layers") if name in given}
    if queries is None:
        stored = re.search(r"_c(_|$)", array)
        queries = torch.from_numpy(reference.arrays["query_features_c"]) if stored else reference.queries(array)
    group = reference.case["group"] if len(queries) == len(reference.case["group"]) else None
    return ob.build_segmentor(
        "rf_clip",
        clip=wide_clip(reference.seed("weights_wide", 12), wide) if wide else load_clip(reference.seed("weights", 11)),
        vocabulary=ob.Vocabulary.from_features(queries, group=group, background=True),
        window=given["slide_crop"] or "whole",
        stride=given["slide_stride"],
        logit_scale=float(given["logit_scale"]),
        channels=None if wide else tuple(given["sink_channels"]),
        blend=given["blend_alpha"],
        similarity=given["similarity_threshold"],
        strategy=given["strategy"],
        refocus_threshold=float(given["threshold"]) if given["strategy"] == "refocus" else 0.1,
        image_level="window" if "citywindow" in array else "image",
        **{name: given[name] for name in SAME},
    )


def wide_clip(seed: int, sizes: dict) -> ob.DenseCLIP:
    return ob.load_clip(state_dict=seeded.clip_state_dict(seed, **sizes))


def window_logits(reference: Reference, array: str) -> Tensor:
    shape = "rect" if array.startswith("rect") else "square"
    return segmentor(reference, array).patch_logits(ob.WindowBatch(reference.pixels(shape)))[0]


def square(reference: Reference, array: str) -> tuple:
    """The segmentor, and what all blocks made of the square window."""
    own = segmentor(reference, array)
    with torch.inference_mode():
        return own, own.encode(reference.pixels("square"))


def image_cosines(reference: Reference, array: str) -> Tensor:
    own, encoded = square(reference, array)
    return (own.clip.head(encoded.last[:, 0]) @ own.text.T)[0]


def masked(reference: Reference, array: str) -> Tensor:
    """The masks in the order of the blocks."""
    own, found = segmentor(reference, array), []
    distracted = own.distracted
    own.distracted = lambda x: found.append(distracted(x)) or found[-1]
    with torch.inference_mode():
        own.encode(reference.pixels("square"))
    return torch.cat(found).to(torch.uint8)


def guide_similarity(reference: Reference, array: str) -> Tensor:
    return cosine_matrix(square(reference, array)[1].guide[0, 1:])[::4]


def attention_mean(reference: Reference, array: str) -> Tensor:
    """Of the second of the two inputs of the last block."""
    own, encoded = square(reference, array)
    found, mean_attention = [], own.mean_attention
    own.mean_attention = lambda *arguments: found.append(mean_attention(*arguments)) or found[-1]
    with torch.inference_mode():
        own.last_attention(encoded)
    return found[1][0].mean(0)[::4]


def clusters(reference: Reference, array: str) -> Tensor:
    """As the official numbers: only which queries are together counts."""
    queries = seeded.query_features(reference.seed("queries", 31), len(reference.arrays[array]))
    own = segmentor(reference, array, queries).clusters
    numbers = {cluster: number for number, cluster in zip(reference.arrays[array].tolist(), own, strict=True)}
    assert len(set(numbers.values())) == len(numbers)
    return torch.tensor([numbers[cluster] for cluster in own])


def prediction(reference: Reference, array: str) -> ob.Prediction:
    return segment(reference, segmentor(reference, array))


def final_scores(reference: Reference, array: str) -> Tensor:
    scores = prediction(reference, array).scores
    return scores[:, ::2, ::2] if "every second row and column" in " ".join(reference.about(array)) else scores


CHECKS = [
    ("(square|rect)_(logits|cosines).*", window_logits, (1e-5, 0)),
    ("image_cosines", image_cosines, (1e-5, 0)),
    ("masked", masked, 1.0),
    ("guide_similarity", guide_similarity, (1e-5, 0)),
    ("attention_mean", attention_mean, (1e-6, 0)),
    ("clusters_40", clusters, 1.0),
    ("label_map.*", lambda reference, array: prediction(reference, array).label_map, None),
    ("final_scores.*", final_scores, (1e-3, 0)),
]
