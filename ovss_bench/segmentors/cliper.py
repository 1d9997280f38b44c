"""CLIPer (Sun et al., ICCV 2025, arXiv 2411.13836): spatial structure from CLIP's early layers and from Stable Diffusion."""

from collections.abc import Sequence
from functools import cached_property
from math import floor, isqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..encoders.clip import attention_maps
from ..errors import OvssError
from ..ops.attention import cosine_matrix, layer_products, proxy_attention, some_heads, strong_attention
from ..ops.enlarge import enlarge
from ..ops.patchwise import halves, join_windows
from ..types import ImageContext, WindowBatch
from .base import Segmentor
from .features import image_features


@SEGMENTORS.register_module(name="cliper")
class CLIPer(Segmentor):
    """Early-layer fusion: the last block takes the attention maps of all earlier blocks, and is applied to the embeddings of
    every layer. Fine-grained compensation: the class maps are propagated along the self-attention of a diffusion model.

    Every foreground query is a class until the decision. `select_layer`: the layer whose maps are propagated along CLIP's
    attention. In these maps and those of the diffusion model, values below `attention_thr` of the maximum become 0.
    `is_normalize` stretches each map to 0..1; `bkg_thre` is the minimum score of a pixel, `score_threshold` that of a class's
    maximum over the image. With `bkg_thre=0` the background has a score instead, (1 - the best score of the pixel)^2. `halves`:
    each half of the image is processed as an image (Cityscapes). With a window in the recipe, predictions of windows are
    averaged with that of the whole image. With neither `diffusion` nor `vfm` there is no compensation. `vfm`: a vision encoder
    instead of `diffusion`, in fp32, on the image at its original size, rounded down to whole patches. Where the official
    affinity is NaN, patches attend to themselves. Ablations: `fuse_feature=False` uses only `select_layer`, not the mean over
    the layers; `refinement` combines the diffusion maps of all heads as a product (SFSA) or mean, or takes the one numbered
    `selection` (official: 1).
    """

    in_fp32 = ("vfm",)
    joins_patches = True
    uses = ("window", "stride", "position", "logit_scale")

    select_layer: int = -1
    fuse_feature: bool = True
    attention_thr: float = 0.1
    is_normalize: bool = True
    bkg_thre: float = 0.6
    score_threshold: float = 0.7
    halves: bool = False
    diffusion: str | None = None
    refinement: Literal["SFSA", "mean", "selection"] = "SFSA"
    selection: int = 1
    vfm: str | None = None
    feature: Literal["tokens", "q", "k", "v"] = "tokens"

    @property
    def attention_maps(self) -> float:
        return (5 / 4 if self.halves else 5) / self.clip.heads  # halves of an image have a quarter of its pairs of patches

    @property
    def needs_qkv(self) -> frozenset[int]:
        depth = self.clip.depth
        if not -depth <= self.select_layer < depth:
            raise OvssError(f"select_layer={self.select_layer}: expected {-depth} to {depth - 1}; the CLIP has {depth} layers.")
        return frozenset(range(depth - 1))

    @cached_property
    def rows(self) -> Tensor:
        """Text rows (T, E): the foreground queries, the other queries, and the unit mean of the former as a distractor."""
        foreground = self.text[self.vocabulary.foreground]
        others = [q for q in range(len(self.text)) if q not in self.vocabulary.foreground]
        return torch.cat([foreground, self.text[others], F.normalize(foreground.mean(0, keepdim=True), dim=-1)])

    # Early-layer fusion (section 3.2)

    def layers(self, batch: WindowBatch, text: Tensor) -> tuple[Tensor, Tensor]:
        """The cosines (N, B, T, h, w) of the patches with the text rows in each of the N layers, and the last layer's attention
        between patches (B, h*w, h*w)."""
        trunk = self.trunk(batch)
        last = self.clip.block(-1, trunk.grid)
        embeddings = [self.clip.block(i, trunk.grid).ln_1(trunk.states[i]) for i in range(self.clip.depth - 1)]
        values = [last.values(last.ln_1(embedding)) for embedding in [*embeddings, trunk.tokens]]
        kept = [self.clip.qkv(trunk, i) for i in range(self.clip.depth - 1)]
        maps = (sum(attention_maps(q[:, part], k[:, part]).float() for q, k, _ in kept) for part in some_heads(values[0]))
        mixed, between = layer_products(maps, values)
        cosines = torch.stack([self.clip.head(last.project(result)[:, 1:]) @ text.T for result in mixed])
        return cosines.transpose(2, 3).unflatten(3, trunk.grid), between[:, 1:, 1:]

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        return self.layers(batch, self.text)[0][-1]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (N, T, h, w) -> class maps (N, C, h, w) of the foreground queries, by a softmax over all rows."""
        return logits.softmax(1)[:, : len(self.vocabulary.foreground)]

    def segmentation(self, pixels: Tensor) -> Tensor:
        """Pixels (3, H, W) of an image -> class maps (C, h, w) of the foreground queries on its patch grid."""
        patch, recipe = self.clip.patch_size, self.recipe
        bottom, right = (max(patch - side, 0) for side in pixels.shape[1:])
        pixels = F.pad(pixels, (0, right, 0, bottom))  # at least one patch
        cosines, attention = self.layers(WindowBatch(pixels[None]), self.rows)
        maps = self.probabilities(recipe.logit_scale * cosines[:, 0])
        if recipe.window != "whole":
            cosines, between = join_windows(
                pixels, recipe.window, recipe.stride, patch, lambda windows: self.layers(WindowBatch(windows), self.rows)
            )
            propagated = (recipe.logit_scale * cosines.flatten(2) @ between).view_as(cosines)
            maps = 0.5 * maps + 0.5 * self.probabilities(propagated)
        selected = maps[self.select_layer]
        # In place, as in the official code: the mean over the layers includes the thresholded maps.
        selected[selected < self.attention_thr * selected.amax((1, 2), keepdim=True)] = 0
        propagated = (selected.flatten(1) @ attention[0]).view_as(selected)
        return propagated + maps.mean(0) if self.fuse_feature else propagated

    # Fine-grained compensation (section 3.3)

    def compensate(self, maps: Tensor, context: ImageContext) -> Tensor:
        """Class maps (C, h, w) propagated on the grid of the diffusion model, or of the vision encoder."""
        if self.diffusion is None:
            (features,) = image_features(self, context, floor)
            grid = features.shape[1:]
            attention = proxy_attention(cosine_matrix(features.flatten(1).T))
            return (attention @ enlarge(maps, grid).flatten(1).T).T.unflatten(1, grid)
        heads = [head for layer in context.once(self.diffusion) for head in torch.as_tensor(layer)]
        if self.refinement == "selection":
            if not 0 <= self.selection < len(heads):
                raise OvssError(f"selection={self.selection}: the diffusion model has {len(heads)} maps, counted from 0.")
            heads = [heads[self.selection]]
        side = isqrt(len(heads[0]))
        m = enlarge(maps, (side, side)).flatten(1).T
        if self.refinement == "mean":
            m = sum(self.propagate(head, m) for head in heads) / len(heads)
        else:  # from right to left: the product of all maps is never formed
            for head in reversed(heads):
                m = self.propagate(head, m)
        return m.T.unflatten(1, (side, side))

    def propagate(self, attention: Tensor, m: Tensor) -> Tensor:
        """One self-attention map (N, N), weak entries cut and rows normalised, times class maps (N, C)."""
        return strong_attention(self.tensor(attention).to(m), m, self.attention_thr)

    @torch.inference_mode()
    def image_scores(self, context: ImageContext) -> Tensor:
        """A plane (H, W) for each foreground query, 0 below the thresholds."""
        count, pairs = len(self.vocabulary.foreground), map(self.planes, self.parts(context))
        parts = (planes.new_zeros(count, *planes.shape[1:]).index_copy_(0, queries, planes) for queries, planes in pairs)
        return torch.cat([*parts], -1)

    @torch.inference_mode()
    def image_labels(self, context: ImageContext) -> tuple[Tensor, Tensor] | None:
        """From the planes that are not empty."""
        if not self.decides_as(CLIPer):
            return None
        labels, best = zip(*(self.best(*self.planes(part)) for part in self.parts(context)), strict=True)
        return torch.cat(labels, -1), torch.cat(best, -1)

    def parts(self, context: ImageContext) -> Sequence[ImageContext]:
        return halves(context, self.clip.patch_size) if self.halves else [context]

    def planes(self, context: ImageContext) -> tuple[Tensor, Tensor]:
        """The indices (c,) of the foreground queries that may win, and their planes (c, H, W); all other planes are 0."""
        if not self.vocabulary.foreground:
            return self.indices(()), self.text.new_zeros(0, *context.size)
        maps = self.segmentation(self.tensor(context.pixels))
        peak = maps.amax((1, 2), keepdim=True)
        # All further steps average values of a map, so its peak does not rise: maps that are too low can be dropped here.
        (queries,) = (~(peak <= self.score_threshold)).flatten().nonzero(as_tuple=True)
        maps, peak = maps[queries], peak[queries]
        if not len(queries):
            return queries, maps.new_zeros(0, *context.size)
        if self.diffusion is not None or self.vfm is not None:
            maps = self.compensate(maps, context)
        peak = 0.5 * maps.amax((1, 2), keepdim=True) + 0.5 * peak
        maps = enlarge(maps, context.size).contiguous()
        maps.div_(maps.amax((1, 2), keepdim=True) + 1e-5).mul_(peak)
        if self.is_normalize:
            maps -= maps.amin((1, 2), keepdim=True)
            maps /= maps.amax((1, 2), keepdim=True) + 1e-6
        return queries, maps.masked_fill_((maps < self.bkg_thre) | (peak <= self.score_threshold), 0)

    def decide(self, scores: Tensor, context: ImageContext) -> Tensor:
        return self.best(self.indices(range(len(scores))), scores)[0]

    def best(self, queries: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Planes (c, H, W) of some of the foreground queries (c,) -> labels and highest scores (H, W)."""
        background = self.vocabulary.background
        nothing = len(self.vocabulary.classes) if background is None else background
        labels = scores.new_full(scores.shape[1:], nothing, dtype=torch.int64)
        if not len(scores):
            return labels, scores.new_zeros(labels.shape)
        best, number = scores.max(0)
        least = (1 - best).square() if self.bkg_thre == 0 else 0
        classes = self.indices(self.vocabulary.group[q] for q in self.vocabulary.foreground)[queries[number]]
        return torch.where(best > least, classes, labels), best
