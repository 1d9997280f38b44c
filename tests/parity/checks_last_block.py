"""The arrays of the methods that change nothing but CLIP's last block, of GEM and of PAMR."""

import torch
import torch.nn.functional as F
from torch import Tensor

import ovss_bench as ob
from ovss_bench.inference.engine import make_context
from ovss_bench.ops.pamr import PAMR, affinity

from .common import build, final_scores, label_map, patch_logits, settings
from .reference import Reference

METHODS = ("clip", "maskclip", "sclip", "clearclip", "naclip", "gem", "pamr")


def official_maskclip(reference: Reference, array: str) -> Tensor:
    return build(reference, array, "maskclip_original").patch_logits(ob.WindowBatch(reference.pixels("square")))[0]


def gem_heatmaps(reference: Reference, array: str) -> Tensor:
    side = int(array.rpartition("_")[2])
    segmentor = build(reference, array, "gem_original", short_side=side)
    scene = make_context(reference.image, segmentor)
    maps = segmentor.patch_logits(ob.WindowBatch(scene.pixels[None]))
    return segmentor.refine(F.interpolate(maps, (side, side), mode="bilinear")[0], scene)[:, ::16, ::16]


def last_block(reference: Reference, array: str) -> tuple:
    """The segmentor, the last block and the tokens that enter it, on the square window."""
    segmentor = build(reference, array)
    trunk = segmentor.trunk(ob.WindowBatch(reference.pixels("square")))
    return segmentor, segmentor.clip.block(-1, trunk.grid), trunk.tokens


def tokens(reference: Reference, array: str) -> Tensor:
    segmentor, block, x = last_block(reference, array)
    return segmentor.clip.project(segmentor.last_block(block, x))[0, ::8]


def cls_embedding(reference: Reference, array: str) -> Tensor:
    return tokens(reference, array)[0]


def last_ln1(reference: Reference, array: str) -> Tensor:
    _, block, x = last_block(reference, array)
    return block.ln_1(x)[0, ::8]


def attention_mean(reference: Reference, array: str) -> Tensor:
    """Attending to the identity returns the attention itself."""
    segmentor, block, x = last_block(reference, array)
    q, k, _ = block.qkv(block.ln_1(x))
    identity = torch.eye(x.shape[1]).expand(*q.shape[:2], -1, -1)
    return segmentor.mix(q, k, identity, block.grid).mean(1)[0, ::4]


def pamr_refined(reference: Reference, array: str) -> Tensor:
    guide, mask = reference.pamr_inputs()
    if array == "refined_fullsize":
        mask = F.interpolate(mask[None], guide.shape[1:], mode="bilinear")[0]
    given = settings(reference, array)
    return PAMR(guide, given["pamr_steps"], given["pamr_dilations"])(mask)


def pamr_affinity(reference: Reference, array: str) -> Tensor:
    return affinity(reference.pamr_inputs()[0], settings(reference, array)["pamr_dilations"])[:, ::4, ::4]


# Names of arrays -> how to compute them, and the tolerance: absolute, relative.
CHECKS = [
    ("(square|rect)_logits.*", patch_logits, (1e-5, 0)),
    ("official_logits", official_maskclip, (1e-6, 0)),  # 1e-5 would not tell the original's LayerNorm epsilon from CLIP's
    ("official_refined", official_maskclip, (1e-6, 1e-4)),  # not cosines: up to 30, and values around 0
    ("label_map.*", label_map, None),
    ("final_scores", final_scores, (1e-3, 0)),
    ("gem_heatmaps_.*", gem_heatmaps, (1e-5, 0)),
    ("tokens", tokens, (1e-4, 0)),
    ("cls_embedding", cls_embedding, (1e-4, 0)),
    ("last_ln1", last_ln1, (1e-4, 0)),
    ("attention_mean", attention_mean, (1e-5, 0)),
    ("refined.*", pamr_refined, (1e-5, 0)),
    ("affinity", pamr_affinity, (1e-5, 0)),
]
