"""A set of reference outputs of the official codes: its description, and the inputs made again from their seeds.

The project's own set lies in this folder. `OVSS_PARITY_CASE=/path/to/case.json` runs the same tests on another one.
"""

import json
import os
import re
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import seeded

OWN = Path(__file__).resolve().parent
CASE = Path(os.environ.get("OVSS_PARITY_CASE") or OWN / "case.json").resolve()
METHODS = sorted(path.stem for path in OWN.glob("*.npz"))


class Reference:
    """What the official code of one method returned, and with which inputs and settings."""

    def __init__(self, method: str) -> None:
        case = json.loads(CASE.read_text())
        folder = CASE.parent / case["arrays"]
        self.method, self.path, self.offset = method, folder / f"{method}.npz", case["seed_offset"]
        self.overrides = case.get("overrides", {}).get(method, {})
        self.case = case | self.overrides
        self.own_info = json.loads((OWN / f"{method}.json").read_text())
        info = folder / f"{method}.json"
        # What the set says counts, value by value, before the project's own copy.
        self.info = _joined(self.own_info, json.loads(info.read_text()) if info.is_file() else {})

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """By name; empty where the set has no file of the method."""
        if not self.path.is_file():
            return {}
        with np.load(self.path) as file:
            return dict(file)

    def about(self, array: str) -> list[str]:
        """What is written about an array: first in the project's own set, then in this one."""
        told = [info["arrays"].get(array, "") for info in (self.own_info, self.info)]
        return [about["meaning"] if isinstance(about, dict) else about for about in told]

    def settings(self, array: str) -> dict:
        """Settings by their official names: of the method, then what is said to differ for this array."""
        settings = self.info | self.overrides
        if array not in ("label_map", "final_scores"):  # these two are the method's own run
            for prose in self.about(array):
                settings |= _stated(prose)
        return settings

    def seed(self, name: str, base: int) -> int:
        """Seeds under `overrides` are final; all others, also those that a JSON file names, are base seeds and move with the
        set."""
        return self.overrides.get(f"{name}_seed", base + self.offset)

    @property
    def hyperparameters(self) -> dict:
        """By their official names, where a description lists them apart; what the case overrides counts."""
        return self.info.get("hyperparameters", {}) | self.overrides

    def queries(self, array: str) -> Tensor:
        if array.endswith("_c"):
            return torch.from_numpy(self.arrays["query_features_c"])
        count = self.case["queries"]
        if any("other queries" in prose.lower() for prose in self.about(array)):
            return seeded.query_features(self.seed("other_queries", 79), count)
        seed, rows = self.seed("queries", 31), self.case.get("query_rows")
        return seeded.query_features(seed, count) if rows is None else seeded.query_features(seed, 400)[rows]

    @property
    def image(self) -> np.ndarray:
        """The image (H, W, 3) that goes through the whole pipeline."""
        return seeded.rgb_image(self.seed("image", 22), *self.case["image"])

    def pixels(self, shape: str) -> Tensor:
        """The `square` or `rect` window (1, 3, H, W)."""
        return seeded.clip_input(seeded.rgb_image(self.seed(f"{shape}_image", 21), *self.case[shape]))

    def pamr_inputs(self) -> tuple[Tensor, Tensor]:
        """PAMR's guide (3, H, W) and its smaller mask (C, h, w)."""
        guide = seeded.rgb_image(self.seed("image", 21), *self.overrides.get("image", (72, 96)))
        mask = seeded.feature_map(self.seed("mask", 41), *self.overrides.get("mask", (7, 18, 24)))
        return seeded.clip_input(guide)[0], mask[0]


def _joined(own: dict, others: dict) -> dict:
    """The own values, with the others in them, at any depth."""
    inner = {
        key: _joined(own[key], value)
        for key, value in others.items()
        if isinstance(own.get(key), dict) and isinstance(value, dict)
    }
    return own | others | inner


def _stated(prose: str) -> dict:
    """Settings in the description of an array: `name=value` as the official code calls it, and PAMR's numbers, in words."""
    stated = {name: json.loads(value.lower()) for name, value in re.findall(r"(\w+)=(\d+(?:\.\d+)?|True|False)", prose)}
    if "PAMR off" in prose:
        stated["pamr_steps"] = 0
    if steps := re.search(r"(\d+) (?:steps|iterations?)\b", prose):
        stated["pamr_steps"] = int(steps[1])
    if dilations := re.search(r"dilations \(?(\d+(?:,\d+)*)", prose):
        stated["pamr_dilations"] = [int(d) for d in dilations[1].split(",")]
    return stated
