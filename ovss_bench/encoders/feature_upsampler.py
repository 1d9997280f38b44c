"""The trained feature upsamplers of FeatUp and SimFeatUp: joint bilateral upsampling (JBU) with learned, image-guided kernels.

FeatUp: Fu et al., ICLR 2024, arXiv 2403.10516; SimFeatUp: SegEarth-OV, section 3.2. Files hold one step, which is applied
repeatedly (JBU-one, `up`), or one for each doubling (JBU-stack, `up1` to `up4`). The official filter is a CUDA extension; it
equals the weighted sum over the K x K neighbourhood of each pixel, which is computed here.
"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OvssError
from ..ops.device import kept, to_device
from .checkpoints import shared
from .trained import Shape, read_trained

FIXUP = 0.1  # weight of the learned corrections, FeatUp's upsamplers.py
CHANNELS = {"cpu": 8, "cuda": 512}  # filtered at a time, to stay in a core's cache


class Upsampler:
    """Doubles the grid of features until it reaches the size of the pixels. `steps`: the tensors of each doubling, by name;
    `last`: weight (C, C) and bias (C,) of the final correction."""

    def __init__(self, steps: list[dict[str, Tensor]], last: tuple[Tensor, Tensor]) -> None:
        self.steps, self.last = steps, last
        self.channels = len(last[1])

    def __call__(self, features: Tensor, pixels: Tensor) -> Tensor:
        """Features (1, C, h, w) of a window (1, 3, H, W), with H/h and W/w the same power of two -> (1, C, H, W), float32."""
        x = features.float().contiguous()  # filters work on planes: with channels last they take several times as long
        for step in self.steps:
            size = (2 * x.shape[2], 2 * x.shape[3])
            guide = F.adaptive_avg_pool2d(pixels.float(), size)
            x = filtered(F.interpolate(x, size, mode="bicubic"), kernels(step, guide))
        weight, bias = self.last
        return x + FIXUP * convolved(x, weight, bias)


def kernels(step: dict[str, Tensor], guide: Tensor) -> Tensor:
    """The kernel of every pixel (1, K*K, H, W), rows first, for a guide (1, 3, H, W)."""
    projected = two_layers(step, "range_proj", guide)
    side = math.isqrt(len(step["fixup_proj.3.bias"]))
    similarity = torch.cat([(near * projected).sum(1, keepdim=True) for near in neighbours(projected, side)], 1)
    line = torch.linspace(-1, 1, side, device=guide.device) ** 2
    spatial = (-(line[:, None] + line) / (2 * step["sigma_spatial"] ** 2)).exp().view(1, -1, 1, 1)
    kernel = (step["range_temp"].exp().clamp(1e-4, 1e4) * similarity).softmax(1) * spatial
    kernel = kernel / kernel.sum(1, keepdim=True).clamp(min=1e-7)
    return kernel + FIXUP * two_layers(step, "fixup_proj", torch.cat([kernel, guide], 1))


def filtered(maps: Tensor, kernel: Tensor) -> Tensor:
    """Maps (1, C, H, W) and a kernel for every pixel (1, K*K, H, W), the same for all channels -> (1, C, H, W)."""
    result = torch.zeros_like(maps)
    channels = CHANNELS[maps.device.type]
    for some, sums in zip(maps.split(channels, 1), result.split(channels, 1), strict=True):
        for near, weights in zip(neighbours(some, math.isqrt(kernel.shape[1])), kernel.split(1, 1), strict=True):
            sums.addcmul_(near, weights)
    return result


def neighbours(maps: Tensor, side: int) -> list[Tensor]:
    """Maps (..., H, W) shifted to every position of a side x side neighbourhood, row by row; reflected at the borders."""
    height, width = maps.shape[-2:]
    rows, columns = (reflected(length, side // 2, like=maps) for length in (height, width))
    padded = maps[..., rows[:, None], columns]
    return [padded[..., y : y + height, x : x + width] for y, x in product(range(side), repeat=2)]


@kept(64)
def reflected(length: int, radius: int) -> Tensor:
    """Indices (length + 2 radius,) that reflect the borders, several times where the radius exceeds the length."""
    period = max(2 * (length - 1), 1)
    index = torch.arange(-radius, length + radius) % period
    return torch.minimum(index, period - index) if length > 1 else torch.zeros_like(index)


def two_layers(step: dict[str, Tensor], name: str, maps: Tensor) -> Tensor:
    """Two 1 x 1 convolutions with GELU between them."""
    hidden = F.gelu(convolved(maps, step[f"{name}.0.weight"], step[f"{name}.0.bias"]))
    return convolved(hidden, step[f"{name}.3.weight"], step[f"{name}.3.bias"])


def convolved(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(maps, weight[:, :, None, None], bias)


def shapes_of(name: str) -> dict[str, Shape]:
    """The tensors of one step, by name in the file; N is K*K, and M is N + 3."""
    layers: dict[str, tuple[int | str, int | str]] = {"range_proj.0": ("P", 3), "range_proj.3": ("P", "P")}
    layers |= {"fixup_proj.0": ("N", "M"), "fixup_proj.3": ("N", "N")}
    shapes: dict[str, Shape] = {f"{name}.range_temp": (), f"{name}.sigma_spatial": ()}
    for layer, (outer, inner) in layers.items():
        shapes |= {f"{name}.{layer}.weight": (outer, inner, 1, 1), f"{name}.{layer}.bias": (outer,)}
    return shapes


@shared
def load_upsampler(path: str | Path, patch: int, device: str) -> Upsampler:
    """The JBU-one or JBU-stack in a file, for a CLIP with this patch size. Raises OvssError if it does not fit."""
    doublings = patch.bit_length() - 1
    if patch != 2**doublings:
        raise OvssError(f"upsampler {path} doubles grids, which never fit patches of {patch} pixels. Use a patch of 16.")
    final: dict[str, Shape] = {"fixup_proj.1.weight": ("C", "C", 1, 1), "fixup_proj.1.bias": ("C",)}
    stack = [shapes_of(f"up{number}") for number in range(1, 5)]
    state, sizes = read_trained(path, final, optional=[shapes_of("up"), *stack], prefix="upsampler.")
    names = ["up"] * doublings if "up.range_temp" in state else [f"up{n}" for n in range(1, 5) if f"up{n}.range_temp" in state]
    if len(names) != doublings:
        raise OvssError(f"upsampler {path} doubles grids {len(names)} times, but patches of {patch} pixels take {doublings}.")
    if math.isqrt(sizes["N"]) ** 2 != sizes["N"] or math.isqrt(sizes["N"]) % 2 == 0 or sizes["M"] != sizes["N"] + 3:
        what = f"upsampler {path} has kernels of {sizes['N']} weights, corrected from {sizes['M']} channels"
        raise OvssError(f"{what}; expected the square of an odd number, and 3 more. Give the original file.")
    state = {name: to_device(t.flatten(2)[..., 0] if t.dim() == 4 else t, torch.device(device)) for name, t in state.items()}
    steps = [{key.removeprefix(f"{name}."): state[key] for key in shapes_of(name)} for name in names]
    return Upsampler(steps, (state["fixup_proj.1.weight"], state["fixup_proj.1.bias"]))
