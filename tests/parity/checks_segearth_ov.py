"""SegEarth-OV with a seeded upsampler (JBU-one)."""

import re
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

import ovss_bench as ob

from . import seeded
from .common import build, segment
from .reference import Reference

METHODS = ("segearth_ov",)
INPUTS = ("query_features_c",)
FOLDER = tempfile.TemporaryDirectory()


@cache
def checkpoint(prose: str, seed: int) -> str:
    """The path of the upsampler, drawn as its description says: `NAME s.normal(SHAPE,std=STD)` in this order, and constants."""
    stream, state = seeded._Stream(seed), {}
    for name, shape, std in re.findall(r"([\w.]+) s\.normal\(([\d,]+),std=([\d.]+)\)", prose):
        state[f"upsampler.{name}"] = stream.normal(*map(int, shape.split(",")), std=float(std))
    for name, value in re.findall(r"(up\.\w+)=([\d.]+)", prose):
        state[f"upsampler.{name}"] = torch.tensor(float(value.rstrip(".")))
    path = Path(FOLDER.name) / f"{abs(hash(prose))}_{seed}.pt"
    torch.save({"state_dict": state, "epoch": 10}, path)
    return str(path)


def segearth_ov(reference: Reference, array: str) -> ob.Segmentor:
    given = reference.hyperparameters
    upsampled = array in ("square_logits_up", "label_map", "final_scores", "label_map_c")
    options = {"residual": not given["ignore_residual"], "bias": given["cls_token_lambda"]}
    options["long_side"] = 2048  # of the run, unlike the recipe's
    options |= {"window": given["slide_crop"], "stride": given["slide_stride"], "logit_scale": given["logit_scale"]}
    if upsampled:
        prose = reference.info["inputs"]["upsampler"]
        base = int(re.search(r"_Stream\((\d+)\)", prose)[1])
        options["checkpoint"] = checkpoint(prose, reference.seed("upsampler", base))
    return build(reference, array, **options)


def logits(reference: Reference, array: str) -> Tensor:
    pixels = reference.pixels("rect" if array.startswith("rect") else "square")
    found = segearth_ov(reference, array).patch_logits(ob.WindowBatch(pixels))[0]
    return found[:, ::4, ::4] if array.endswith("_up") else found


def cls_feature(reference: Reference, array: str) -> Tensor:
    segmentor = segearth_ov(reference, array)
    trunk = segmentor.trunk(ob.WindowBatch(reference.pixels("square")))
    x = segmentor.last_block(segmentor.clip.block(-1, trunk.grid), trunk.tokens)
    return segmentor.clip.project(x)[0, 0]


def prediction(reference: Reference, array: str) -> ob.Prediction:
    return segment(reference, segearth_ov(reference, array))


CHECKS = [
    (".*_logits.*", logits, (1e-5, 0)),
    ("cls_feature", cls_feature, (1e-4, 0)),
    ("label_map.*", lambda reference, array: prediction(reference, array).label_map, None),
    ("final_scores", lambda reference, array: prediction(reference, array).scores, (1e-3, 0)),
]
