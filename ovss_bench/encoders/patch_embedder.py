"""PACL's trained part (Mukhoti et al., CVPR 2023, arXiv 2212.04994): a vision embedder on CLIP's patch tokens, and the
compatibility of images and texts that it is trained on (section 3).

Shapes: B images, N patches, D width of CLIP, T texts, J channels of CLIP's text embeddings, E joint channels, H hidden ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OvssError
from .clip import DenseCLIP
from .trained import Shape, read_trained

VISION: dict[str, Shape] = {"0.weight": ("D",), "0.bias": ("D",)}
VISION |= {"2.linear_projection.0.weight": ("E", "D"), "2.linear_projection.0.bias": ("E",)}
VISION |= {"2.non_linear_projection.0.weight": ("H", "D"), "2.non_linear_projection.0.bias": ("H",)}
VISION |= {"2.non_linear_projection.2.weight": ("E", "H"), "2.non_linear_projection.2.bias": ("E",)}
TEXT: dict[str, Shape] = {"0.weight": ("J",), "0.bias": ("J",), "2.weight": ("E", "J"), "2.bias": ("E",)}
CLIP = "clip_model.visual.proj"
# The CLIP itself, and the linear path, which the only public code registers a second time.
IGNORABLE = ("clip_model.*", "visual_projection.2.text_projection.*")


class Residual(nn.Module):
    """The sum of a linear layer and a two-layer network."""

    def __init__(self, width: int, hidden: int, joint: int) -> None:
        super().__init__()
        self.linear_projection = nn.Sequential(nn.Linear(width, joint))
        self.non_linear_projection = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, joint))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_projection(x) + self.non_linear_projection(x)


class PatchEmbedder(nn.Module):
    """The embedder of patches, (..., D) -> (..., E), and, if one was trained, of texts, (..., J) -> (..., E). Modules are named
    as in checkpoints (NMS05/Patch-Aligned-Contrastive-Learning; the authors published no code)."""

    def __init__(self, width: int, hidden: int, joint: int, text: int | None = None, dropout: float = 0.1) -> None:
        super().__init__()
        self.visual_projection = nn.Sequential(nn.LayerNorm(width), nn.Dropout(dropout), Residual(width, hidden, joint))
        self.text_projection = text and nn.Sequential(nn.LayerNorm(text), nn.Dropout(dropout), nn.Linear(text, joint))

    @property
    def text_channels(self) -> int:
        """Channels of the text features that it expects."""
        if self.text_projection:
            return self.text_projection[0].weight.shape[0]
        return self.visual_projection[2].linear_projection[0].weight.shape[0]

    def patches(self, tokens: Tensor) -> Tensor:
        return self.visual_projection(tokens)

    def texts(self, embeddings: Tensor) -> Tensor:
        return self.text_projection(embeddings) if self.text_projection else embeddings


def load_patch_embedder(path: str | Path, clip: DenseCLIP) -> PatchEmbedder:
    """The embedders of a checkpoint, on the device of `clip`, the CLIP that they were trained on. Raises OvssError for tensors
    that do not fit, or if the checkpoint holds another CLIP."""
    vision = {f"visual_projection.{name}": VISION[name] for name in VISION} | {"visual_projection.0.weight": (clip.width,)}
    text = {f"text_projection.{name}": shape for name, shape in TEXT.items()}
    expected = clip.model.visual.proj.float().cpu()
    state, sizes = read_trained(path, vision, optional=(text, {CLIP: tuple(expected.shape)}), ignorable=IGNORABLE)
    projection = state.pop(CLIP, expected)
    if not torch.allclose(expected, projection, rtol=1e-2, atol=1e-3, equal_nan=True):
        raise OvssError(f"checkpoint {path} holds another CLIP than '{clip.name}'. Use the one that it was trained on.")
    with torch.device("meta"):
        embedder = PatchEmbedder(clip.width, sizes["H"], sizes["E"], sizes["J"] if text.keys() <= state.keys() else None)
    embedder.load_state_dict(state, strict=True, assign=True)
    return embedder.eval().requires_grad_(False).to(clip.device)


def compatibility(
    patches: Tensor, texts: Tensor, attention: Literal["softmax", "sigmoid"] = "softmax", scale: float = 1.0
) -> Tensor:
    """The compatibility of images and texts: embedded patches (B, N, E) and texts (T, E) -> cosines (B, T) of the texts with
    the mean of the patches, weighted by their similarity to the text. The paper uses a softmax over the patches; whether with a
    scale is unverified. The public code uses a sigmoid with a scale of 10."""
    similarity = scale * F.normalize(patches, dim=-1) @ F.normalize(texts, dim=-1).T
    weights = similarity.softmax(1) if attention == "softmax" else similarity.sigmoid()
    pooled = weights.transpose(1, 2) @ patches  # (B, T, E)
    return F.cosine_similarity(pooled, texts, dim=-1)


def contrastive_loss(compatibilities: Tensor, temperature: float = 0.1, positives: Tensor | None = None) -> Tensor:
    """InfoNCE in both directions, for a batch in which image i belongs to text i, or to those where `positives` (B, B) is
    true. The temperature is that of the public code."""
    target = torch.eye(len(compatibilities)) if positives is None else positives.float()
    target = (target / target.sum(1, keepdim=True)).to(compatibilities)
    logits = compatibilities / temperature
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
