"""Dense CRF (Krähenbühl and Koltun, NeurIPS 2011, arXiv 1210.5644): mean-field inference with Gaussian kernels between all
pixels, filtered on the permutohedral lattice (Adams, Baek, Davis, Eurographics 2010), as in the authors' code."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .device import kept

MIN_PROBABILITY = 1e-5  # as in pydensecrf's unary_from_softmax
# CLIP-ES's kernels: standard deviations in pixels and grey levels, and weights of the Potts model.
SMOOTH_XY, SMOOTH_WEIGHT = 1.0, 3.0
BILATERAL_XY, BILATERAL_RGB, BILATERAL_WEIGHT = 67.0, 3.0, 4.0


def dense_crf(
    probabilities: Tensor,
    image: Tensor,
    steps: int = 10,
    smooth: tuple[float, float] = (SMOOTH_XY, SMOOTH_WEIGHT),
    bilateral: tuple[float, float, float] = (BILATERAL_XY, BILATERAL_RGB, BILATERAL_WEIGHT),
) -> Tensor:
    """Probabilities (..., L, H, W) of labels, guided by an image (H, W, 3) of 0..255 -> the same after `steps` of mean-field
    inference, with sums of 1. `smooth`: standard deviation in pixels, weight; `bilateral`: standard deviations in pixels and
    in grey levels, weight."""
    shape, labels = image.shape[:2], probabilities.shape[-3]
    unary = -probabilities.clamp(MIN_PROBABILITY, 1).log().flatten(-2).flatten(0, -2).T
    places = positions(*shape, like=image)
    appearance = torch.cat([places / bilateral[0], image.flatten(0, 1) / bilateral[1]], 1)
    kernels = [(Lattice(places / smooth[0]), smooth[1]), (Lattice(appearance), bilateral[2])]
    # The kernel is normalised symmetrically: by the roots of its sums over the pixels at both ends.
    scales = [lattice.filtered(torch.ones_like(unary[:, :1])).add(1e-20).rsqrt() for lattice, _ in kernels]
    belief = (-unary).unflatten(1, (-1, labels)).softmax(2).flatten(1)
    for _ in range(steps):
        messages = (
            weight * scale * lattice.filtered(scale * belief) for (lattice, weight), scale in zip(kernels, scales, strict=True)
        )
        belief = (sum(messages) - unary).unflatten(1, (-1, labels)).softmax(2).flatten(1)
    return belief.T.reshape(probabilities.shape)


@kept(8)
def positions(height: int, width: int) -> Tensor:
    """(H*W, 2): x and y of every pixel, row by row."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1).float()


class Lattice:
    """Filters values of N points by a Gaussian of standard deviation 1 between their features (N, d), approximately and up to
    a constant factor: splat to the corners of the simplex around each point, blur along each axis, slice. Deterministic: sums
    are taken in bags, in a fixed order."""

    def __init__(self, features: Tensor) -> None:
        keys, weights = simplices(features)
        dimensions = features.shape[1]
        low, high = keys.amin((0, 1)) - dimensions, keys.amax((0, 1)) + dimensions  # room for the neighbours
        strides = F.pad((high - low + 1)[1:].flip(0).cumprod(0), (1, 0), value=1).flip(0)
        codes, vertex = ((keys - low) * strides).sum(-1).flatten().unique(return_inverse=True)
        order = vertex.argsort(stable=True)
        self.points, self.splat_weights = order // (dimensions + 1), weights.flatten()[order]
        self.offsets = torch.searchsorted(vertex[order], torch.arange(len(codes), device=codes.device))
        self.vertices, self.weights = vertex.view_as(weights), weights
        steps = (axes(dimensions, like=keys) * strides).sum(1)
        self.neighbours = [(vertex_numbers(codes, codes + step), vertex_numbers(codes, codes - step)) for step in steps]

    def filtered(self, values: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        values = F.embedding_bag(
            self.points, values.contiguous(), self.offsets, per_sample_weights=self.splat_weights, mode="sum"
        )
        for after, before in self.neighbours:
            padded = F.pad(values, (0, 0, 0, 1))
            values = values + (padded[after] + padded[before]) / 2
        return F.embedding_bag(self.vertices, values, per_sample_weights=self.weights, mode="sum")


def vertex_numbers(codes: Tensor, wanted: Tensor) -> Tensor:
    """The index of each of `wanted` (M,) in the ascending `codes` (M,), or M where it is not among them."""
    place = torch.searchsorted(codes, wanted).clamp(max=len(codes) - 1)
    return torch.where(codes[place] == wanted, place, len(codes))


def simplices(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, d) -> the corners of the simplex around each point, (N, d+1, d) int64: the first d of d+1 coordinates of sum
    0; and barycentric weights (N, d+1)."""
    d = features.shape[1]
    # On the plane of sum 0, scaled so that splat, blur and slice together have a standard deviation of 1.
    elevated = features.double() @ elevation(d, like=features)
    nearest = (elevated / (d + 1)).round() * (d + 1)
    excess = (nearest.sum(1) / (d + 1)).round().long()  # how many steps the nearest point is off the plane
    difference = elevated - nearest
    order = difference.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(d + 1, device=order.device).expand_as(order))
    rank = rank + excess[:, None]
    shift = (rank < 0).long() - (rank > d).long()
    nearest, rank = nearest + shift * (d + 1), rank + shift * (d + 1)
    difference = (elevated - nearest) / (d + 1)
    # Sorted by rank, gaps between neighbouring coordinates are the weights.
    ordered = torch.empty_like(difference).scatter_(1, rank, difference)
    gaps = torch.cat([1 + ordered[:, -1:] - ordered[:, :1], -ordered.diff(dim=1).flip(1)], 1)
    remainder = torch.arange(d + 1, device=features.device)
    keys = nearest.long()[:, None, :d] + remainder[:, None] - (d + 1) * (rank[:, None, :d] > d - remainder[:, None])
    return keys, gaps.to(features.dtype)


@kept(8)
def elevation(d: int) -> Tensor:
    """(d, d+1) float64: from features to coordinates of sum 0."""
    scales = [math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2)) for i in range(d)]
    matrix = torch.zeros(d, d + 1, dtype=torch.float64)
    for i, scale in enumerate(scales):
        matrix[i, : i + 1] = scale
        matrix[i, i + 1] = -(i + 1) * scale
    return matrix


@kept(8)
def axes(d: int) -> Tensor:
    """(d+1, d): the offsets of neighbours along each axis."""
    return torch.cat([1 - (d + 1) * torch.eye(d, dtype=torch.int64), torch.ones(1, d, dtype=torch.int64)])
