"""CLIP-DINOiser (Wysoczanska et al., ECCV 2024, arXiv 2312.12359): one trained convolution predicts which patches of MaskCLIP's
features belong together, another one where objects are."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.hyperparameters import File
from ..config.recipe import Recipe
from ..config.registry import SEGMENTORS
from ..encoders.trained import read_trained
from ..errors import OvssError
from ..ops.scores import best_of_classes
from ..types import ImageContext, Trunk, WindowBatch
from .base import LastBlockSegmentor


@SEGMENTORS.register_module(name="clip_dinoiser")
class CLIPDINOiser(LastBlockSegmentor):
    """The value path of the last block, averaged by patch similarities (section 3).

    `checkpoint`: the two convolutions, which read the input of the feed-forward network in block `feats_idx`, counted from the
    end (-1: the last). Similarities below `gamma` are dropped. `temperature` multiplies the cosines before the softmax.
    `apply_found`: a patch becomes background if the probability of its best class is below `delta` and the second convolution
    sees no object in it.
    """

    requires = ("checkpoint",)
    gives_probabilities = True

    checkpoint: File | None = None
    gamma: float = 0.2
    delta: float = 0.99
    temperature: float = 100.0
    feats_idx: int = -3
    apply_found: bool = False

    @classmethod
    def check(cls, recipe: Recipe, has_background: bool) -> None:
        super().check(recipe, has_background)
        if recipe.hyperparameters["apply_found"] and not has_background:
            where = f"apply_found=true of {recipe.segmentor}"
            raise OvssError(f"{where} needs a background class, and there is none. Use apply_found=false.")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        name, depth, width = self.recipe.segmentor, self.clip.depth, self.clip.width
        if not -depth <= self.feats_idx <= -1:
            raise OvssError(f"feats_idx={self.feats_idx} of {name}: expected -{depth} to -1, as the CLIP has {depth} blocks.")
        shapes = {"obj_proj.weight": ("P", width, 3, 3), "obj_proj.bias": ("P",)}
        shapes |= {"bkg_decoder.weight": (1, width, 1, 1), "bkg_decoder.bias": (1,)}
        state, _ = read_trained(self.checkpoint, shapes)
        self.similarity, self.objectness = (
            (self.tensor(state[f"{part}.weight"]), self.tensor(state[f"{part}.bias"])) for part in ("obj_proj", "bkg_decoder")
        )

    @property
    def needs_qkv(self) -> frozenset[int]:
        return frozenset({self.middle_block})

    @property
    def middle_block(self) -> int:
        return self.clip.depth + self.feats_idx

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        return v

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        """Probabilities (B, Q, h, w): the official code averages these over windows, not logits."""
        trunk = self.trunk(batch)
        middle = self.middle(trunk)
        pooled = self.pooled(self.features(trunk), self.similarities(middle))
        probabilities = (self.temperature * self.compare(pooled, trunk.grid)).softmax(1)
        return self.with_background(probabilities, middle) if self.apply_found else probabilities

    def features(self, trunk: Trunk) -> Tensor:
        """MaskCLIP's features of the patches (B, N, E), float32, not normalised."""
        x = self.last_block(self.clip.block(-1, trunk.grid), trunk.tokens)
        return self.clip.project(x[:, 1:]).float()

    def middle(self, trunk: Trunk) -> Tensor:
        """The input of the feed-forward network in block `feats_idx`, `ln_2` of the patches (B, D, h, w), float32."""
        index = self.middle_block
        block = self.clip.block(index, trunk.grid)
        x = trunk.states[index] + block.project(F.scaled_dot_product_attention(*self.clip.qkv(trunk, index)))
        return block.ln_2(x)[:, 1:].float().transpose(1, 2).unflatten(2, trunk.grid)

    def similarities(self, middle: Tensor) -> Tensor:
        """Cosines (B, N, N) of the convolved features of the patches; 0 below `gamma`."""
        convolved = F.conv2d(F.pad(middle, (1, 1, 1, 1), mode="replicate"), *self.similarity)
        unit = F.normalize(convolved, dim=1).flatten(2)
        cosines = unit.transpose(1, 2) @ unit
        return cosines.masked_fill_(cosines < self.gamma, 0)

    def pooled(self, features: Tensor, similarities: Tensor) -> Tensor:
        """Features (B, N, E), not normalised -> their weighted averages over all patches."""
        return similarities @ features / (similarities.sum(-1, keepdim=True) + 1e-6)

    def object_logits(self, middle: Tensor) -> Tensor:
        """(B, 1, h, w), above 0 where there is an object."""
        return F.conv2d(F.normalize(middle, dim=1), *self.objectness)

    def with_background(self, probabilities: Tensor, middle: Tensor) -> Tensor:
        """Probabilities (B, Q, h, w) -> the same, with 1 for the background in uncertain patches outside objects. The other
        classes keep theirs, so the background may lose after windows are averaged."""
        outside = self.object_logits(middle).sigmoid() <= 0.5
        uncertain = probabilities.amax(1, keepdim=True) < self.delta
        background = self.indices(c == self.vocabulary.background for c in self.vocabulary.group).bool()
        return probabilities.masked_fill(outside & uncertain & background[:, None, None], 1)

    def scores(self, probabilities: Tensor, context: ImageContext) -> Tensor:
        """Averaged probabilities (Q, ...) -> those of the classes (C, ...): the maximum over the queries of a class, which are
        one in the paper."""
        return best_of_classes(probabilities, self.vocabulary)
