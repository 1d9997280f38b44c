"""CASS with a tiny DINO of as many heads as CLIP: cosines, keys, the logits of the attention, and label maps."""

import re

from torch import Tensor

import ovss_bench as ob
from ovss_bench.encoders.vision import load_vision

from . import seeded
from .reference import Reference

METHODS = ("cass",)
INPUTS = ("query_features_c", "square_logits_randomsvd")  # the latter needs the random numbers of the official run
SAME = ("global_semantics_weight", "mean_vector_weight", "scale_factor", "k_eigen", "rank", "logit_scale", "pamr_steps")


def number(value) -> float:
    """The number with which a description begins."""
    return value if isinstance(value, int | float) else float(value.split()[0])


def width(reference: Reference, array: str) -> int:
    """Of both networks: 128, or as the description of the four heads says."""
    told = reference.info["inputs"]["dino_4heads"] if "4heads" in array else reference.info["inputs"]["dino"]
    return int(re.findall(r"width=(\d+)", told)[-1])


def seed(reference: Reference, network: str, name: str, base: int) -> int:
    told = reference.info["inputs"][network]
    found = re.search(r"dino_state_dict\((\d+)" if name == "vfm" else r"clip_state_dict\((\d+)", told)
    return reference.seed(name, int(found[1]) if found else base)


def segmentor(reference: Reference, array: str) -> ob.Segmentor:
    given, side = reference.hyperparameters, width(reference, array)
    four, city = "4heads" in array, "citywindow" in array
    dino = seeded.dino_state_dict(seed(reference, "dino_4heads" if four else "dino", "vfm", 41), width=side)
    clip = seeded.clip_state_dict(seed(reference, "dino_4heads" if four else "weights", "weights", 11), width=side)
    settings = reference.settings(array)
    window = settings.get("slide_crop", given["slide_crop"])
    return ob.build_segmentor(
        "cass",
        clip=ob.load_clip(state_dict=clip),
        vocabulary=ob.Vocabulary.from_features(
            reference.queries(re.sub("_c_.*", "_c", array)), group=reference.case["group"], background=True
        ),
        vfm=load_vision(state_dict=dino, heads=side // 64, layer_norm_eps=1e-6, feature="k"),
        window=window or "whole",
        stride=given["slide_stride"],
        sigma=number(given["gaussian_std"]),
        h_threshold=number(given["h_threshold"]),
        stretch=not (city or "voc20" in array),
        whole_image=not city,
        **{name: given[name] for name in SAME},
    )


def pixels(reference: Reference, array: str) -> Tensor:
    """The rectangle and the four heads have images of their own, for which the pairs of heads are unique."""
    told = reference.info["inputs"]
    shape = "rect" if array.startswith("rect") else "square"
    name = "four_heads_image" if "4heads" in array else f"{shape}_image"
    base = int(re.search(r"rgb_image\((\d+)", told[name])[1])
    return seeded.clip_input(seeded.rgb_image(reference.seed(name, base), *reference.case[shape]))


def window_logits(reference: Reference, array: str) -> Tensor:
    return segmentor(reference, array).patch_logits(ob.WindowBatch(pixels(reference, array)))[0]


def keys(reference: Reference, array: str) -> tuple:
    """The segmentor, and the keys (1, K, N, d) of CLIP and of DINO for the square window."""
    own, batch = segmentor(reference, array), ob.WindowBatch(pixels(reference, array))
    trunk = own.trunk(batch)
    block = own.clip.block(-1, trunk.grid)
    k = block.qkv(block.ln_1(trunk.tokens))[1][:, :, 1:]
    return own, k, own.keys(batch, k, trunk.grid)


def dino_keys(reference: Reference, array: str) -> Tensor:
    return keys(reference, array)[2][0, :, :: every(reference, array)]


def attention_logits(reference: Reference, array: str) -> Tensor:
    own, *both = keys(reference, array)
    return own.graph(*both)[0].mean(0)[:: every(reference, array)]


def every(reference: Reference, array: str) -> int:
    """`every 8th` or `rows 0,4,8,...` in the description."""
    told = " ".join(reference.about(array))
    found = re.search(r"every (\d+)\w\w|rows 0,(\d+),", told)
    return int(found[1] or found[2])


def prediction(reference: Reference, array: str) -> ob.Prediction:
    told = reference.info["inputs"]["slide_image"]
    base = int(re.search(r"rgb_image\((\d+)", told)[1])
    image = seeded.rgb_image(reference.seed("image", base), *reference.case["image"])
    given = {name: reference.case[name] for name in ("short_side", "threshold")}
    return ob.segment(segmentor(reference, array), image, **given)


CHECKS = [
    ("(square|rect)_logits.*", window_logits, (1e-5, 0)),
    ("dino_keys", dino_keys, (1e-4, 0)),
    ("attention_logits", attention_logits, (1e-4, 0)),
    ("label_map.*", lambda reference, array: prediction(reference, array).label_map, 0.999),
    ("final_scores.*", lambda reference, array: prediction(reference, array).scores, (1e-3, 0)),
]
