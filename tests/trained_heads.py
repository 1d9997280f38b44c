"""Checkpoints of methods that are trained on top of CLIP, in the official key layout, with seeded random weights."""

import tempfile
from functools import cache
from pathlib import Path

import torch

FOLDER = tempfile.TemporaryDirectory()
WIDTHS = {64: 128, 32: 64, 128: 128}  # of two tiny CLIPs and that of the demo, by the channels of their texts


def random_state(shapes, seed=7):
    """Weights that keep the size of what they are multiplied with, and small biases."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        spread = 0.05 if len(shape) == 1 else torch.Size(shape[1:]).numel() ** -0.5
        state[name] = spread * torch.randn(shape, generator=generator)
    return state


def dinoiser_state(width, channels=24):
    shapes = {"obj_proj.weight": (channels, width, 3, 3), "obj_proj.bias": (channels,)}
    return random_state(shapes | {"bkg_decoder.weight": (1, width, 1, 1), "bkg_decoder.bias": (1,)})


def pacl_state(width, text, hidden=40, joint=48):
    """The embedders of patches and texts, with the linear path registered twice, and the rest of DataParallel's state dict."""
    shapes = {"visual_projection.0.weight": (width,), "visual_projection.0.bias": (width,)}
    shapes |= {"text_projection.0.weight": (text,), "text_projection.0.bias": (text,)}
    layers = {"visual_projection.2.linear_projection.0": (joint, width), "text_projection.2": (joint, text)}
    layers |= {"visual_projection.2.non_linear_projection.0": (hidden, width)}
    layers |= {"visual_projection.2.non_linear_projection.2": (joint, hidden)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    state = random_state(shapes)
    for name in ("visual_projection", "text_projection"):
        state[f"{name}.0.weight"] += 1
    for kind in ("weight", "bias"):
        state[f"visual_projection.2.text_projection.0.{kind}"] = state[f"visual_projection.2.linear_projection.0.{kind}"]
    state["clip_model.logit_scale"] = torch.tensor(4.6)
    return {f"module.{name}": tensor for name, tensor in state.items()}


def upsampler_state(channels, names=("up",), side=5, hidden=8):
    """JBU-one or JBU-stack with kernels of side x side."""
    taps, shapes = side * side, {"fixup_proj.1.weight": (channels, channels, 1, 1), "fixup_proj.1.bias": (channels,)}
    layers = {"range_proj.0": (hidden, 3), "range_proj.3": (hidden, hidden)}
    layers |= {"fixup_proj.0": (taps, taps + 3), "fixup_proj.3": (taps, taps)}
    for name in names:
        for layer, (outer, inner) in layers.items():
            shapes |= {f"{name}.{layer}.weight": (outer, inner, 1, 1), f"{name}.{layer}.bias": (outer,)}
    constants = {f"{name}.{constant}": torch.tensor(0.5) for name in names for constant in ("range_temp", "sigma_spatial")}
    return random_state(shapes) | constants


STATES = {
    "clip_dinoiser": lambda width, joint: {"model_state_dict": dinoiser_state(width), "epoch": 5},
    "pacl": pacl_state,
    "segearth_ov": lambda width, joint: upsampler_state(joint),
}


@cache
def checkpoint(method, joint):
    path = Path(FOLDER.name) / f"{method}_{joint}.pt"
    torch.save(STATES[method](WIDTHS[joint], joint), path)
    return str(path)


def heads_of(segmentor, joint=64):
    """The weights that a segmentor needs for a CLIP with texts of `joint` channels; none for most."""
    return {"checkpoint": checkpoint(segmentor, joint)} if segmentor in STATES else {}
