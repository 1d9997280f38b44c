"""Checkpoints of trained methods with random weights in the published sizes: weights do not affect the cost of a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..encoders.clip import DenseCLIP
from ..encoders.feature_upsampler import shapes_of
from ..encoders.patch_embedder import PatchEmbedder
from ..encoders.prompted_vit import MaskHead, PromptedSegmenter, PromptedViT
from ..encoders.resnet_aspp import DeepLab, ResNetV1c, SummedASPP

# With ViT-B/16, whose width is 768, sizes that follow from CLIP's width are those of the published networks.
RESNET = (3, 4, 6, 3)  # MaskCLIP+: a ResNet-50, as the configurations of ViT teachers build
PROMPTS, INNER, LAYERS, TRAINED_AT = 100, 2048, 3, 512  # TagCLIP's on COCO-Stuff
AFFINITY = 256  # channels of CLIP-DINOiser's first convolution
KERNEL, GUIDE = 11, 32  # JBU-one: side of the kernels, channels of the projected colours


def dinoiser(clip: DenseCLIP) -> dict[str, Tensor]:
    return drawn(nn.ModuleDict({"obj_proj": nn.Conv2d(clip.width, AFFINITY, 3), "bkg_decoder": nn.Conv2d(clip.width, 1, 1)}))


def pacl(clip: DenseCLIP) -> dict[str, Tensor]:
    joint = clip.model.visual.proj.shape[1]
    return drawn(PatchEmbedder(clip.width, joint, joint, joint))


def tagclip(clip: DenseCLIP) -> dict[str, Tensor]:
    joint, positions = clip.model.visual.proj.shape[1], (TRAINED_AT // clip.patch_size) ** 2 + 1
    tower = PromptedViT(clip.width, clip.depth, clip.patch_size, positions, joint, PROMPTS)
    return drawn(PromptedSegmenter(tower, MaskHead(joint, INNER, LAYERS, trusty=True)))


def maskclip_plus(clip: DenseCLIP) -> dict[str, Tensor]:
    joint, backbone = clip.model.visual.proj.shape[1], ResNetV1c(RESNET, clip.width // 12, clip.width // 24)
    head = SummedASPP(backbone.channels, joint)
    state = DeepLab(backbone, head, texts=torch.ones(1, joint), background=torch.ones(0, joint)).state_dict()
    return filled({name: tensor for name, tensor in state.items() if tensor.numel()})


def upsampler(clip: DenseCLIP) -> dict[str, Tensor]:
    sizes = {"P": GUIDE, "N": KERNEL**2, "M": KERNEL**2 + 3, "C": clip.model.visual.proj.shape[1]}
    shapes = shapes_of("up") | {"fixup_proj.1.weight": ("C", "C", 1, 1), "fixup_proj.1.bias": ("C",)}
    state = {
        name: torch.empty([side if isinstance(side, int) else sizes[side] for side in shape]) for name, shape in shapes.items()
    }
    return filled(state) | {"up.range_temp": torch.tensor(0.5), "up.sigma_spatial": torch.tensor(0.5)}


def drawn(network: nn.Module) -> dict[str, Tensor]:
    return filled(network.state_dict())


def filled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Random weights that preserve the scale of their input; the weights of norms are 1, biases 0."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in state.items():
        if tensor.ndim > 1:
            tensor.normal_(0, (tensor.numel() / len(tensor)) ** -0.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.fill_(float(name.endswith(("weight", "running_var"))))
    return state


CHECKPOINTS: dict[str, Callable[[DenseCLIP], dict[str, Tensor]]] = {
    "clip_dinoiser": dinoiser,
    "maskclip_plus": maskclip_plus,
    "pacl": pacl,
    "segearth_ov": upsampler,
    "tagclip": tagclip,
}


@torch.no_grad()
def random_checkpoint(method: str, clip: DenseCLIP, folder: Path) -> str:
    """The path of a checkpoint for the method, written into `folder`."""
    path = folder / f"{method}.pt"
    torch.save({"state_dict": CHECKPOINTS[method](clip)}, path)
    return str(path)
