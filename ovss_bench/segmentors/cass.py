"""CASS (Kim et al., CVPR 2025, arXiv 2411.17150): the last block attends by CLIP's graph and the low-rank graph of a vision
encoder, head by head, and texts move towards the classes that the image seems to hold."""

from dataclasses import replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..errors import OvssError
from ..image import STATISTICS, resize
from ..ops.device import kept
from ..ops.image_texts import adjusted_texts, query_clusters
from ..ops.spectral import best_pairs, graph_spectrum
from ..types import ImageContext, WindowBatch
from .base import Segmentor
from .features import whole_pixels
from .naclip import neighbourhood


@SEGMENTORS.register_module(name="cass")
class CASS(Segmentor):
    """The keys of both networks form graphs of patches. Each head of the vision encoder is paired with a head of CLIP by their
    spectra (`k_eigen` eigenvalues). Its graph, reduced to `rank` eigenvectors and with stretched eigenvalues (`stretch`), is
    added to CLIP's with the weight `scale_factor` times the distance of the spectra. The attention is the softmax of this sum
    and a Gaussian (`sigma`); no residual, no feed-forward network.

    Texts are clustered at the distance `h_threshold`. In each cluster, the text most similar to the image moves towards its two
    most similar patches, by `mean_vector_weight`. Similarities to the image are mixed in with `global_semantics_weight`. The
    image is the whole one, or with `whole_image=False` the window. `vfm`: the encoder, by name, or any callable WindowBatch ->
    (B, C, H, W) whose channels divide into as many heads as CLIP has; it sees the window as a square.

    As in the official code, the two most *different* heads are paired, and the pair (i, c) takes the i-th head of CLIP and the
    c-th of the encoder, although rows of the cost are heads of the encoder. Unlike there, the first of equal pairings is taken,
    not the one that rounding decides, and the graph is reduced exactly, not by a randomised decomposition.
    """

    requires = ("vfm",)
    positive = ("k_eigen", "rank", "sigma")
    attention_maps = 4

    vfm: str | None = None
    feature: Literal["tokens", "q", "k", "v", "q+k"] = "k"
    k_eigen: int = 20
    rank: int = 10
    scale_factor: float = 10.0
    stretch: bool = True
    sigma: float = 5.0
    h_threshold: float = 0.1
    mean_vector_weight: float = 0.04
    global_semantics_weight: float = 0.25
    whole_image: bool = True

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        patches, similarity = self.once(self.patches, batch), self.image_similarity(batch)
        cosines = patches @ self.adjusted_text(patches, similarity).transpose(1, 2)
        weight = self.global_semantics_weight
        mixed = (1 - weight) * cosines + weight * similarity[:, None]
        return mixed.transpose(1, 2).unflatten(2, self.trunk(batch).grid)

    def patches(self, batch: WindowBatch) -> Tensor:
        """Unit embeddings (B, N, E)."""
        trunk = self.trunk(batch)
        block = self.clip.block(-1, trunk.grid)
        _, k, v = (part[:, :, 1:] for part in block.qkv(block.ln_1(trunk.tokens)))
        attention = self.graph(k.float(), self.keys(batch, k.float(), trunk.grid))
        bonus = neighbourhood(trunk.grid, self.sigma, like=k)[1:, 1:]
        return self.clip.head(block.project((attention + bonus).softmax(-1).to(v.dtype) @ v))

    # Section 3.2: the graph of the vision encoder

    def keys(self, batch: WindowBatch, k: Tensor, grid: tuple[int, int]) -> Tensor:
        """The encoder's keys (B, K, N, d) on CLIP's grid, in the range of CLIP's keys (B, K, N, d) of the window."""
        features = replace(batch, pixels=as_seen(batch.pixels), trunk=None, shared={}).once(self.vfm)
        if features.shape[1] % k.shape[1]:
            raise OvssError(
                f"cass pairs the {k.shape[1]} heads of CLIP with those of vfm, whose {features.shape[1]} channels cannot be "
                "divided into as many. Use an encoder with the same number of heads."
            )
        features = F.interpolate(features.float(), grid, mode="bilinear").unflatten(1, (k.shape[1], -1))
        return to_range(features.flatten(3).transpose(2, 3), k, (1, 2, 3))

    def graph(self, k: Tensor, keys: Tensor) -> Tensor:
        """Keys (B, K, N, d) of CLIP and of the encoder -> the logits (B, K, N, N) of the attention."""
        logits = k @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        values, vectors = graph_spectrum(keys)
        spectra = [self.normalised(values), self.normalised(graph_spectrum(k)[0])]
        distances = torch.cdist(*spectra, p=1)  # rows: heads of the encoder
        pairs = self.pairs(distances)
        values, vectors = values[..., : self.rank], vectors[..., : self.rank]
        values, vectors = (x.gather(1, index_like(pairs, x)) for x in (values, vectors))
        reduced = ((vectors * self.stretched(values)[:, :, None]) @ vectors.transpose(-2, -1)).float()
        reduced.diagonal(dim1=-2, dim2=-1).zero_()
        weight = self.scale_factor * distances.gather(2, pairs[..., None]).float()[..., None]
        return (weight * to_range(reduced, logits, (2, 3)) + logits) / (weight + 1)

    def normalised(self, values: Tensor) -> Tensor:
        """Eigenvalues (..., n), largest first -> spectra (..., k_eigen) of sum 1; all further eigenvalues of a graph are 0."""
        values = F.pad(values, (0, self.k_eigen - values.shape[-1]))
        return F.normalize(F.normalize(values, dim=-1), p=1, dim=-1)

    def pairs(self, distances: Tensor) -> Tensor:
        """Distances (B, K, K) of the spectra -> the encoder's head (B, K) for each head of CLIP."""
        costs = (1 - distances.float()).numpy(force=True)
        return self.tensor(np.array([best_pairs(cost) for cost in costs]))

    def stretched(self, values: Tensor) -> Tensor:
        """Eigenvalues (..., n), mapped linearly: the smallest is halved, the largest multiplied by 1.5."""
        if not self.stretch:
            return values
        low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        share = (values - low) / (high - low).clamp(min=1e-30)
        return share * (1.5 * high - 0.5 * low) + 0.5 * low

    # Section 3.3: texts and the image as a whole

    def image_similarity(self, batch: WindowBatch) -> Tensor:
        """The cosines (B, Q) of the queries with unmodified CLIP's embedding of the image, or of each window."""
        if not self.whole_image or self.recipe.window == "whole" or batch.contexts is None:
            return self.window_embeddings(batch) @ self.text.T
        return torch.stack([self.embedding_of(batch.contexts[image]) for image in batch.images.tolist()]) @ self.text.T

    def embedding_of(self, context: ImageContext) -> Tensor:
        """Unmodified CLIP's embedding (E,) of the whole resized image, whose aspect ratio is kept."""
        if "embedding" not in context.by_products:
            trunk = self.clip.trunk(whole_pixels(self, context), position=self.recipe.position)
            context.by_products["embedding"] = self.clip.embeddings(trunk)[0]
        return context.by_products["embedding"]

    @cached_property
    def clusters(self) -> list[int]:
        """The cluster of each query."""
        return query_clusters(self.text, self.h_threshold, "ward")

    def adjusted_text(self, patches: Tensor, similarity: Tensor) -> Tensor:
        """The texts (B, Q, E) for windows of unit patch embeddings (B, N, E) and similarities (B, Q) to the image."""
        return adjusted_texts(self.text, self.indices(self.clusters), patches, similarity, self.mean_vector_weight)


