"""Checkpoints of trained methods in the official key layout, with seeded random weights of tiny sizes."""

import re
import tempfile
from functools import cache
from pathlib import Path

import torch

import ovss_bench as ob
from ovss_bench.config.recipe import parts
from parity.seeded import _Stream, clip_state_dict
from trained_heads import heads_of


def seeded_values(shapes, stream):
    """The parity set's rule for trained weights: the names in sorted order, from one stream."""
    state = {}
    for name, shape in sorted(shapes.items()):
        if re.search("prompt_embeddings|disc_token", name):
            state[name] = stream.normal(*shape, std=0.3)
        elif len(shape) > 1:
            state[name] = stream.normal(*shape, std=1.4 * shape[-1] ** -0.5)
        elif "norm" in name and name.endswith("weight"):
            state[name] = stream.normal(*shape, std=0.1, mean=1.0)
        else:
            state[name] = stream.normal(*shape, std=0.05)
    return state


def prompt_shapes(width, depth, prompts):
    shapes = {"prompt_embeddings": (1, prompts, width), "deep_prompt_embeddings": (depth - 1, prompts, width)}
    shapes |= {"prompt_proj.weight": (width, width), "prompt_norm.weight": (width,)}
    return shapes | {"prompt_proj.bias": (width,), "prompt_norm.bias": (width,)}


def head_shapes(joint, inner, layout="tagclip", layers=3):
    shapes = {"q_proj.weight": (joint, 2 * joint), "q_proj.bias": (joint,)}
    if layout == "tagclip":
        shapes = {f"relationship_discriptor.{name}": shape for name, shape in shapes.items()} | {"disc_token": (1, joint)}
        attention = {"in_proj_weight": (3 * joint, joint), "in_proj_bias": (3 * joint,)}
        attention |= {"out_proj.weight": (joint, joint), "out_proj.bias": (joint,)}
        shapes |= {f"decoder.layers.0.self_attn.{name}": shape for name, shape in attention.items()}
    linear = {f"multihead_attn.{part}": (joint, joint) for part in ("q", "k", "v", "proj")}
    linear |= {"linear1": (inner, joint), "linear2": (joint, inner)}
    for i in range(layers):
        for name, shape in linear.items():
            shapes |= {f"decoder.layers.{i}.{name}.weight": shape, f"decoder.layers.{i}.{name}.bias": shape[:1]}
        for norm in ("norm1", "norm2", "norm3"):  # also where the first is unused
            shapes |= {f"decoder.layers.{i}.{norm}.{kind}": (joint,) for kind in ("weight", "bias")}
    return shapes


def tagclip_state(clip, prompts=10, inner=256, layout="tagclip", seeds=(12, 13)):
    """With the image tower of a CLIP's state dict, and its text tower, which the checkpoints hold, too."""
    visual = {name.removeprefix("visual."): tensor for name, tensor in clip.items() if name.startswith("visual.")}
    depth = 1 + max(int(name.split(".")[2]) for name in visual if "resblocks" in name)
    width, joint = visual["proj"].shape
    parts = {
        "backbone": visual | seeded_values(prompt_shapes(width, depth, prompts), _Stream(seeds[0])),
        "decode_head": seeded_values(head_shapes(joint, inner, layout), _Stream(seeds[1])),
        "text_encoder": {n: t for n, t in clip.items() if re.match("token_|positional_|transformer|ln_final|text_", n)},
    }
    return {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}


