"""ResCLIP (CVPR 2025, arXiv 2411.15851): the attention of middle blocks, and feedback from a first prediction, in the last."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..encoders.clip import BlockView
from ..errors import OvssError
from ..ops.compose import in_cache
from ..ops.enlarge import enlarge
from ..ops.lines import sight_lines
from ..ops.pamr import PAMR
from ..ops.vote import tally
from ..types import QKV, Trunk, WindowBatch
from .base import Segmentor
from .naclip import neighbourhood


@SEGMENTORS.register_module(name="resclip")
class ResCLIP(Segmentor):
    """Residual cross-correlation self-attention (RCS) and semantic feedback refinement (SFR) on top of `strategy`, per window.

    RCS adds the mean attention of the blocks `rcs_first` to `rcs_last`, counted from 0, to that of the last block. SFR runs the
    last block once and refines its cosines by PAMR (`sfr_pamr_steps`, the recipe's dilations). Each pixel takes its best query
    as label, or the first query if the probability is below `temp_thd`; each patch takes the most frequent label of its pixels.
    A map of the patches with equal labels is added to the products of the last block. `rcs_tau` and `rcs_lambda`, `sfr_tau`
    and `sfr_lambda`: factor and weight of each addition.

    `strategy`: the method whose attention is improved (`resclip`: that of `naclip`). `residual`: keep the residual connection
    and the feed-forward network (the official arch `w_resi`); None: as in that method, for `sclip` only. `gaussian_std`: of
    NACLIP's bonus and of the smoothing in SFR. `delete_same_entity` weakens the feedback between patches of equal labels with
    other labels between them. Ablations: `use_rcs`, `use_sfr`.
    """

    positive = ("gaussian_std",)
    attention_maps = 6
    scores_sum_to_one = True
    uses = ("pamr_dilations",)  # in the feedback, even with pamr_steps=0

    strategy: Literal["resclip", "naclip", "clearclip", "sclip", "vanilla"] = "resclip"
    residual: bool | None = None
    gaussian_std: float = 5.0
    use_rcs: bool = True
    rcs_first: int = 5
    rcs_last: int = 8
    rcs_tau: float = 2.0
    rcs_lambda: float = 0.3
    use_sfr: bool = True
    sfr_tau: float = 2.1
    sfr_lambda: float = 0.7
    sfr_pamr_steps: int = 10
    temp_thd: float = 0.25
    delete_same_entity: bool = True

    @property
    def middle(self) -> tuple[int, ...]:
        """The blocks whose attention RCS averages; none without RCS."""
        if not self.use_rcs:
            return ()
        if not 0 <= self.rcs_first <= self.rcs_last < self.clip.depth:
            raise OvssError(
                f"rcs_first={self.rcs_first}, rcs_last={self.rcs_last} of {self.recipe.segmentor}: expected blocks 0 to "
                f"{self.clip.depth - 1} of this CLIP, in ascending order."
            )
        return tuple(range(self.rcs_first, self.rcs_last + 1))

    @property
    def needs_qkv(self) -> frozenset[int]:
        return frozenset(self.middle)

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        trunk = self.trunk(batch)
        block = self.clip.block(-1, trunk.grid)
        logits = []
        for n, pixels in enumerate(batch.pixels):  # one by one: the attention maps of all heads are large
            window = slice(n, n + 1)
            x = trunk.tokens[window]
            qkv, middle = block.qkv(block.ln_1(x)), self.middle_attention(trunk, window)
            cosines = self.cosines(self.last_block(block, x, qkv, middle), trunk.grid)
            if self.use_sfr:
                labels = self.patch_labels(cosines[0], pixels)
                feedback = F.pad(self.feedback(labels), (1, 0, 1, 0))
                cosines = self.cosines(self.last_block(block, x, qkv, middle, (feedback / feedback.max()).to(x)), trunk.grid)
            logits.append(cosines)
        return torch.cat(logits)

    def last_block(
        self, block: BlockView, x: Tensor, qkv: QKV, middle: Tensor | None, feedback: Tensor | None = None
    ) -> Tensor:
        """Tokens (1, T, D) that enter the last block, and their queries, keys and values -> the tokens that leave it."""
        q, k, v = qkv
        o = block.project(self.attention(q, k, block.grid, middle, feedback) @ v)
        if not (self.strategy == "sclip" if self.residual is None else self.residual):
            return o
        x = x + o
        return x + block.mlp(block.ln_2(x))

    def attention(self, q: Tensor, k: Tensor, grid: tuple[int, int], middle: Tensor | None, feedback: Tensor | None) -> Tensor:
        """Attention maps (1, K, T, T) of the last block. With RCS or the strategy of SCLIP, rows do not sum to 1."""
        pairs = {"clearclip": [(q, q)], "sclip": [(q, q), (k, k)], "vanilla": [(q, k)]}.get(self.strategy, [(k, k)])
        total = 0
        for a, b in pairs:
            products = a @ b.transpose(-2, -1) * q.shape[-1] ** -0.5
            if feedback is not None:
                products = self.sfr_tau * ((1 - self.sfr_lambda) * products + self.sfr_lambda * feedback)
            if self.strategy in ("resclip", "naclip"):
                products = products + neighbourhood(grid, self.gaussian_std, like=k).to(k)
            total = total + products.softmax(-1)
        return total if middle is None else self.rcs_tau * ((1 - self.rcs_lambda) * total + self.rcs_lambda * middle)

    # RCS

    def middle_attention(self, trunk: Trunk, window: slice = slice(None)) -> Tensor | None:
        """The mean attention (B, K, T, T) of the middle blocks in some windows; None without RCS."""
        maps = [self.clip.attention(trunk, i, window) for i in self.middle]
        return sum(maps) / len(maps) if maps else None

    # SFR

    def patch_labels(self, cosines: Tensor, pixels: Tensor) -> Tensor:
        """Cosines (Q, h, w) of the first pass, normalised window (3, H, W) -> the query of each patch (h, w)."""
        patch, maps = self.clip.patch_size, enlarge(cosines, pixels.shape[1:])
        if self.sfr_pamr_steps:
            smooth = PAMR(pixels, self.sfr_pamr_steps, self.recipe.pamr_dilations)
            labels = self.pixel_labels(smooth.in_order(maps))[smooth.back]
        else:
            labels = self.pixel_labels([maps.flatten(1).T])
        labels = labels.view(pixels.shape[1:])
        tiles = labels.unfold(0, patch, patch).unfold(1, patch, patch).flatten(2)  # whole patches only
        return tally(tiles, len(cosines)).argmax(-1)

    def pixel_labels(self, cosines: list[Tensor]) -> Tensor:
        """Parts (pixels, q) of the cosines, by query -> the query of each pixel (pixels,). Computed for some pixels at a time,
        so that the probabilities stay in a core's cache."""
        rows, labels = in_cache(sum(part.shape[1] for part in cosines), like=cosines[0]), []
        for parts in zip(*(part.split(rows) for part in cosines), strict=True):
            probability, best = (self.recipe.logit_scale * torch.cat(parts, 1)).softmax(1).max(1)
            labels.append(best.masked_fill(probability < self.temp_thd, 0))
        return torch.cat(labels)

    def feedback(self, labels: Tensor) -> Tensor:
        """The query of each patch (h, w) -> the smoothed map of patches with equal queries (N, N), rows of sum 1."""
        flat = labels.flatten()
        ties = (flat[:, None] == flat).float()
        if self.delete_same_entity:
            ties = ties * self.sight(labels)
        # As published, the Gaussian runs along the flattened index, across the ends of the rows of patches.
        reach = min(len(flat), int(6 * self.gaussian_std + 1)) // 2
        kernel = torch.exp(-self.indices(range(-reach, reach + 1)).square() / (2 * self.gaussian_std**2))
        ties = F.conv1d(ties[:, None], (kernel / kernel.sum())[None, None], padding=reach)[:, 0]
        return ties / (ties.sum(1, keepdim=True) + 1e-8)

    def sight(self, labels: Tensor) -> Tensor:
        """Labels (h, w) -> (N, N): 1 for two patches if all patches on the line between them have the label of the first,
        otherwise a weight that falls with their distance.

        As published, every line has as many samples as the longest one. On a line of s patches only the first s samples are
        tested; they lie close to the first patch.
        """
        rows, columns, distance = sight_lines(tuple(labels.shape), like=labels)
        seen = torch.ones_like(distance, dtype=torch.bool)
        for k, (row, column) in enumerate(zip(rows, columns, strict=True)):
            seen &= (labels[row[:, None, :, None], column[:, None, :]] == labels[..., None, None]) | (k > distance)
        return torch.where(seen, 1, torch.exp(-distance / (len(rows) - 1))).flatten(2).flatten(0, 1)
