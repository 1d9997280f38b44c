"""TagCLIP's prompted tower and decoder with seeded weights, and its windows."""

from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import ovss_bench as ob
from ovss_bench.ops.position import resample_position
from trained_networks import tagclip_state

from . import seeded
from .common import load_clip
from .reference import Reference

METHODS = ("tagclip",)


FOLDER = TemporaryDirectory()


def checkpoint(reference: Reference) -> str:
    """A file in the layout of the official checkpoints."""
    given = reference.info["hyper"]
    clip = seeded.clip_state_dict(reference.seed("weights", 11))
    grid = (given["image_size"] // 16,) * 2
    position = resample_position(clip["visual.positional_embedding"], grid, (14, 14), "bilinear")
    clip["visual.positional_embedding"] = position
    seeds = reference.seed("extra_weights", 12), reference.seed("head_weights", 13)
    state = tagclip_state(clip, given["prompt_tokens"], given["ffn"], seeds=seeds)
    last = "decode_head.decoder.layers.2.multihead_attn.k"
    state[f"{last}.weight"] *= 4
    state[f"{last}.bias"] = torch.from_numpy(reference.arrays["layer2_k_bias"])
    path = f"{FOLDER.name}/tagclip.pth"
    torch.save({"state_dict": state}, path)
    return path


def tagclip(reference: Reference, trusty: str = "both") -> ob.Segmentor:
    given = reference.info["hyper"] | reference.overrides
    return ob.build_segmentor(
        "tagclip",
        clip=load_clip(reference.seed("weights", 11)),
        vocabulary=ob.Vocabulary.from_features(reference.queries("")),
        checkpoint=checkpoint(reference),
        trusty=trusty,
        unseen=given["unseen"],
        seen_offset=given["seen_offset"],
        window=given["window"],
        stride=given["stride"],
        precision="fp32",
    )


def features(reference: Reference) -> tuple[Tensor, Tensor]:
    return tagclip(reference).network.backbone(reference.pixels("square"))


def mask_logits(reference: Reference) -> Tensor:
    segmentor = tagclip(reference)
    return segmentor.network(reference.pixels("square"), segmentor.text, True)[0]


def last_bias(reference: Reference, array: str) -> Tensor:
    """An input of the case, loaded."""
    return tagclip(reference).network.decode_head.decoder.layers[-1].multihead_attn.k.bias


class Raw(ob.SEGMENTORS.get("tagclip")):
    """The scores before the softmax, which mmsegmentation applies last."""

    def scores(self, cosines: Tensor, context: ob.ImageContext) -> Tensor:
        return cosines


def final_scores(reference: Reference, array: str) -> Tensor:
    own = tagclip(reference)
    raw = Raw(own.clip, own.vocabulary, own.recipe.override(short_side=reference.case["short_side"], logit_scale=1))
    return ob.segment(raw, reference.image).scores


def label_map(reference: Reference, array: str) -> Tensor:
    trusty = "off" if array.endswith("noweight") else "both"
    return ob.segment(tagclip(reference, trusty), reference.image, short_side=reference.case["short_side"]).label_map


CHECKS = [
    ("global_feat", lambda reference, array: features(reference)[0][0], (1e-5, 0)),
    ("patch_feats", lambda reference, array: features(reference)[1][0], (1e-5, 0)),
    ("square_logits", lambda reference, array: mask_logits(reference)[:-1], (1e-4, 0)),
    ("square_trusty", lambda reference, array: mask_logits(reference)[-1], (1e-4, 0)),
    ("final_scores", final_scores, (1e-3, 0)),
    ("label_map.*", label_map, 0.999),
    ("layer2_k_bias", last_bias, (0, 0)),
]