def index_like(index: Tensor, x: Tensor) -> Tensor:
    """An index (B, n) for `gather` along the second dimension of x (B, ...)."""
    return index.view(*index.shape, *(1,) * (x.ndim - 2)).expand(*index.shape, *x.shape[2:])


def to_range(x: Tensor, other: Tensor, dims: tuple[int, ...]) -> Tensor:
    """x, mapped linearly from its range over `dims` to that of `other`."""
    (low, high), (least, most) = ((each.amin(dims, keepdim=True), each.amax(dims, keepdim=True)) for each in (x, other))
    return (x - low) / (high - low).clamp(min=1e-30) * (most - least) + least


@kept(1)
def _seen() -> Tensor:
    """(4, 3, 1, 1): the scale and shift by which the official code undoes CLIP's normalisation, then CLIP's mean and standard
    deviation. The third scale is 0.255 there, not ImageNet's 0.225."""
    rows = [[0.229, 0.224, 0.255], [0.485, 0.456, 0.406], *STATISTICS["clip_exact"]]
    return torch.tensor(rows).view(4, 3, 1, 1)


def as_seen(pixels: Tensor) -> Tensor:
    """Windows (B, 3, H, W) normalised for CLIP -> (B, 3, S, S) as the official code shows them to the encoder: squares in
    compressed 8-bit colours, normalised again."""
    scale, shift, mean, std = _seen(like=pixels)
    colours = ((pixels.float() * scale + shift) * 255).clamp(0, 255).byte()
    height, width = colours.shape[2:]
    if height != width:
        side = min(height, width)
        images = colours.movedim(1, -1).numpy(force=True)
        squares = np.stack([resize(np.ascontiguousarray(image), "square", side, side, 1) for image in images])
        colours = torch.from_numpy(squares).movedim(-1, 1).to(pixels)
    return (colours.float() - mean) / std
