"""TagCLIP without training: patch scores, tags and their scores, and the refined activation maps of given tags."""

import re
from functools import cached_property

import torch
from torch import Tensor

import ovss_bench as ob

from . import seeded
from .common import load_clip
from .reference import Reference

METHODS = ("tagclip_training_free",)


class Given(ob.SEGMENTORS.get("tagclip_training_free")):
    """With the texts and the tags of the description."""

    given_background: Tensor
    given_tags: list[int]

    @cached_property
    def cam_text(self) -> Tensor:
        return torch.cat([self.stage_text[: len(self.vocabulary.foreground)], self.given_background])

    def tags(self, scores) -> list[int]:
        return self.given_tags


def foreground(reference: Reference) -> int:
    return len(reference.arrays["class_scores"])


def segmentor(reference: Reference, kind: str | None = None) -> ob.Segmentor:
    """The first queries are foreground classes, the others further queries of the background."""
    given, count = reference.info["hyper"] | reference.overrides, foreground(reference)
    queries = seeded.query_features(reference.seed("queries", 31), reference.case["queries"])
    group = [*range(1, count + 1), *(0 for _ in queries[count:])]
    first, last = map(int, re.search(r"index (\d+)\.\.(\d+)", given["dataset_branch"]).groups())
    share = float(re.search(r"threshold ([\d.]+)", given["dataset_branch"])[1])
    clip = load_clip(reference.seed("weights", 11))
    start, end = (int(number or 0) for number in re.search(r"\[(-\d+):(-\d+)?\]", given["stage2_attention"]).groups())
    own = ob.build_segmentor(
        "tagclip_training_free",
        clip=clip,
        vocabulary=ob.Vocabulary.from_features(queries, group=group, background=True),
        first_layer=first,
        last_layer=last,
        tag_threshold=share,
        cam_first=clip.depth + start,
        cam_last=clip.depth + end - 1,
        box_threshold=given["stage2_box_threshold"],
        logit_scale=given["logit_scale_stage1"],
        cam_scale=float(given["logit_scale_stage2"]),
    )
    if kind is None:
        return own
    seed, number = re.search(
        r"background queries: seeded\.query_features\((\d+),\s*(\d+)\)", reference.info["queries"]
    ).groups()
    own = Given(own.clip, own.vocabulary, own.recipe)
    Given.given_background = seeded.query_features(reference.seed("cam_queries", int(seed)), int(number))
    tags = re.findall(r"classes ([\d,]+)", " ".join(reference.about("final_scores")))[-1]
    Given.given_tags = [int(tag) for tag in tags.strip(",").split(",")]
    return own


def window_logits(reference: Reference, array: str) -> Tensor:
    own = segmentor(reference)
    return own.cosine_maps(own.trunk(ob.WindowBatch(reference.pixels(array.partition("_")[0]))))


def seen(reference: Reference) -> tuple:
    """The segmentor, the pixels of the image, its trunk and the attention for the tags."""
    own = segmentor(reference)
    pixels = ob.make_context(reference.image, own).pixels[None]
    trunk = own.trunk(ob.WindowBatch(pixels))
    return own, pixels, trunk, own.affinities(trunk)[0]


def coarse(reference: Reference, array: str) -> Tensor:
    own, _, trunk, _ = seen(reference)
    return own.coarse_scores(trunk)


def refined(reference: Reference, array: str) -> Tensor:
    own, _, trunk, affinity = seen(reference)
    return own.refined_scores(trunk, affinity)


def attention_mean(reference: Reference, array: str) -> Tensor:
    _, _, trunk, affinity = seen(reference)
    return affinity.mean(0).unflatten(0, trunk.grid)


def class_scores(reference: Reference, array: str) -> Tensor:
    own, pixels, trunk, affinity = seen(reference)
    own.reidentify = "before" not in array
    return torch.from_numpy(own.image_tags(pixels, own.refined_scores(trunk, affinity)))


def selected(reference: Reference, array: str) -> Tensor:
    return torch.tensor(segmentor(reference).tags(class_scores(reference, array).numpy()))


def prediction(reference: Reference) -> ob.Prediction:
    return ob.segment(segmentor(reference, "maps"), reference.image)


def final_scores(reference: Reference, array: str) -> Tensor:
    scores = prediction(reference).scores
    return scores[[0, *(tag + 1 for tag in Given.given_tags)]]


CHECKS = [
    ("(square|rect)_logits", window_logits, (1e-5, 0)),
    ("coarse_probs", coarse, (5e-5, 0)),
    ("refined_scores", refined, (1e-5, 0)),
    ("attention_mean", attention_mean, (1e-6, 0)),
    ("class_scores.*", class_scores, (1e-5, 0)),
    ("selected_classes", selected, 1.0),
    ("final_scores", final_scores, (1e-3, 1e-3)),
    ("label_map", lambda reference, array: prediction(reference).label_map, 0.999),
]
