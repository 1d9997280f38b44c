"""CLIPtrase (ECCV 2024, arXiv 2407.08268): self-correlation in the last block, and a vote inside clusters of patches."""

from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..ops.attention import attend
from ..ops.enlarge import enlarge
from ..ops.scores import first_best
from ..ops.vote import majority_vote
from ..types import ImageContext, WindowBatch
from .base import LastBlockSegmentor


@SEGMENTORS.register_module(name="cliptrase")
class CLIPtrase(LastBlockSegmentor):
    """The sum of three self-self attentions in the last block, with residual and feed-forward network; then a majority vote in
    each cluster of patches.

    DBSCAN (`eps`, `min_samples`) clusters the rows of the correlation in the second-last block. The mean row of each cluster is
    a map, enlarged `ratio` times and smoothed by a median filter of `median` cells; every pixel belongs to the region of its
    highest map, and the most frequent label of a region replaces all others. `cls_weighting` multiplies the cosines of each
    query by that of the class token (VOC20 only). Ablations: `denoise=False` does not subtract the class token's similarity
    from the correlation; `vote=False` keeps the labels of the pixels.

    The best query is chosen by its logit, not by a probability, so the recipe's thresholds are refused. The official code has
    no sliding windows; with windows, the regions still come from one pass over the whole image.
    """

    positive = ("eps", "min_samples", "ratio", "median")
    attention_maps = 1
    uses = ("logit_scale",)

    eps: float = 0.7
    min_samples: int = 3
    ratio: int = 4
    median: int = 7
    denoise: bool = True
    vote: bool = True
    cls_weighting: bool = False

    @property
    def needs(self) -> frozenset[int]:
        return frozenset({self.clip.depth - 2})

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        return attend(q, q, v) + attend(k, k, v) + attend(v, v, v)

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        trunk = self.trunk(batch)
        if self.recipe.window == "whole" and batch.contexts:
            for image, state in zip(batch.images.tolist(), trunk.states[self.clip.depth - 2], strict=True):
                context = batch.contexts[image]
                if batch.pixels.shape[1:] == context.pixels.shape == self.whole(context).shape:
                    context.by_products["state"] = state  # so the regions need no second pass
        x = self.last_block(self.clip.block(-1, trunk.grid), trunk.tokens)
        cosines = self.cosines(x, trunk.grid)
        if self.cls_weighting:
            cosines = cosines * self.compare(self.clip.project(x[:, :1]), (1, 1))
        return cosines

    @cached_property
    def order(self) -> list[int]:
        """The queries as in the official matrix of text features: foreground classes first, then the background's."""
        group, background = self.vocabulary.group, self.vocabulary.background
        return sorted((q for q, c in enumerate(group) if c >= 0), key=lambda q: (group[q] == background, group[q]))

    def scores(self, cosines: Tensor, context: ImageContext | None = None) -> Tensor:
        """A plane for each query of `order`: its logits, with `cls_weighting` times that of the class token."""
        if self.order != list(range(len(cosines))):
            cosines = cosines[self.indices(self.order)]
        return self.recipe.logit_scale ** (2 if self.cls_weighting else 1) * cosines

    def decide(self, scores: Tensor, context: ImageContext) -> Tensor:
        classes = self.indices(self.vocabulary.group[q] for q in self.order)
        return classes[first_best(scores.movedim(0, -1))]

    def correct(self, label_map: Tensor, context: ImageContext) -> Tensor:
        if not self.vote:
            return label_map
        correlation = self.correlation(self.state(context))
        clusters = self.clusters(correlation)
        if clusters.max() < 0:
            return label_map
        regions, background = self.voting_regions(correlation, clusters, context), self.vocabulary.background
        if background is None:
            return majority_vote(label_map, regions)
        last = len(self.vocabulary.classes)  # the background's place in the official code, so it wins no tie
        voted = majority_vote(label_map.masked_fill(label_map == background, last), regions)
        return voted.masked_fill(voted == last, background)

    def whole(self, context: ImageContext) -> Tensor:
        """The image (3, H, W) for the regions, zero-padded at the right and the bottom to a multiple of the patch."""
        down, right = (-side % self.clip.patch_size for side in context.pixels.shape[1:])
        return F.pad(context.pixels, (0, right, 0, down))

    def state(self, context: ImageContext) -> Tensor:
        """Tokens (T, D) of the whole image that enter the block before the last."""
        if "state" not in context.by_products:
            trunk = self.trunk(WindowBatch(self.whole(context)[None].to(self.text)))
            context.by_products["state"] = trunk.states[self.clip.depth - 2][0]
        return context.by_products["state"]

    def correlation(self, x: Tensor) -> Tensor:
        """Tokens (T, D) -> the correlation (N, N): the cosine of two patches, averaged over queries, keys, values and heads,
        minus that of the class token with the second patch, at least 0."""
        block = self.clip.block(-2, (0, 0))
        vectors = torch.cat(block.qkv(block.ln_1(x[None])), 1)[0].float()
        # The mean of the cosines is the product of all unit vectors side by side.
        unit = F.normalize(vectors, dim=-1).transpose(0, 1).flatten(1)
        cosines = unit @ unit.T / len(vectors)
        return (cosines[1:, 1:] - cosines[0, 1:]).clamp(min=0) if self.denoise else cosines[1:, 1:]

    def clusters(self, correlation: Tensor) -> Tensor:
        """The cluster of each patch (N,), counted from 0; -1 for noise."""
        from sklearn.cluster import DBSCAN  # a second to import

        search = DBSCAN(eps=self.eps, min_samples=self.min_samples)
        return self.tensor(search.fit_predict(correlation.numpy(force=True)))

    def voting_regions(self, correlation: Tensor, clusters: Tensor, context: ImageContext) -> Tensor:
        """The cluster with the highest map, for every pixel of the result (H, W), noise patches included."""
        whole = self.whole(context).shape[1:]
        members = F.one_hot(clusters + 1)[:, 1:].T.to(correlation)
        maps = members @ correlation / members.sum(1, keepdim=True)
        maps = maps.unflatten(1, [side // self.clip.patch_size for side in whole])
        maps = F.interpolate(maps[None], scale_factor=self.ratio, mode="bilinear")[0]
        maps = self.tensor(medians(maps.numpy(force=True), self.median))
        maps = F.interpolate(maps[None], whole, mode="bilinear")[..., : context.pixels.shape[1], : context.pixels.shape[2]]
        return first_best(enlarge(maps[0], context.size).movedim(0, -1))


def medians(maps: np.ndarray, side: int) -> np.ndarray:
    """Medians of squares of maps (C, H, W), mirrored at the border: `scipy.ndimage.median_filter`, in a quarter of its time."""
    sides = (side // 2, (side - 1) // 2)
    padded = np.pad(maps, ((0, 0), sides, sides), mode="symmetric")
    squares = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (1, 2)).reshape(*maps.shape, -1)
    return np.partition(squares, side**2 // 2, -1)[..., side**2 // 2]
