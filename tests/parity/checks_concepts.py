"""The arrays of SAM 3 and the methods on it: a tiny network with random weights, and stand-ins for what a network gives."""

import json
import re
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

import ovss_bench as ob
from ovss_bench.encoders.concepts import ConceptSegmenter, tokens
from ovss_bench.encoders.concepts_stand_in import random_network

from . import seeded
from .reference import Reference

METHODS = ("sam3", "segearth_ov3", "active_sam")


@lru_cache(maxsize=2)
def _segmenter(config: str, seed: int, gain: str) -> ConceptSegmenter:
    model = random_network(json.loads(config), seed, json.loads(gain)).eval()
    return ConceptSegmenter(model, name="tiny", identity="tiny")


def segmenter(reference: Reference) -> ConceptSegmenter:
    about = reference.info["network"]
    return _segmenter(json.dumps(about["config"]), about["weights_seed"] + reference.offset, json.dumps(about["gain"]))


def network_image(reference: Reference) -> np.ndarray:
    about = reference.info["network"]
    return seeded.rgb_image(about["image_seed"] + reference.offset, *about["image"])


def net(reference: Reference, array: str) -> Tensor:
    """What the official network gives, in the cut-outs that the description states."""
    words, network = reference.info["network"]["words"], segmenter(reference)
    if array == "net_tokens":
        return tokens(words).int()
    if array == "net_pixels":
        return network.image(network_image(reference)).pixels[0, :, ::8, ::8]
    masks, semantic, objects, presence = network(network_image(reference), words)
    return {
        "net_object_logits": objects,
        "net_presence_logits": presence[:, None],
        "net_mask_logits": masks[:, :3, ::2, ::2],
        "net_semantic_logits": semantic[:, ::2, ::2],
    }[array]


class StandIn:
    """Seeded outputs for all prompts, another set for each window in the order of the calls."""

    def __init__(self, reference: Reference) -> None:
        self.about, self.seed, self.window = (
            reference.info["stand_in"],
            reference.info["stand_in"]["seed"] + reference.offset,
            0,
        )

    def __call__(self, image: np.ndarray, prompts: tuple[str, ...], side: int | None = None) -> tuple[Tensor, ...]:
        q, n, cells = (self.about[name] for name in ("queries", "instances", "side"))
        s = self.seed + 10 * self.window
        self.window += side is None
        rows = [int(prompt.split()[-1]) for prompt in prompts]
        masks = 4 * seeded.feature_map(s, q * n, cells, cells)[0].reshape(q, n, cells, cells) - 3
        semantic = 4 * seeded.feature_map(s + 2, q, cells, cells)[0] - 2
        objects = _normal(s + 4, q, n) * 2 - 1
        presence = _normal(s + 5 if side is None else s + 8, q, 1) * 2 + 1
        return masks[rows], semantic[rows], objects[rows], presence[rows]


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def stand_in_image(reference: Reference, size: str) -> np.ndarray:
    """Any image of the size: the stand-in does not look at it."""
    return np.zeros((*reference.info["stand_in"][size], 3), np.uint8)


def run(
    reference: Reference, name: str, image: np.ndarray, group: list[int] | None, background: int = 0, **options
) -> ob.Prediction:
    return ob.segment(made(reference, name, group, background, **options), image)


def made(reference: Reference, name: str, group: list[int] | None, background: int = 0, **options) -> ob.Segmentor:
    """A segmentor with stand-in outputs; the prompts' last words are their numbers."""
    count = reference.info["stand_in"]["queries"]
    group = list(range(count)) if group is None else group
    words = [[f"prompt {q}" for q in range(count) if group[q] == c] for c in range(max(group) + 1)]
    vocabulary = ob.Vocabulary.from_names(words, background=background, templates="none")
    given = {"concepts": StandIn(reference), "early_skip": False} | options
    return ob.build_segmentor(name, vocabulary=vocabulary, **given)


def pick(prediction: ob.Prediction, array: str) -> Tensor:
    return prediction.scores if array.endswith("scores") else prediction.label_map


RECIPES = {
    "paint": "sam3_paint",
    "instance_max": "sam3",
    "fused_once": "sam3_fused_once",
    "semantic_gated": "sam3_semantic",
}
VARIANTS = {
    "semantic": {"heads": "semantic"},
    "instance": {"instance_weight": "score"},
    "instance_gated": {"instance_weight": "score", "gate": "class"},
    "both": {"heads": "both", "instance_weight": "score"},
}


