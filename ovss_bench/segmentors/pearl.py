"""PEARL (Pei et al., CVPR 2026, arXiv 2603.21528): keys rotated towards the queries, then a Laplacian system along the edges of
the image."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..ops.attention import attend
from ..ops.polar import polar
from .base import LastBlockSegmentor
from .steps.tlp import LaplacianPropagation


@SEGMENTORS.register_module(name="pearl")
class PEARL(LaplacianPropagation, LastBlockSegmentor):
    """Procrustes alignment in the last block (pearl/attn.py of the official code), and text-aware Laplacian propagation of its
    cosines, the step `tlp`; no residual connection, no feed-forward network.

    `strategy`: `pearl` aligns, `vanilla` is CLIP's attention. `alpha_kk`: the weight of the key-key products. `align_solver`:
    `polar` takes `polar_iters` Newton-Schulz steps, too few to converge, as for the published figures; `svd` is exact.
    `tlp`: whether to propagate.
    """

    attention_maps = 1
    scores_sum_to_one = True

    residual: bool = False
    strategy: Literal["pearl", "vanilla"] = "pearl"
    alpha_kk: float = 0.08
    align_solver: Literal["polar", "svd"] = "polar"
    polar_iters: int = 5
    tlp: bool = True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        """softmax(s (q (k R)^T + alpha_kk kc kc^T)) v in float32, with the `rotation` R and the centred keys kc."""
        if self.strategy == "vanilla":
            return attend(q, k, v)
        queries, keys = q.float(), k.float()
        weights = token_weights(queries)
        centred_q, centred_k = (x - weights.transpose(-2, -1) @ x for x in (queries, keys))
        aligned = keys @ self.rotation(centred_k.transpose(-2, -1) @ centred_q)
        # One product of concatenated matrices is the sum of both.
        both = torch.cat([queries, self.alpha_kk * centred_k], -1), torch.cat([aligned, centred_k], -1)
        return attend(*both, v.float(), scale=q.shape[-1] ** -0.5).to(v.dtype)

    def rotation(self, correlation: Tensor) -> Tensor:
        """Correlations of keys and queries (..., d, d) -> the matrices that turn keys towards queries."""
        if self.align_solver == "svd":
            u, _, vh = torch.linalg.svd(correlation)
            return u @ vh
        return polar(correlation, self.polar_iters)

    @property
    def refines(self) -> bool:
        return self.tlp


def token_weights(queries: Tensor) -> Tensor:
    """Queries (..., T, d) -> the weight of each token in the means (..., T, 1): its share of the sum of norms; 0 for the class
    token."""
    norms = F.pad(queries[..., 1:, :].norm(dim=-1, keepdim=True), (0, 0, 1, 0))
    return norms / (norms.sum(-2, keepdim=True) + 1e-6)
