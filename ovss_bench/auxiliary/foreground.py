"""FOUND (Siméoni et al., CVPR 2023, arXiv 2212.07834), for `foreground=`: the probability that a pixel belongs to an object.

Shapes: image (H, W, 3); C channels of the encoder's keys on a grid (h, w) of patches of P pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoders.checkpoints import read_weights, state_digest
from ..encoders.vision import VisionEncoder, find_weights, load_vision, local_weights
from ..errors import OvssError
from ..files import digest
from ..image import normalize
from ..torch_defaults import ordinary_torch

PUBLISHED_ENCODER = "dino_vits8_300ep"  # FOUND's decoder was trained on its keys


class Found:
    """An image (H, W, 3) uint8 -> foreground probabilities (H, W) float32.

    `encoder` gives the keys of its last block (`feature="k"`); the decoder, `weight` (1, C, 1, 1) and `bias` (1,), is one
    1x1 convolution.
    """

    def __init__(self, encoder: VisionEncoder, weight: Tensor, bias: Tensor) -> None:
        self.encoder = encoder
        self.weight, self.bias = (tensor.float().to(encoder.device) for tensor in (weight, bias))
        self.digest = digest(encoder.digest, state_digest({"weight": weight, "bias": bias}))

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        logits = F.conv2d(keys(self.encoder, image), self.weight, self.bias)
        logits = F.interpolate(logits, scale_factor=self.encoder.patch_size, mode="bilinear")
        return logits[0, 0, :height, :width].sigmoid().cpu().numpy()


def keys(encoder: VisionEncoder, image: np.ndarray) -> Tensor:
    """Keys (1, C, h, w) of an image (H, W, 3) uint8, normalised, then zero-padded to whole patches on the right and bottom."""
    pixels = normalize(image, "imagenet")
    bottom, right = (-side % encoder.patch_size for side in pixels.shape[1:])
    return encoder.features(F.pad(pixels, (0, right, 0, bottom))[None].to(encoder.device))


def find_foreground(name: str | Path) -> None:
    """Raises OvssError for a name that `load_foreground` does not know, without reading weights."""
    local_weights("foreground", name)


@ordinary_torch()
def load_foreground(name: str | Path, *, encoder: VisionEncoder | None = None, device: str | torch.device = "cpu") -> Found:
    """FOUND: `name` is an entry of configs/foreground (`found`, `demo`) or the file of a decoder, the official one
    (`decoder_weights.pt`) or a state dict of `weight` and `bias`.

    `encoder`: a vision encoder with `feature="k"`; by default that of the entry, or for a file the one that FOUND's decoder was
    trained on. Raises OvssError for an unknown name, a missing file, or a decoder that does not fit the encoder.
    """
    path, entry = find_weights("foreground", name)
    keyed: Any = encoder or load_vision(entry.get("encoder", PUBLISHED_ENCODER), feature="k", device=device)
    state = {key.removeprefix("decoder."): tensor for key, tensor in read_weights(path)[0].items()}
    weight, bias = state.get("weight", torch.empty(0)), state.get("bias", torch.empty(0))
    fits = weight.ndim == 4 and (weight.shape[0], *weight.shape[2:], *bias.shape) == (1, 1, 1, 1)
    if not fits or not weight.is_floating_point():
        raise OvssError(f"{path} is not a decoder of FOUND: expected a 1x1 convolution, `weight` (1, C, 1, 1) and `bias` (1,).")
    found = Found(keyed, weight, bias)
    channels = keys(keyed, np.zeros((keyed.patch_size,) * 2 + (3,), np.uint8)).shape[1]
    if channels != weight.shape[1]:
        what = f"the decoder {path} takes {weight.shape[1]} channels, but vision encoder '{keyed.name}' has {channels}"
        raise OvssError(f"{what}. Use the encoder that it was trained on.")
    return found
