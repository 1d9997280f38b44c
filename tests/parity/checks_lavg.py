"""LaVG: grounding with seeded masks, and the cuts of seeded features, with the signs that the official solver gave."""

import re

import numpy as np
import torch
from torch import Tensor

import ovss_bench as ob
from ovss_bench.ops.pictures import cleaned, masks_at
from ovss_bench.ops.spectral import cut_vector, repeated_cuts
from ovss_bench.segmentors.lavg import fitted

from . import seeded
from .common import load_clip, segment
from .reference import Reference

METHODS = ("lavg",)
INPUTS = ("query_features_c", "eig_signs")


def numbers(told: str, call: str) -> list[int]:
    """The whole numbers in the first call of a function in a description."""
    return [int(number) for number in re.findall(r"(?<![\w-])\d+", re.search(rf"{call}\(([^)]*)\)", told)[1])]


def seeded_masks(reference: Reference):
    """Six of eight regions; the second mask also holds the left half of the first."""
    base = numbers(reference.info["inputs"]["masks"], "region_map")[0]
    regions = int(re.search(r"regions=(\d+)", reference.info["inputs"]["masks"])[1])

    def masks(image: np.ndarray) -> np.ndarray:
        ids = seeded.region_map(reference.seed("masks", base), *image.shape[:2], regions=regions)
        found = np.stack([ids == number for number in range(regions - 2)])
        found[1, :, : image.shape[1] // 2] |= found[0, :, : image.shape[1] // 2]
        return found

    return masks


def segmentor(reference: Reference, array: str) -> ob.Segmentor:
    given = reference.hyperparameters
    voc21 = "voc21" in array
    # Said in words: "with the voc21 rule, logit_scale 65 and area_thd 0.1".
    told = {name: float(value) for name, value in re.findall(r"(logit_scale|area_thd) ([\d.]+)", reference.about(array)[-1])}
    return ob.build_segmentor(
        "lavg",
        clip=load_clip(reference.seed("weights", 11)),
        vocabulary=ob.Vocabulary.from_features(
            reference.queries(re.sub("_c_.*", "_c", array)), group=reference.case["group"], background=True
        ),
        regions=seeded_masks(reference),
        window=given["slide_crop"],
        stride=given["slide_stride"],
        pamr_steps=given["pamr_steps"],
        logit_scale=told.get("logit_scale", given["logit_scale"]),
        area_threshold=float(told.get("area_thd", given["area_thd"] or 0)),
        clear_background=voc21,
    )


def pixels(reference: Reference, array: str) -> Tensor:
    return reference.pixels("rect" if "rect" in array else "square")


def patch_logits(reference: Reference, array: str) -> Tensor:
    """SCLIP's, before masks."""
    return ob.SEGMENTORS.get("sclip").patch_logits(segmentor(reference, array), ob.WindowBatch(pixels(reference, array)))[0]


def window_logits(reference: Reference, array: str) -> Tensor:
    logits = segmentor(reference, array).patch_logits(ob.WindowBatch(pixels(reference, array)))[0]
    return logits[:, ::8, ::8]


def prediction(reference: Reference, array: str) -> ob.Prediction:
    return segment(reference, segmentor(reference, array))


def tokens(reference: Reference) -> tuple[Tensor, tuple[int, int]]:
    """The seeded features (N, C) and their grid."""
    base, *size = numbers(reference.info["inputs"]["cut_features"], "feature_map")
    features = seeded.feature_map(reference.seed("cut", base), *size)[0]
    return features.flatten(1).T, features.shape[1:]


def cut_masks(reference: Reference, array: str) -> Tensor:
    given, signs = reference.hyperparameters["cut"], reference.arrays["eig_signs"]
    features, grid = tokens(reference)
    return repeated_cuts(features, grid, given["N"], given["tau"], given["eps"], lambda number: float(signs[number])).int()


def eig_second(reference: Reference, array: str) -> Tensor:
    given, unit = reference.hyperparameters["cut"], torch.nn.functional.normalize(tokens(reference)[0].double(), dim=-1)
    return cut_vector(torch.where(unit @ unit.T > given["tau"], 1.0, given["eps"]).double()).abs().float()


def refined(reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    """The masks in pixels before and after the dense CRF, from the official masks on the grid."""
    base, *size = numbers(reference.info["inputs"]["crf_image"], "rgb_image")
    image = seeded.rgb_image(reference.seed("crf_image", base), *size)
    coarse = reference.arrays["cut_masks"].astype(bool)
    cell = size[0] // coarse.shape[1]
    masks = coarse.repeat(cell, 1).repeat(cell, 2)
    return masks, fitted(masks, image)


def crf_masks(reference: Reference, array: str) -> Tensor:
    return torch.from_numpy(refined(reference)[1])


def final_masks(reference: Reference, array: str) -> Tensor:
    width, height = map(int, re.search(r"width (\d+) x height (\d+)", reference.about(array)[-1]).groups())
    pairs = zip(*refined(reference), strict=True)
    return torch.from_numpy(masks_at([cleaned(after, mask) for mask, after in pairs], (height, width)))


CHECKS = [
    ("(square|rect)_logits", patch_logits, (1e-5, 0)),
    ("window_logits.*", window_logits, (1e-5, 0)),
    ("label_map.*", lambda reference, array: prediction(reference, array).label_map, 0.999),
    ("final_scores.*", lambda reference, array: prediction(reference, array).scores, (1e-3, 0)),
    ("cut_masks", cut_masks, 1.0),
    ("eig_second", eig_second, (1e-6, 0)),
    ("crf_masks", crf_masks, 0.99),
    ("final_masks", final_masks, 0.99),
]