def deeplab_shapes(blocks=(1, 1, 2, 1), width=8, stem=4, joint=64, version=2, detail=6):
    """Of a ResNet-V1c and a DeepLabv2 or v3+ head."""
    shapes = {}

    def conv(name, outer, inner, size=1, norm=None):
        norm = norm or f"{name.removesuffix('.conv')}.bn"
        shapes[f"{name}.weight"] = (outer, inner, size, size)
        shapes.update({f"{norm}.{kind}": (outer,) for kind in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{norm}.num_batches_tracked"] = ()

    for i, (inner, outer) in enumerate(((3, stem), (stem, stem), (stem, width))):
        conv(f"backbone.stem.{3 * i}", outer, inner, 3, f"backbone.stem.{3 * i + 1}")
    inner = width
    for stage, count in enumerate(blocks):
        planes = width * 2**stage
        for i in range(count):
            block = f"backbone.layer{stage + 1}.{i}"
            for n, (before, after, size) in enumerate(((inner, planes, 1), (planes, planes, 3), (planes, 4 * planes, 1)), 1):
                conv(f"{block}.conv{n}", after, before, size, f"{block}.bn{n}")
            if i == 0:
                conv(f"{block}.downsample.0", 4 * planes, inner, 1, f"{block}.downsample.1")
            inner = 4 * planes
    head = "decode_head.decode_module"
    if version == 2:
        for i in range(4):
            conv(f"{head}.aspp_modules.{i}.conv", joint, inner, 3)
        return shapes

    def separable(name, outer, before):
        conv(f"{name}.depthwise_conv.conv", before, 1, 3)
        conv(f"{name}.pointwise_conv.conv", outer, before)

    conv(f"{head}.image_pool.1.conv", joint, inner)
    conv(f"{head}.aspp_modules.0.conv", joint, inner)
    for i in (1, 2, 3):
        separable(f"{head}.aspp_modules.{i}", joint, inner)
    conv(f"{head}.bottleneck.conv", joint, 5 * joint, 3)
    conv(f"{head}.c1_bottleneck.conv", detail, 4 * width)
    separable(f"{head}.sep_bottleneck.0", joint, joint + detail)
    separable(f"{head}.sep_bottleneck.1", joint, joint)
    return shapes


def deeplab_state(classes=5, background=False, teacher="vit", seed=14, joint=64, **sizes):
    """With text features and the teacher's weights, which the checkpoints hold, too."""
    stream, state = _Stream(seed), {}
    for name, shape in deeplab_shapes(joint=joint, **sizes).items():
        if len(shape) == 4:
            state[name] = stream.normal(*shape, std=1.4 * (shape[1] * shape[2] * shape[3]) ** -0.5)
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith(("bias", "running_mean")):
            state[name] = stream.normal(*shape, std=0.1)
        else:
            state[name] = stream.normal(*shape, std=0.1).abs() + 0.7
    state["decode_head.text_embeddings"] = torch.nn.functional.normalize(stream.normal(classes, joint), dim=-1)
    state["decode_head._iter_counter"] = torch.zeros(1)
    if background:
        state["decode_head.bg_embeddings"] = stream.normal(1, joint)
    names = ["proj.weight"] if teacher == "vit" else [f"{p}_proj.{kind}" for p in "qkvc" for kind in ("weight", "bias")]
    return state | {f"decode_head.{name}": stream.normal(4, 4) for name in ("clip.visual.conv1.weight", *names)}


FOLDER = tempfile.TemporaryDirectory()


@cache
def checkpoint(network, joint):
    """The path of a tiny checkpoint for texts of `joint` channels."""
    sizes = {"width": 64, "layers": 3, "resolution": 64, "embed_dim": joint, "vocab_size": 50}
    make = {
        "tagclip": lambda: tagclip_state(clip_state_dict(15, **sizes), 3, 32),
        "zegclip": lambda: tagclip_state(clip_state_dict(15, **sizes), 3, 32, "zegclip"),
        "maskclip_plus": lambda: deeplab_state(joint=joint),
    }
    path = Path(FOLDER.name) / f"{network}_{joint}.pth"
    torch.save({"meta": {}, "state_dict": make[network]()}, path)
    return str(path)


def weights_of(segmentor, joint=64):
    """The values that give a trained method tiny weights; none for other methods. With floss, any file as a ranking."""
    values = ob.compose_recipe(segmentor).hyperparameters
    if "ranking" in values:
        return weights_of(parts(segmentor)[1], joint) | {"ranking": __file__}
    if "layout" in values:
        return {"checkpoint": checkpoint(values["layout"], joint)}
    if "own_texts" in values:  # other classes than those of the checkpoint
        return {"checkpoint": checkpoint("maskclip_plus", joint), "own_texts": False}
    return heads_of(segmentor, joint)
