"""The arrays of CLIP-DINOiser, with two convolutions of one seed."""

import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

import ovss_bench as ob
from ovss_bench.image import normalize
from ovss_bench.segmentors.clip_dinoiser import CLIPDINOiser

from . import seeded
from .common import load_clip
from .reference import Reference

METHODS = ("clip_dinoiser",)
INPUTS = ("queries", "bkg_bias")
FOLDER = tempfile.TemporaryDirectory()


@cache
def checkpoint(seed: int, width: int, channels: int, bias: float) -> str:
    """The path of a checkpoint in the layout of the official one."""
    stream = seeded._Stream(seed)
    state = {
        "obj_proj.weight": stream.normal(channels, width, 3, 3, std=(9 * width) ** -0.5),
        "obj_proj.bias": stream.normal(channels, std=0.05),
        "bkg_decoder.weight": stream.normal(1, width, 1, 1, std=1.0),
        "bkg_decoder.bias": torch.tensor([bias]),
    }
    path = Path(FOLDER.name) / f"{seed}_{width}_{channels}_{bias}.pt"
    torch.save({"epoch": 5, "model_state_dict": state}, path)
    return str(path)


def clip_dinoiser(reference: Reference, **options) -> CLIPDINOiser:
    given = reference.info["hyper"] | reference.overrides
    seeds = {name: reference.seed(name, reference.info["seeds"][name]) for name in ("weights", "extra_weights")}
    clip = load_clip(seeds["weights"], activation="gelu")
    bias = reference.arrays["bkg_bias"].item()
    return ob.build_segmentor(
        "clip_dinoiser",
        clip=clip,
        vocabulary=ob.Vocabulary.from_features(torch.from_numpy(reference.arrays["queries"]), background=True),
        checkpoint=checkpoint(seeds["extra_weights"], clip.width, given["in_dim"], bias),
        **{name: given[name] for name in ("gamma", "delta", "feats_idx", "window", "stride")},
        temperature=float(given["temperature"]),
        **options,
    )


def inner(reference: Reference, shape: str) -> tuple:
    """The segmentor, the trunk's output for a window, and the middle features."""
    segmentor = clip_dinoiser(reference)
    image = seeded.rgb_image(reference.seed(f"{shape}_image", 21), *reference.case[shape])
    trunk = segmentor.trunk(ob.WindowBatch(normalize(image, "clip_exact")[None]))
    return segmentor, trunk, segmentor.middle(trunk)


def logits(reference: Reference, array: str) -> Tensor:
    segmentor, trunk, middle = inner(reference, array.partition("_")[0])
    pooled = segmentor.pooled(segmentor.features(trunk), segmentor.similarities(middle))
    return segmentor.compare(pooled, trunk.grid)[0]


def bkg_logits(reference: Reference, array: str) -> Tensor:
    segmentor, _, middle = inner(reference, "square")
    return segmentor.object_logits(middle)[0, 0]


def clip_feats(reference: Reference, array: str) -> Tensor:
    segmentor, trunk, _ = inner(reference, "square")
    return segmentor.features(trunk)[0].T.unflatten(1, trunk.grid)


def affinity_row_sum(reference: Reference, array: str) -> Tensor:
    segmentor, trunk, middle = inner(reference, "square")
    return segmentor.similarities(middle)[0].sum(1).unflatten(0, trunk.grid)


def label_map(reference: Reference, array: str) -> Tensor:
    segmentor = clip_dinoiser(reference, apply_found=array.endswith("background"), short_side=reference.case["short_side"])
    return ob.segment(segmentor, reference.image).label_map


def final_scores(reference: Reference, array: str) -> Tensor:
    return ob.segment(clip_dinoiser(reference, short_side=reference.case["short_side"]), reference.image).scores


CHECKS = [
    ("(square|rect)_logits", logits, (1e-5, 0)),
    ("bkg_logits", bkg_logits, (1e-5, 1e-5)),
    ("clip_feats", clip_feats, (1e-4, 0)),
    ("affinity_row_sum", affinity_row_sum, (1e-3, 1e-5)),
    ("label_map.*", label_map, None),
    ("final_scores", final_scores, (1e-3, 0)),
]
