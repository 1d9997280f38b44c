"""OV-Stitcher (CVPR 2026 Findings, arXiv 2604.08110): CorrCLIP with its windows stitched into one map before the last block."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.hyperparameters import File
from ..config.registry import SEGMENTORS
from ..encoders.text import read_sentences
from ..errors import OvssError
from ..ops.across_windows import stitch
from ..ops.attention import attend
from ..ops.nearest import torch_nearest
from ..ops.vote import majority_vote
from ..progress import Progress
from ..stages import of_source
from ..types import ImageContext, Trunk, WindowBatch
from ..vocabulary import Vocabulary
from .base import Segmentor
from .features import corners, extent, pictures, places
from .merged_regions import PADDING, at_places, class_tokens, merge_regions, region_attention, region_map, spatial_count


@SEGMENTORS.register_module(name="ov_stitcher")
class OVStitcher(Segmentor):
    """Similarities, scope, spatial and semantic branches as in CorrCLIP, but over the whole image.

    `vfm`: a named encoder, whose last block runs on the stitched patches, or any callable as in ProxyCLIP, whose features are
    stitched. `regions`, `tau`, `alpha`, `beta`, `spatial_blocks`, `merge_eps` and `correction`: as in CorrCLIP. `prompts`: a
    JSON file {name: [sentence, ...]} with additional sentences for some names, weighted like the templates.
    """

    requires = ("vfm", "regions")
    positive = ("spatial_blocks",)

    vfm: str | None = None
    regions: str | None = None
    tau: float = 4.0
    alpha: float = 1.0
    beta: float = 0.5
    spatial_blocks: int | None = None
    merge_eps: float = 0.2
    correction: bool = True
    prompts: File | None = None

    @property
    def needs_qkv(self) -> frozenset[int]:
        return frozenset({*self.spatial_states, *(range(self.clip.depth) if self.beta else ())})

    @property
    def spatial_states(self) -> range:
        """The blocks that the spatial branch runs on the stitched tokens."""
        end = self.clip.depth - 2
        count = self.spatial_blocks or spatial_count(self.clip.depth)
        return range(max(end - count, 0), max(end, 1))

    # Class-biased prompts

    def enriched(self, text: Tensor, vocabulary: Vocabulary, progress: Progress | None = None) -> Tensor:
        if self.prompts is None:
            return text
        if vocabulary.given_features is not None:
            raise OvssError(f"prompts={self.prompts}: the vocabulary gives text features, not names. Leave prompts out.")
        known, text = read_sentences("prompts", self.prompts), text.clone()
        for number, name in enumerate(vocabulary.queries):
            if name in known:
                rows = self.clip.encode_text([template.format(name) for template in vocabulary.prompts] + known[name])
                text[number] = F.normalize(rows.mean(0), dim=0)
        return text

    # Stitching

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        """Cosines (B, Q, h, w), with every window treated as a whole image."""
        return torch.cat([self.image_logits(WindowBatch(window[None])) for window in batch.pixels])

    @torch.inference_mode()
    def image_logits(self, batch: WindowBatch) -> Tensor:
        """Cosines (1, Q, h, w) on the vision encoder's grid over the whole image."""
        trunk, patch = self.trunk(batch), self.clip.patch_size
        similar, cell = self.similar(batch)
        grid = similar.shape[1:]
        block, starts = self.clip.block(-1, trunk.grid), corners(batch, patch)
        regions = merge_regions(similar.flatten(1).T, torch_nearest(self.image_regions(batch), grid), self.merge_eps)
        main = stitch(block.value_map(trunk.tokens, trunk.grid).transpose(1, 2).unflatten(2, trunk.grid), starts)
        spatial = self.spatial_branch(trunk, starts)
        values = block.values(block.ln_1(spatial.flatten(1).T[None])).transpose(1, 2).flatten(2)[0]
        values = torch.stack([main, values.T.unflatten(1, main.shape[1:])])
        values = F.interpolate(values, grid, mode="bilinear").flatten(0, 1).flatten(1).T
        mixed = self.attend(similar.flatten(1).T, regions.flatten(), values).unflatten(1, (2, -1)).transpose(0, 1)
        main, spatial = self.clip.project(block.project(mixed[:, None]))
        embeddings = main + self.alpha * spatial
        if self.beta:
            semantic = self.semantic_branch(batch, trunk, regions, cell).flatten(1).T
            embeddings = embeddings + self.beta * self.clip.project(semantic)
        return self.compare(embeddings[None], grid)

    def similar(self, batch: WindowBatch) -> tuple[Tensor, int]:
        """Unit features (C, H, W) of the stitched image, and the side of a cell in pixels."""
        with of_source(self.vfm):
            if hasattr(self.vfm, "joined"):
                cell = self.vfm.patch_size
                features = self.vfm.joined(batch, lambda maps: stitch(maps, corners(batch, cell)))
            else:
                maps = batch.once(self.vfm)
                cell = max(batch.pixels.shape[2] // maps.shape[2], 1)
                features = stitch(maps, corners(batch, cell))
        return F.normalize(features.float(), dim=0), cell

    def attend(self, features: Tensor, regions: Tensor, values: Tensor) -> Tensor:
        """Unit features (N, C), merged regions (N,), values (N, D) -> the attention's output (N, D)."""
        mixed = torch.empty_like(values)
        for rows, seen, attention in region_attention(features, regions, self.tau):
            mixed[rows] = attention.to(values.dtype) @ values[seen]
        return mixed

    # Regions

    def image_regions(self, batch: WindowBatch) -> Tensor:
        """The regions (H, W) of the stitched image, in pixels; those of padding have the id PADDING."""
        if batch.contexts is None:
            return self.tensor(self.regions(pictures(self, batch)[0])).long()
        regions = region_map(self, batch.contexts[0], batch.contexts[0].resized.shape[:2])
        top, left, bottom, right = extent(batch)
        after = max(right - regions.shape[1], 0), max(bottom - regions.shape[0], 0)
        return F.pad(regions, (-left, after[0], -top, after[1]), value=PADDING)

    def correct(self, label_map: Tensor, context: ImageContext) -> Tensor:
        """Majority vote within every region except the unsegmented one, at the size of the result."""
        if not self.correction:
            return label_map
        regions = region_map(self, context, context.size)
        return majority_vote(label_map, regions, skip=regions.min())

    # Branches

    def spatial_branch(self, trunk: Trunk, starts: list[tuple[int, int]]) -> Tensor:
        """The mean output (D, H, W) of the blocks `spatial_states` for the stitched image. As in the official code, attention
        has a single head of the full width, but the scale of one of the block's heads."""

        def joined(tokens: Tensor) -> Tensor:
            return stitch(tokens[:, 1:].transpose(1, 2).unflatten(2, trunk.grid), starts)

        outputs = []
        for i in self.spatial_states:
            block, qkv = self.clip.block(i, trunk.grid), self.clip.qkv(trunk, i)
            x = joined(trunk.states[i])
            q, k, v = (joined(part.transpose(1, 2).flatten(2)).flatten(1).T[None, None] for part in qkv)
            u = x.flatten(1).T[None] + block.project(attend(q, k, v, scale=qkv[0].shape[-1] ** -0.5))
            outputs.append((u + block.mlp(block.ln_2(u)))[0].T.unflatten(1, x.shape[1:]))
        return torch.stack(outputs).mean(0)

    def semantic_branch(self, batch: WindowBatch, trunk: Trunk, regions: Tensor, cell: int) -> Tensor:
        """The class token of the region at each cell of the stitched image (D, H, W), not normalised."""
        top, left, bottom, right = extent(batch)
        whole, (height, width) = torch_nearest(regions, (bottom - top, right - left)), batch.pixels.shape[2:]
        windows = [whole[y - top : y - top + height, x - left : x - left + width] for y, x in places(batch)]
        tokens, index = class_tokens(self.clip, trunk, torch.stack(windows))
        grid = height // cell, width // cell
        placed = at_places(tokens, index, trunk.grid, grid).transpose(1, 2).unflatten(2, grid)
        return stitch(placed, corners(batch, cell))
