"""A placeholder for segmentors that use no CLIP."""

from __future__ import annotations

from typing import Any

import torch

from .clip import DenseCLIP


class NoCLIP(DenseCLIP):
    """A placeholder named "none", without weights: nothing is loaded for it."""

    name, weights_digest, activation, text_activation = "none", "", "", ""
    layer_norm_eps, stored_grid, patch_size, depth, width = 0.0, (1, 1), 1, 1, 1
    device: Any = torch.device("cpu")
    dtype: Any = torch.float32
    precision: Any = "fp32"
    heads: Any = 1

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.changed, self.weights_known = {}, []

    def __repr__(self) -> str:
        return "NoCLIP()"

    def variant(self, *_: Any) -> NoCLIP:
        return self

    def compile(self) -> None:
        """There is nothing to compile."""
