"""FreeCP (Chen et al., ICCV 2025, arXiv 2508.00557): class purification of the maps of a window."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ...config.hyperparameters import File
from ...config.registry import STEPS
from ...encoders.clip import BlockView
from ...encoders.text import read_sentences
from ...errors import OvssError
from ...ops.attention import balanced
from ...ops.boxes import in_boxes, outline_boxes
from ...ops.scores import best_of_classes
from ...types import ImageContext, Trunk, WindowBatch
from ..base import IMAGES_PER_PASS, LastBlockSegmentor, Segmentor
from ..gem import GEM
from ..maskclip import MaskCLIP
from .base import WindowStep

EPSILON = 1e-8


@STEPS.register_module(name="freecp")
class Purification(WindowStep):
    """The probabilities of a window are refined along CLIP's attention. A class whose map agrees with its refined map by at
    most `rp_thres` is dropped (redundancy). Of classes whose refined maps overlap by `ap_thres` or more, only those stay that
    CLIP prefers on a crop (ambiguity). The maps of the remaining classes decide; the background has 1 - the highest of them.

    `box_threshold`: share of a map's peak that bounds its boxes; `crop_side`: side of a crop for CLIP in pixels; `cam_scale`:
    factor of the cosines. `descriptions`: a JSON file {class name: [sentence, ...]}; classes that it lacks, and all without a
    file, are described by the prompts of the recipe (the official code stops). Every foreground query counts as a class until
    the decision; queries of the background, and distractors, only compete in the softmax.

    As in the official code, a last block with a residual connection is used without the one around its attention, and the
    affinity with GEM is that of head 0. The agreement of equal maps is half of what an intersection over union would be.
    """

    rp_thres: float = 0.1
    ap_thres: float = 0.7
    box_threshold: float = 0.4
    crop_side: int = 112
    cam_scale: float = 100.0
    descriptions: File | None = None

    positive = ("crop_side", "cam_scale")
    attention_maps = 1

    @classmethod
    def refusal(cls, base: type[Segmentor]) -> str | None:
        plain = issubclass(base, LastBlockSegmentor) and base.patch_logits is LastBlockSegmentor.patch_logits
        decides = base.scores or base.decide or base.prior
        if base.uses_clip and (decides or not (plain or issubclass(base, (GEM, MaskCLIP)))):
            return "freecp is for GEM, MaskCLIP and methods that only change the last block, such as ClearCLIP and SCLIP"
        return super().refusal(base)

    @property
    def needs_qkv(self) -> frozenset[int]:
        return frozenset(super().needs_qkv) | frozenset(range(self.clip.depth - 1))

    @cached_property
    def described(self) -> Tensor:
        """Unit features (K, E) of the descriptions."""
        features = self.text[self.indices(self.vocabulary.foreground)].clone()
        known = read_sentences("descriptions", self.descriptions) if self.descriptions else {}
        for row, query in enumerate(self.vocabulary.foreground):
            if sentences := known.get(self.vocabulary.queries[query]):
                features[row] = F.normalize(self.clip.encode_text(sentences).mean(0), dim=-1)
        return features

    def last_block(self, block: BlockView, x: Tensor) -> Tensor:
        base: Any = super()
        if getattr(base.last_block, "__func__", None) is not LastBlockSegmentor.last_block or not self.residual:
            return base.last_block(block, x)
        o = block.project(self.mix(*block.qkv(block.ln_1(x)), block.grid))
        return o + block.mlp(block.ln_2(o))

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        cosines = super().patch_logits(batch)
        trunk, maps = self.trunk(batch), torch.zeros_like(cosines)
        if cosines.shape[2:] != trunk.grid:
            name, reason = self.recipe.segmentor, "freecp needs cosines on CLIP's patches, and the base method has others"
            raise OvssError(f"{name}: {reason}. Leave freecp out.")
        if self.vocabulary.foreground:
            probabilities, refined = self.refined(cosines, trunk)
            kept = self.agreement(probabilities, refined) > self.rp_thres
            kept = self.unambiguous(refined, kept, batch)
            maps[:, self.indices(self.vocabulary.foreground)] = refined * kept[..., None, None]
        return maps

    # Section 3.2: refinement

    def affinity(self, trunk: Trunk) -> Tensor:
        """(B, N, N): the mean attention between patches of all blocks but the last, balanced, symmetric, squared."""
        total: Any = 0
        for i in range(self.clip.depth - 1):
            attention = self.clip.attention(trunk, i)[..., 1:, 1:].float()
            total = total + (attention[:, 0] if isinstance(self, GEM) else attention.mean(1))
        total = balanced(total)  # the sum instead of the mean: only ratios count
        return total @ total

    def refined(self, cosines: Tensor, trunk: Trunk) -> tuple[Tensor, Tensor]:
        """Cosines (B, Q, h, w) -> probabilities and refined maps (B, K, h, w) of the foreground queries."""
        probabilities = (self.cam_scale * cosines).softmax(1)
        low, high = (extreme((1, 2, 3), keepdim=True) for extreme in (probabilities.amin, probabilities.amax))
        foreground = self.indices(self.vocabulary.foreground)
        stretched = ((probabilities - low) / (high - low).clamp(min=torch.finfo(low.dtype).tiny))[:, foreground]
        masks = self.tensor(in_boxes(stretched.numpy(force=True), self.box_threshold))
        maps = ((stretched * masks).flatten(2) @ self.affinity(trunk).transpose(1, 2)).view_as(stretched)
        low, high = (extreme((2, 3), keepdim=True) for extreme in (maps.amin, maps.amax))
        return probabilities[:, foreground], (maps - low) / (high - low + EPSILON)

    # Sections 3.3 and 3.4: redundancy and ambiguity purification

    def agreement(self, probabilities: Tensor, refined: Tensor) -> Tensor:
        """(B, K): how well each map agrees with its refined map."""
        both = (probabilities * refined).sum((2, 3))
        return both / (probabilities.sum((2, 3)) + refined.sum((2, 3)) + EPSILON)

    def overlaps(self, refined: Tensor) -> Tensor:
        """(B, K, K): the sum of the minima of two maps over that of their maxima."""
        flat = refined.flatten(2)
        sums, distance = flat.sum(2), torch.cdist(flat, flat, p=1)
        both = sums[:, :, None] + sums[:, None]
        return (both - distance) / (both + distance).clamp(min=EPSILON)

    def unambiguous(self, refined: Tensor, kept: Tensor, batch: WindowBatch) -> Tensor:
        """The `kept` classes (B, K) that win a crop or overlap with no other."""
        linked = (self.overlaps(refined) >= self.ap_thres) & kept[:, :, None] & kept[:, None]
        both = torch.cat([linked, kept[:, None]], 1).numpy(force=True)  # a GPU synchronises once
        links, stay = both[:, :-1], both[:, -1].copy()
        crops, groups = [], []
        for b in range(len(refined) - batch.padding):
            count, label = connected_components(links[b], directed=False)
            for group in ((label == number).nonzero()[0] for number in range(count)):
                if len(group) == 1:
                    continue
                boxes = outline_boxes(refined[b, group.tolist()].mean(0).numpy(force=True), self.box_threshold)
                areas = [box for box in boxes if box[0] < box[2] and box[1] < box[3]]
                stay[b, group] = len(areas) < len(boxes)  # a box without area keeps all
                crops += [self.crop(batch.pixels[b], box) for box in areas]
                groups += [(b, group)] * len(areas)
        if crops:
            similarity = (self.embed_crops(crops) @ self.described.T).numpy(force=True)
            for (b, group), row in zip(groups, similarity, strict=True):
                stay[b, group[row[group].argmax()]] = True
        return self.tensor(stay)

    def crop(self, pixels: Tensor, box: Sequence[int]) -> Tensor:
        """The pixels of a box in patches, resized to a square."""
        x0, y0, x1, y1 = (self.clip.patch_size * side for side in box)
        return F.interpolate(pixels[None, :, y0:y1, x0:x1], (self.crop_side, self.crop_side), mode="bilinear")[0]

    def embed_crops(self, crops: Sequence[Tensor]) -> Tensor:
        """Unmodified CLIP's embeddings, unit rows."""
        parts = torch.stack(list(crops)).split(IMAGES_PER_PASS)
        return torch.cat([self.clip.embeddings(self.clip.trunk(part, position=self.recipe.position)) for part in parts])

    def scores(self, cosines: Tensor, context: ImageContext) -> Tensor:
        """Maps (Q, ...) -> a plane for each class, the highest of its queries; of the background 1 - the highest of all."""
        planes, background = best_of_classes(cosines, self.vocabulary), self.vocabulary.background
        if background is not None:
            planes[background] = 0
            planes[background] = 1 - planes.amax(0)
        return planes

    def decide(self, scores: Tensor, context: ImageContext) -> Tensor:
        return scores.max(0).indices
