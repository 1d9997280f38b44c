"""The orthogonal factor of a matrix (PEARL)."""

import torch
from torch import Tensor


def polar(matrix: Tensor, steps: int) -> Tensor:
    """M (..., d, d) -> M (M^T M)^-1/2, by `steps` coupled Newton-Schulz steps on M^T M divided by its Frobenius norm. A few
    steps shrink weak directions."""
    identity = torch.eye(matrix.shape[-1], device=matrix.device)
    gram = matrix.transpose(-2, -1) @ matrix
    norm = gram.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-6)
    root, inverse = gram / norm + 1e-6 * identity, identity
    for _ in range(steps):
        factor = (3 * identity - inverse @ root) / 2
        root, inverse = root @ factor, factor @ inverse
    return matrix @ inverse / norm.sqrt()
