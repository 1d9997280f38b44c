"""A stand-in for SAM 3: transformers' modules at a fraction of the size, with weights from a seed. It segments nothing."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Tables that are looked up, not multiplied: standard normal numbers.
TABLES = ("embed", "embedding", "presence_token", "reference_points")


def random_network(config: Mapping[str, Any], seed: int, gain: Mapping[str, float]) -> Any:
    """A `Sam3Model` of this configuration. The seed of every tensor depends on its name. Tensors named in `gain` are multiplied
    by a factor, so that presence and scores vary."""
    from transformers import Sam3Config, Sam3Model

    model = Sam3Model(Sam3Config(**config))
    state = {name: _drawn(name, tuple(value.shape), seed) * gain.get(name, 1) for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    return model


def _drawn(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    drawn = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32).standard_normal(shape)
    x = torch.from_numpy(np.asarray(drawn)).float()
    parts = name.split(".")
    parent, leaf = parts[-2] if len(parts) > 1 else "", parts[-1]
    if "norm" in parent or "norms" in parts:
        return 1 + 0.1 * x if leaf == "weight" else 0.05 * x
    if leaf == "bias":
        return 0.05 * x
    if leaf == "position_embeddings" or parent.endswith(TABLES):
        return x
    return x / prod(shape[1:]) ** 0.5
