"""`build_segmentor`: a segmentor by name, with its recipe."""

from __future__ import annotations

from typing import Any

from ..encoders.clip import DenseCLIP
from ..recipe import compose_recipe, segmentor_config
from ..vocabulary import Vocabulary
from .base import Segmentor


def build_segmentor(name: str, *, clip: DenseCLIP, vocabulary: Vocabulary, **overrides: Any) -> Segmentor:
    """A segmentor of configs/segmentor, or a registered one, with its recipe for this CLIP; keywords override recipe values
    and hyperparameters. Raises OvssError for unknown names and bad values."""
    recipe = compose_recipe(name, clip=clip.name, overrides=overrides, origin="argument")
    return segmentor_config(name)[1](clip, vocabulary, recipe)
