"""SC-CLIP: what is found anomalous, the middle similarity, cosines, and label maps by windows."""

import re

from torch import Tensor

import ovss_bench as ob
from ovss_bench.ops.attention import cosine_matrix
from ovss_bench.ops.outliers import local_outlier_factors, mend

from .common import load_clip, principal_queries, segment
from .reference import Reference

METHODS = ("scclip",)
SAME = ("beta", "pre_adjust_idx", "post_adjust_idx", "multi_start_idx", "multi_end_idx", "res_cls", "lof_neighbors")
SAME += ("lof_contamination", "logit_scale", "pamr_steps")


def segmentor(reference: Reference, array: str) -> ob.Segmentor:
    given = reference.hyperparameters
    return ob.build_segmentor(
        "scclip",
        clip=load_clip(reference.seed("weights", 11)),
        vocabulary=ob.Vocabulary.from_features(reference.queries(array), group=reference.case["group"], background=True),
        window=given["slide_crop"],
        stride=given["slide_stride"],
        area_threshold=float(reference.settings(array).get("area_thd", 0)),
        **{name: given[name] for name in SAME},
    )


def window_logits(reference: Reference, array: str) -> Tensor:
    return segmentor(reference, array).patch_logits(ob.WindowBatch(reference.pixels("square")))[0]


def square(reference: Reference, array: str) -> tuple:
    """The segmentor and the trunk of the square window."""
    own = segmentor(reference, array)
    return own, own.trunk(ob.WindowBatch(reference.pixels("square")))


def lof_scores(reference: Reference, array: str) -> Tensor:
    own, trunk = square(reference, array)
    return local_outlier_factors(trunk.tokens[:, 1:], own.lof_neighbors)[0]


def outlier_indices(reference: Reference, array: str) -> Tensor:
    own, trunk = square(reference, array)
    return own.anomalies(trunk.tokens[:, 1:])[0].nonzero()[:, 0]


def mid_similarity(reference: Reference, array: str) -> Tensor:
    own, trunk = square(reference, array)
    middle = trunk.states[own.pre_adjust_idx + 1][:, 1:]
    step = int(re.findall(r"every (\d+)\w\w row", " ".join(reference.about(array)))[-1])
    return cosine_matrix(mend(middle, own.anomalies(trunk.tokens[:, 1:]), trunk.grid))[0, ::step]


def query_features(reference: Reference, array: str) -> Tensor:
    return principal_queries(reference, segmentor(reference, "square_logits"))


def prediction(reference: Reference, array: str) -> ob.Prediction:
    return segment(reference, segmentor(reference, array))


CHECKS = [
    ("square_logits.*", window_logits, (1e-5, 0)),
    ("lof_scores", lof_scores, (1e-4, 0)),
    ("outlier_indices", outlier_indices, 1.0),
    ("mid_similarity", mid_similarity, (1e-5, 0)),
    ("query_features_c", query_features, (1e-5, 0)),
    ("label_map.*", lambda reference, array: prediction(reference, array).label_map, None),
    ("final_scores", lambda reference, array: prediction(reference, array).scores, (1e-3, 0)),
]
