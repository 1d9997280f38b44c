"""ProxyCLIP with stand-in features, and with a tiny DINO."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import ovss_bench as ob
from ovss_bench.encoders.vision import load_vision
from ovss_bench.ops.scores import Decision
from ovss_bench.segmentors.corrclip import CorrCLIP

from . import seeded
from .common import build, load_clip
from .reference import Reference

METHODS = ("proxyclip", "proxyclip_dino")
VFM_SIDE = 8  # pixels of a cell of the stand-in features, as of DINO's patches


def stand_in(reference: Reference, batch: ob.WindowBatch, channels: int = 32) -> Tensor:
    """The official run took feature_map(seed + 10 k) for the k-th window; only real windows get here, in their order."""
    height, width = (side // VFM_SIDE for side in batch.pixels.shape[2:])
    seed = reference.seed("vfm", reference.info["vfm"]["seed"])
    return torch.cat([seeded.feature_map(seed + 10 * k, channels, height, width) for k in range(len(batch.pixels))])


def dino(reference: Reference, feature: str):
    about = reference.info.get("vfm", reference.info.get("dino"))
    weights = about["args"]
    state = seeded.dino_state_dict(reference.seed("vfm", weights["seed"]), width=weights["width"])
    return load_vision(state_dict=state, heads=about["num_heads"], layer_norm_eps=about["layernorm_eps"], feature=feature)


def proxyclip(reference: Reference, array: str) -> ob.Segmentor:
    vfm = dino(reference, "tokens") if reference.method == "proxyclip_dino" else partial(stand_in, reference)
    pipeline = reference.info["pipeline"]
    constants = {name: float(pipeline[name]) for name in ("beta", "gamma") if name in pipeline}
    return build(reference, array, "proxyclip", vfm=vfm, pad_multiple=pipeline["pad_multiple"], **constants)


def window_pixels(reference: Reference, array: str) -> Tensor:
    if "336" not in array:
        return reference.pixels("square")
    return seeded.clip_input(seeded.rgb_image(reference.seed("square_image", 21), 336, 336))


def window_logits(reference: Reference, array: str) -> Tensor:
    return proxyclip(reference, array).patch_logits(ob.WindowBatch(window_pixels(reference, array)))[0]


def pipeline_options(reference: Reference) -> dict:
    pipeline = reference.info["pipeline"]
    given = {name: reference.case[name] for name in ("short_side", "threshold")}
    return given | {"window": pipeline["window"], "stride": pipeline["stride"], "logit_scale": pipeline["logit_scale"]}


def label_map(reference: Reference, array: str) -> Tensor:
    return ob.segment(proxyclip(reference, array), reference.image, **pipeline_options(reference)).label_map


def final_scores(reference: Reference, array: str) -> Tensor:
    return ob.segment(proxyclip(reference, array), reference.image, **pipeline_options(reference)).scores


def text_features(reference: Reference, array: str) -> Tensor:
    clip = load_clip(reference.seed("weights", 11))
    return ob.Vocabulary.from_names(["sky", "traffic light", "dog"]).features(clip)


def post_label_map(reference: Reference, array: str) -> Tensor:
    """Seeded logits through the post-processing: original size, scale, softmax, maximum over synonyms, threshold, and the map
    correction of CorrCLIP."""
    corrclip = reference.method == "corrclip"
    segmentor = (
        build(reference, array, regions=region_map(reference), vfm=dino(reference, "q+k"))
        if corrclip
        else proxyclip(reference, array)
    )
    scene = ob.make_context(
        reference.image, segmentor.with_recipe(segmentor.recipe.override(short_side=reference.case["short_side"]))
    )
    size = (10, 12) if corrclip else scene.resized.shape[:2]
    logits = 0.05 * seeded.feature_map(reference.seed("post", 61), reference.case["queries"], *size)
    logits = F.interpolate(logits, scene.resized.shape[:2], mode="bilinear")
    decision = Decision(segmentor.vocabulary, segmentor.recipe.logit_scale, reference.case["threshold"])
    labels = decision.from_scores(decision.class_scores(F.interpolate(logits, scene.size, mode="bilinear")[0]))
    return segmentor.correct(labels, scene) if isinstance(segmentor, CorrCLIP) else labels


def region_map(reference: Reference):
    """The seeded regions at the size of whatever image is shown."""
    seed = reference.seed("masks", reference.info["masks"]["seed"])
    return lambda image: seeded.region_map(seed, *image.shape[:2], regions=9)


def dino_tokens(reference: Reference, array: str) -> Tensor:
    (tokens,) = dino(reference, "tokens")(ob.WindowBatch(window_pixels(reference, array)))
    step = 6 if "336" in array else 4
    return tokens.permute(1, 2, 0)[::step, ::step]


CHECKS = [
    ("square.*_logits", window_logits, (1e-5, 0)),
    ("dino_tokens.*", dino_tokens, (1e-4, 0)),
    ("text_features", text_features, (1e-5, 0)),
    ("label_map", label_map, None),
    ("final_scores", final_scores, (1e-3, 0)),
    ("post_label_map", post_label_map, None),
]
