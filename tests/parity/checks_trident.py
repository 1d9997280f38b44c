"""Trident with a tiny DINO, seeded outputs of SAM's encoder, and an analytic stand-in for its decoder."""

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import ovss_bench as ob
from ovss_bench.auxiliary.masks import enlarged
from ovss_bench.encoders.vision import load_vision
from ovss_bench.ops.pictures import in_frame
from ovss_bench.ops.scores import Decision

from . import seeded
from .common import load_clip
from .reference import Reference

METHODS = ("trident",)
SIDE, PATCH = 1024, 16  # of SAM's input


class StandIn:
    """What the official run took for SAM; `boxes` are those of all prompts, in SAM's frame."""

    def __init__(self, reference: Reference) -> None:
        self.reference, self.boxes = reference, []

    def __call__(self, image: np.ndarray) -> SimpleNamespace:
        inside = in_frame(image.shape[:2], SIDE)
        grid = [side // PATCH for side in inside]
        values, queries = (
            seeded.feature_map(self.reference.seed(name, base), 32, *grid)[0].unflatten(0, (2, 16))
            for name, base in (("sam_v", 46), ("sam_q", 48))
        )
        flat = queries.flatten(2)
        attention = (0.25 * flat.transpose(1, 2) @ flat).softmax(-1)

        def decode(boxes: Tensor, points: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
            self.boxes.append(boxes)
            x, y = 4.0 * torch.arange(256) + 2, 4.0 * torch.arange(256)[:, None] + 2
            x1, y1, x2, y2 = (side.view(-1, 1, 1) for side in boxes.unbind(1))
            rx, ry = (x2 - x1) / 2 + 1, (y2 - y1) / 2 + 1
            logits = 6 * (1 - ((x - (x1 + x2) / 2) / rx) ** 2 - ((y - (y1 + y2) / 2) / ry) ** 2)
            iou = torch.where(x2 - x1 >= 0.6 * (y2 - y1), 0.95, 0.5).flatten()
            return enlarged(logits[:, None], SIDE, inside, image.shape[:2])[:, 0], iou

        return SimpleNamespace(values=values, attention=attention, decode=decode)


def segmentor(reference: Reference, array: str, **options) -> ob.Segmentor:
    about, pipeline, refine = (reference.info[name] for name in ("dino", "pipeline", "refine"))
    weights = about["args"]
    state = seeded.dino_state_dict(
        reference.seed("vfm", weights["seed"]), width=weights["width"], patch_size=weights["patch_size"]
    )
    vocabulary = ob.Vocabulary.from_features(reference.queries(array), group=reference.case["group"], background=True)
    return ob.build_segmentor(
        "trident",
        clip=load_clip(reference.seed("weights", 11)),
        vocabulary=vocabulary,
        vfm=load_vision(state_dict=state, heads=about["num_heads"], layer_norm_eps=1e-6),
        sam=StandIn(reference),
        window=pipeline["window"],
        stride=pipeline["stride"],
        logit_scale=pipeline["logit_scale"],
        short_side=reference.case["short_side"],
        threshold=reference.case["threshold"],
        **{name: pipeline[name] for name in ("beta", "gamma", "cos_fac", "refine_neg_cos")},
        **{name: refine[name] for name in ("coarse_thresh", "minimal_area", "sam_mask_coff", "sam_iou_thresh")},
        **{"sam_refine": False} | options,
    )


def scene(reference: Reference, own: ob.Segmentor) -> ob.ImageContext:
    return ob.make_context(reference.image, own)


def image_logits(reference: Reference, array: str) -> Tensor:
    """On SAM's grid, for a window that is an image."""
    own, pixels = segmentor(reference, array), reference.pixels(array.removesuffix("_logits"))
    image = np.zeros((*pixels.shape[2:], 3), np.uint8)  # the stand-in takes its size only
    return own.cosines_of(pixels[0], ob.ImageContext(image, image, pixels[0], image.shape[:2]))[0]


def prediction(reference: Reference, array: str) -> ob.Prediction:
    return ob.segment(segmentor(reference, array), reference.image)


def coarse(reference: Reference, own: ob.Segmentor) -> tuple[Tensor, Tensor]:
    """Seeded logits through the decision: class scores and labels at the size of the image."""
    logits = 0.05 * seeded.feature_map(reference.seed("post", 61), reference.case["queries"], 10, 12)
    decision = Decision(own.vocabulary, own.recipe.logit_scale, reference.case["threshold"])
    scores = decision.class_scores(F.interpolate(logits, reference.case["image"], mode="bilinear")[0])
    return scores, decision.from_scores(scores)


def post_label_map(reference: Reference, array: str) -> Tensor:
    return coarse(reference, segmentor(reference, array))[1]


def refined(reference: Reference, array: str) -> tuple[ob.Segmentor, Tensor]:
    own = segmentor(reference, array, sam_refine=True)
    context = scene(reference, own)
    context.by_products["scores"], labels = coarse(reference, own)
    return own, own.correct(labels, context)


def refine_boxes(reference: Reference, array: str) -> Tensor:
    return torch.cat(refined(reference, array)[0].sam.boxes)


CHECKS = [
    ("(square|rect)_logits", image_logits, (1e-4, 0)),  # cosines at their threshold: rounding moves a cell by 4e-5
    ("label_map", lambda reference, array: prediction(reference, array).label_map, 0.999),
    ("final_scores", lambda reference, array: prediction(reference, array).scores, (1e-3, 0)),
    ("post_label_map", post_label_map, 0.999),
    ("refined_label_map", lambda reference, array: refined(reference, array)[1], 0.999),
    ("refine_boxes", refine_boxes, (1e-3, 0)),
]
