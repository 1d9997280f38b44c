"""CLIPer (Sun et al., ICCV 2025, arXiv 2411.13836): spatial structure from CLIP's early layers and from Stable Diffusion."""

from functools import cached_property
from math import floor, isqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..errors import OvssError
from ..ops.attention import cosine_matrix, proxy_attention, symmetric, to_sum_one
from ..ops.patchwise import join_windows
from ..types import ImageContext, WindowBatch
from .base import Segmentor
from .features import image_features


@SEGMENTORS.register_module(name="cliper")
class CLIPer(Segmentor):
    """Early-layer fusion: the last block takes the attention maps of all earlier blocks, and is applied to the embeddings of
    every layer. Fine-grained compensation: the class maps are propagated along the self-attention of a diffusion model.

    Every foreground query is a class until the decision. `select_layer`: the layer whose maps are propagated along CLIP's
    attention; `attention_thr` cuts these maps and those of the diffusion model. `is_normalize` stretches each map to 0..1;
    `bkg_thre` is the minimum score of a pixel, `score_threshold` that of a class's maximum over the image. With `bkg_thre=0`
    the background has a score instead, (1 - the best score of the pixel)^2. `halves`: each half of the image is processed as an
    image (Cityscapes). With a window in the recipe, predictions of windows are averaged with that of the whole image. Without
    `diffusion` or `vfm` there is no compensation. `vfm`: a vision encoder instead of `diffusion`, in fp32, on the image at its
    original size, rounded down to whole patches. Where the official affinity is NaN, patches attend to themselves.
    Ablations: `fuse_feature=False` uses only `select_layer`, without the mean over the layers; `refinement` combines the
    diffusion maps of all heads as a product (SFSA) or mean, or takes the one numbered `selection` (official: 1).
    """

    in_fp32 = ("vfm",)
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
        return 5 / 4 if self.halves else 5  # halves of an image have a quarter of its pairs of patches

    @property
    def needs_qkv(self) -> frozenset[int]:
        depth = self.clip.depth
        if not -depth <= self.select_layer < depth:
            raise OvssError(f"select_layer={self.select_layer}: there are {depth} layers to choose from.")
        return frozenset(range(depth - 1))

    @cached_property
    def foreground_queries(self) -> list[int]:
        return [q for q, c in enumerate(self.vocabulary.group) if c not in (-1, self.vocabulary.background)]

    @cached_property
    def rows(self) -> Tensor:
        """Text rows (T, E): the foreground queries, the background words, and the mean of the former as a distractor."""
        foreground = self.text[self.foreground_queries]
        others = [q for q in range(len(self.text)) if q not in self.foreground_queries]
        return torch.cat([foreground, self.text[others], F.normalize(foreground.mean(0, keepdim=True), dim=-1)])

    # Early-layer fusion (section 3.2)

    def layers(self, batch: WindowBatch, text: Tensor) -> tuple[Tensor, Tensor]:
        """For each of the N layers the cosines (N, B, T, h, w) of the patches with text rows; of the last layer the attention
        between patches (B, h*w, h*w)."""
        trunk = self.trunk(batch)
        blocks = [self.clip.block(i, trunk.grid) for i in range(self.clip.depth)]
        attention = sum(self.clip.attention(trunk, i).float() for i in range(self.clip.depth - 1))
        embeddings, last, cosines = [block.ln_1(trunk.states[i]) for i, block in enumerate(blocks[:-1])], blocks[-1], []
        for embedding in [*embeddings, trunk.tokens]:
            # The official code balances in place: every layer starts from the balanced maps of the one before it.
            attention = to_sum_one(to_sum_one(attention, -2), -1)
            fused = symmetric(attention)
            values = last.qkv(last.ln_1(embedding))[2]
            cosines.append(self.clip.head(last.project(fused.to(values.dtype) @ values)[:, 1:]) @ text.T)
        return torch.stack(cosines).transpose(2, 3).unflatten(3, trunk.grid), fused.mean(1)[:, 1:, 1:]

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        return self.layers(batch, self.text)[0][-1]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (N, T, h, w) -> class maps (N, C, h, w) of the foreground queries, by a softmax over all rows."""
        return logits.softmax(1)[:, : len(self.foreground_queries)]

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
            return (proxy_attention(cosine_matrix(features.flatten(1).T)) @ on_grid(maps, grid)).T.unflatten(1, grid)
        heads = [head for layer in context.once(self.diffusion) for head in torch.as_tensor(layer)]
        if self.refinement == "selection":
            if not 0 <= self.selection < len(heads):
                raise OvssError(f"selection={self.selection}: the diffusion model has {len(heads)} maps, counted from 0.")
            heads = [heads[self.selection]]
        side = isqrt(len(heads[0]))
        m = on_grid(maps, (side, side))
        if self.refinement == "mean":
            m = sum(self.propagate(head, m) for head in heads) / len(heads)
        else:  # from right to left: the product of all maps is never formed
            for head in reversed(heads):
                m = self.propagate(head, m)
        return m.T.unflatten(1, (side, side))

    def propagate(self, attention: Tensor, m: Tensor) -> Tensor:
        """One self-attention map (N, N), weak entries cut and rows normalised, times class maps (N, C)."""
        attention = self.tensor(attention).to(m)
        attention = attention / (attention.amax(0) + 1e-5)
        attention[attention < self.attention_thr] = 0
        return (attention @ m) / (attention.sum(1, keepdim=True) + 1e-5)

    @torch.inference_mode()
    def image_scores(self, context: ImageContext) -> Tensor:
        if not self.halves:
            return self.planes(context)
        return torch.cat([self.planes(half) for half in split(context, self.clip.patch_size)], -1)

    def planes(self, context: ImageContext) -> Tensor:
        """The scores (C, H, W) of the foreground queries at the size of the result, 0 below the thresholds."""
        if not self.foreground_queries:
            return self.text.new_zeros(0, *context.size)
        maps = self.segmentation(self.tensor(context.pixels))
        peak = maps.amax((1, 2), keepdim=True)
        if self.diffusion is not None or self.vfm is not None:
            maps = self.compensate(maps, context)
        peak = 0.5 * maps.amax((1, 2), keepdim=True) + 0.5 * peak
        maps = F.interpolate(maps[None], context.size, mode="bilinear")[0]
        maps = maps / (maps.amax((1, 2), keepdim=True) + 1e-5) * peak
        if self.is_normalize:
            maps = maps - maps.amin((1, 2), keepdim=True)
            maps = maps / (maps.amax((1, 2), keepdim=True) + 1e-6)
        return maps.masked_fill_((maps < self.bkg_thre) | (peak <= self.score_threshold), 0)

    def decide(self, scores: Tensor, context: ImageContext) -> Tensor:
        background = self.vocabulary.background
        nothing = len(self.vocabulary.classes) if background is None else background
        labels = scores.new_full(scores.shape[1:], nothing, dtype=torch.int64)
        if not len(scores):
            return labels
        best, query = scores.max(0)
        least = (1 - best).square() if self.bkg_thre == 0 else 0
        classes = self.indices(self.vocabulary.group[q] for q in self.foreground_queries)
        return torch.where(best > least, classes[query], labels)


def on_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Class maps (C, h, w) -> (H*W, C) on another grid."""
    return F.interpolate(maps[None], grid, mode="bilinear")[0].flatten(1).T


def split(context: ImageContext, patch: int) -> tuple[ImageContext, ImageContext]:
    """The left and the right half; the network's input is cut between two patches."""
    (height, width), middle = context.size, context.original.shape[1] // 2
    cut = context.pixels.shape[2] // (2 * patch) * patch
    left = ImageContext(context.original[:, :middle], context.resized[:, :cut], context.pixels[..., :cut], (height, width // 2))
    size = (height, width - width // 2)
    return left, ImageContext(context.original[:, middle:], context.resized[:, cut:], context.pixels[..., cut:], size)
