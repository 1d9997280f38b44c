"""ResCLIP: cosines of all strategies, the labels and ties of the feedback, and label maps by windows."""

import re

from torch import Tensor

import ovss_bench as ob

from .common import load_clip, principal_queries, segment
from .reference import Reference

METHODS = ("resclip",)


def segmentor(reference: Reference, array: str) -> ob.Segmentor:
    given = reference.hyperparameters
    told = " ".join(reference.about(array)) if array not in ("label_map", "final_scores") else ""
    given |= dict(re.findall(r"(arch|attn_strategy)=(\w+)", told))
    inner = re.search(r"(\d+) steps, dilations \(([\d, ]+)\)", given["inner_pamr"])
    return ob.build_segmentor(
        "resclip",
        clip=load_clip(reference.seed("weights", 11)),
        vocabulary=ob.Vocabulary.from_features(reference.queries(array), group=reference.case["group"], background=True),
        strategy=given["attn_strategy"].split()[0],
        residual=given["arch"] == "w_resi",
        window=given["slide_crop"],
        stride=given["slide_stride"],
        logit_scale=given["logit_scale"],
        pamr_steps=given["pamr_steps"],
        area_threshold=given["area_thd"] or 0.0,
        sfr_pamr_steps=int(inner[1]),
        pamr_dilations=tuple(map(int, inner[2].split(","))),
        temp_thd=given["temp_thd"],
        rcs_tau=given["attn_rcs_weights"][0],
        rcs_lambda=given["attn_rcs_weights"][1],
        sfr_tau=given["attn_sfr_weights"][0],
        sfr_lambda=given["attn_sfr_weights"][1],
        delete_same_entity=given["delete_same_entity"],
        gaussian_std=given["gaussian_std"],
    )


def window_logits(reference: Reference, array: str) -> Tensor:
    pixels = reference.pixels("rect" if array.startswith("rect") else "square")
    return segmentor(reference, array).patch_logits(ob.WindowBatch(pixels))[0]


def first_pass(reference: Reference, array: str) -> tuple:
    """The segmentor and the query of each patch of the square window."""
    own, batch = segmentor(reference, array), ob.WindowBatch(reference.pixels("square"))
    trunk = own.trunk(batch)
    block = own.clip.block(-1, trunk.grid)
    qkv, middle = block.qkv(block.ln_1(trunk.tokens)), own.middle_attention(trunk)
    x = own.last_block(block, trunk.tokens, qkv, middle)
    return own, own.patch_labels(own.cosines(x, trunk.grid)[0], batch.pixels[0])


def patch_classes(reference: Reference, array: str) -> Tensor:
    return first_pass(reference, array)[1]


def attention_sfr(reference: Reference, array: str) -> Tensor:
    own, labels = first_pass(reference, array)
    step = int(re.findall(r"every (\d+)\w\w row", " ".join(reference.about(array)))[-1])
    return own.feedback(labels)[::step]


def query_features(reference: Reference, array: str) -> Tensor:
    return principal_queries(reference, segmentor(reference, "square_logits"))


def prediction(reference: Reference, array: str) -> ob.Prediction:
    return segment(reference, segmentor(reference, array))


CHECKS = [
    ("(square|rect)_logits.*", window_logits, (1e-5, 0)),
    ("patch_classes_c", patch_classes, 1.0),
    ("attention_sfr_c", attention_sfr, (1e-6, 0)),
    ("query_features_c", query_features, (1e-5, 0)),
    ("label_map.*", lambda reference, array: prediction(reference, array).label_map, 0.999),
    ("final_scores", lambda reference, array: prediction(reference, array).scores, (1e-3, 0)),
]
