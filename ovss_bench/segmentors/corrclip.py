"""CorrCLIP (Zhang et al., ICCV 2025, arXiv 2411.10086): patches attend within regions, by the similarities of a vision
encoder."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..ops.enlarge import to_coarse
from ..ops.nearest import torch_nearest
from ..ops.vote import majority_vote
from ..types import ImageContext, Trunk, WindowBatch
from .base import Segmentor
from .features import cut, pictures
from .merged_regions import PADDING, at_places, class_tokens, joint_attention, merge_regions, region_map, spatial_count


@SEGMENTORS.register_module(name="corrclip")
class CorrCLIP(Segmentor):
    """Scope and value reconstruction, a spatial and a semantic branch parallel to the last block, and map correction.

    `vfm` and `feature` as in ProxyCLIP; `regions`: a name, a folder of region files, or any callable image -> (H, W) ids; the
    smallest id in a window means unsegmented. `tau`: factor of the similarities. `alpha` and `beta`: weights of the spatial
    and the semantic branch. `spatial_blocks`: the number of blocks that the spatial branch averages; None: by the depth, as
    published. `merge_eps`: maximum distance of merged regions (DBSCAN). Ablations: `scope=False` lets all patches attend to
    all, `merge_eps=0` merges no regions, `alpha=0` and `beta=0` leave out a branch, `correction=False` the map correction.

    Where all features of a window are equal, the official softmax of unsegmented patches is NaN; here they attend to
    themselves.
    """

    requires = ("vfm", "regions")
    positive = ("spatial_blocks",)
    attention_maps = 1

    vfm: str | None = None
    feature: Literal["tokens", "q", "k", "v", "q+k"] = "q+k"
    regions: str | None = None
    tau: float = 4.0
    alpha: float = 1.0
    beta: float = 0.5
    spatial_blocks: int | None = None
    merge_eps: float = 0.2
    scope: bool = True
    correction: bool = True

    @property
    def needs(self) -> frozenset[int]:
        return frozenset(self.spatial_states)

    @property
    def needs_qkv(self) -> frozenset[int]:
        return frozenset(range(self.clip.depth) if self.beta else {self.clip.depth - 1})

    @property
    def spatial_states(self) -> range:
        """The blocks whose inputs (the outputs of the preceding blocks) the spatial branch averages."""
        last = self.clip.depth - 2
        count = self.spatial_blocks or spatial_count(self.clip.depth)
        return range(max(last - count, 0) + 1, last + 1)

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        trunk, features = self.trunk(batch), self.features(batch)
        grid, block = features.shape[2:], self.clip.block(-1, trunk.grid)
        mean = torch.stack([trunk.states[i] for i in self.spatial_states]).mean(0)
        values = self.clip.qkv(trunk, self.clip.depth - 1)[2], block.values(block.ln_1(mean))
        # Rows of the attention sum to 1, so the output projection may come first, on the coarser grid.
        projected = torch.cat([block.project(each[:, :, 1:]) for each in values], -1)
        regions, mixed = [], []
        for window, segments, of_window in zip(features, self.window_regions(batch), projected, strict=True):
            merged, attention = self.correlation(window.flatten(1).T, torch_nearest(segments, grid))
            regions.append(merged)
            mixed.append(to_coarse(attention, grid, trunk.grid).to(of_window) @ of_window)
        main, spatial = map(self.clip.project, torch.stack(mixed).chunk(2, -1))
        embeddings = main + self.alpha * spatial
        if self.beta:
            embeddings = embeddings + self.beta * self.semantic_branch(trunk, torch.stack(regions))
        return self.compare(embeddings, grid)

    def features(self, batch: WindowBatch) -> Tensor:
        """(B, C, H, W); attention and logits are computed on their grid."""
        return batch.once(self.vfm)

    # Section 3.2: scope reconstruction and similarities

    def correlation(self, features: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, C) and regions (H, W) of one window -> the merged regions and the attention (N, N)."""
        unit, regions = F.normalize(features.float(), dim=-1), self.merge(features, regions)
        if not self.scope:
            return regions, (self.tau * unit @ unit.T).softmax(-1)
        return regions, joint_attention(unit, regions.flatten(), self.tau)

    def merge(self, features: Tensor, regions: Tensor) -> Tensor:
        return merge_regions(features, regions, self.merge_eps)

    def window_regions(self, batch: WindowBatch) -> list[Tensor]:
        """The regions (H, W) of every window, in pixels."""
        if batch.contexts is None:
            return [self.tensor(self.regions(image)).long() for image in pictures(self, batch)]
        return list(cut(self, batch, lambda context: self.region_map(context, context.resized.shape[:2]), PADDING))

    def region_map(self, context: ImageContext, size: tuple[int, int]) -> Tensor:
        return region_map(self, context, size)

    # Section 3.3: value reconstruction, the semantic branch

    def semantic_branch(self, trunk: Trunk, regions: Tensor) -> Tensor:
        """(B, H*W, E): for each place, the class token of its region, which attends only to CLS and the region's patches."""
        tokens, index = class_tokens(self.clip, trunk, regions)
        return at_places(self.clip.project(tokens), index, trunk.grid, regions.shape[1:])

    # Section 3.4: map correction

    def correct(self, label_map: Tensor, context: ImageContext) -> Tensor:
        """Majority vote in every region but the unsegmented one, at the size of the result."""
        if not self.correction:
            return label_map
        regions = self.region_map(context, context.size)
        return majority_vote(label_map, regions, skip=regions.min())