def stated(reference: Reference, array: str) -> dict[str, float]:
    """The thresholds in the description of an array's label map."""
    prose = reference.about(array)[-1] + " " + reference.about(array.replace("scores", "label_map"))[-1]
    names = {"confidence": "confidence", "prob_thd": "prob_thd", "bg_thr": "prob_thd", "topk": "top_instances"}
    found = {name: re.search(rf"{name} (\d+(?:\.\d+)?)", prose) for name in names}
    return {ours: (int if name == "topk" else float)(found[name][1]) for name, ours in names.items() if found[name]}


def sam3(reference: Reference, array: str) -> Tensor:
    recipe = array.removesuffix("_label_map").removesuffix("_scores")
    group = None if recipe == "fused_once" else reference.info["stand_in"]["group"]
    options = stated(reference, array) | VARIANTS.get(recipe, {})
    return pick(run(reference, RECIPES.get(recipe, "sam3"), stand_in_image(reference, "image"), group, **options), array)


def segearth_ov3(reference: Reference, array: str) -> Tensor:
    about = reference.info["stand_in"]
    group, settings = about["group"], reference.info["settings"]
    options = {"confidence": settings["confidence_threshold"], "prob_thd": settings["prob_thd"]}
    if array.startswith("net_"):
        return network_maps(reference, "segearth_ov3", array, options)
    if array.startswith("slide_"):
        options |= {"slide_crop": about["crop"], "slide_stride": about["stride"]}
        return pick(run(reference, "segearth_ov3", stand_in_image(reference, "slide_image"), group, **options), array)
    background = max(group) if array.startswith("last") else settings.get("bg_idx", 0)
    options |= stated(reference, array)
    return pick(run(reference, "segearth_ov3", stand_in_image(reference, "image"), group, background, **options), array)


def network_maps(reference: Reference, name: str, array: str, options: dict) -> Tensor:
    options = options | stated(reference, array)
    return pick(ob.segment(on_network(reference, name, options), network_image(reference)), array)


def on_network(reference: Reference, name: str, options: dict) -> ob.Segmentor:
    """A segmentor on the tiny network, with the words of the description."""
    about = reference.info["network"]
    group = about["group"]
    words = [[word for word, c in zip(about["words"], group, strict=True) if c == wanted] for wanted in range(max(group) + 1)]
    vocabulary = ob.Vocabulary.from_names(words, background=True, templates="none")
    options = {"concepts": segmenter(reference), "early_skip": False} | options
    return ob.build_segmentor(name, vocabulary=vocabulary, **options)


def active_sam(reference: Reference, array: str) -> Tensor:
    settings = reference.info["settings"]
    part, _, what = array.partition("_")
    if part == "net":
        return active_network(reference, array, settings["net"], settings["confidence_threshold"])
    own = settings["all" if part == "no" else part]
    options = own | {"confidence": settings["confidence_threshold"], "mabc_exponent": settings["mabc_exponent"]}
    options |= {"prob_thd": 0.0 if part == "no" else settings["prob_thd"], "neighbor_tokens": 0, "hypernym_tokens": 0}
    about = reference.info["stand_in"]
    image = stand_in_image(reference, "image")
    if what != "active":
        return pick(run(reference, "active_sam", image, about["group"], settings["bg_idx"], **options), array)
    segmentor = made(reference, "active_sam", about["group"], settings["bg_idx"], **options)
    return torch.tensor(segmentor.active(image)).int()


def active_network(reference: Reference, array: str, settings: dict, confidence: float) -> Tensor:
    options = settings | {"confidence": confidence}
    if array.endswith(("scores", "label_map")):
        return network_maps(reference, "active_sam", array, options)
    segmentor = on_network(reference, "active_sam", options)
    return {
        "net_preview_presence": lambda: segmentor.preview(network_image(reference)),
        "net_active": lambda: torch.tensor(segmentor.active(network_image(reference))).int(),
        "net_context_tokens": lambda: segmentor.context.features,
        "net_context_ignored": lambda: ~segmentor.context.valid,
    }[array]()


def checks(reference: Reference, array: str) -> Tensor:
    return {"sam3": sam3, "segearth_ov3": segearth_ov3, "active_sam": active_sam}[reference.method](reference, array)


CHECKS = [
    (".*_(active|ignored)", checks, 1.0),
    ("net_context_tokens", checks, (1e-5, 0)),
    ("net_preview_presence", checks, (1e-4, 0)),
    ("net_tokens", net, (0, 0)),
    ("net_pixels", net, (1e-5, 0)),
    ("net_(object|presence)_logits", net, (2e-4, 0)),
    ("net_(mask|semantic)_logits", net, (1e-3, 0)),
    ("fused_once_label_map", checks, 1.0),
    (".*label_map", checks, None),
    ("net_scores", checks, (1e-3, 0)),
    (".*scores", checks, (5e-4, 0)),
]
