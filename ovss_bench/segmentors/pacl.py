"""PACL (Mukhoti et al., CVPR 2023, arXiv 2212.04994): a vision embedder, trained on image-caption pairs, makes CLIP's patch
tokens comparable with texts."""

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.hyperparameters import File
from ..config.registry import SEGMENTORS
from ..encoders.clip import layer_norm
from ..encoders.patch_embedder import load_patch_embedder
from ..encoders.trained import check_channels
from ..errors import OvssError
from ..types import Trunk, WindowBatch
from .base import Segmentor


@SEGMENTORS.register_module(name="pacl")
class PACL(Segmentor):
    """Cosines of embedded patch tokens and texts (section 3).

    `checkpoint`: the embedders. Neither code nor weights were published; details that could not be verified are
    hyperparameters. `ln_post`: take the tokens after CLIP's last LayerNorm, not before it. `text_embedder`: use the
    checkpoint's text embedder; None: if it has one. The paper uses CLIP's text encoder unchanged.
    """

    requires = ("checkpoint",)

    checkpoint: File | None = None
    ln_post: bool = True
    text_embedder: bool | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        name, clip = self.recipe.segmentor, self.clip
        self.embedder = load_patch_embedder(self.checkpoint, clip)
        if self.text_embedder and not self.embedder.text_projection:
            what = f"text_embedder=true of {name}, but checkpoint {self.checkpoint} has no text embedder"
            raise OvssError(f"{what}. Leave text_embedder out.")
        if self.text_embedder is False:
            self.embedder.text_projection = None
        what = f"checkpoint {self.checkpoint} expects text features"
        check_channels(what, self.embedder.text_channels, clip.model.visual.proj.shape[1], clip.name)

    @cached_property
    def embedded_text(self) -> Tensor:
        """Unit text features (Q, E) in the joint space of the embedders."""
        return F.normalize(self.embedder.texts(self.text), dim=-1)

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        trunk = self.trunk(batch)
        unit = self.once(self.patches, trunk)
        return (unit @ self.embedded_text.T).transpose(1, 2).unflatten(2, trunk.grid)

    def patches(self, trunk: Trunk) -> Tensor:
        """Unit embeddings of the patches (B, N, E)."""
        x = self.clip.block(-1, trunk.grid)(trunk.tokens)
        if self.ln_post:
            x = layer_norm(x, self.clip.model.visual.ln_post, self.clip.layer_norm_eps)
        return F.normalize(self.embedder.patches(x[:, 1:].float()), dim=-1)
