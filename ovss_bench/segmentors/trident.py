"""Trident (Shi et al., ICCV 2025, arXiv 2411.09219): features of windows are spliced into one map, which SAM's attention
aggregates over the whole image; SAM's decoder refines the result."""

from itertools import product
from math import ceil
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..ops.across_windows import stitch
from ..ops.attention import cosine_matrix, proxy_attention
from ..ops.enlarge import resized_maps
from ..ops.nearest import torch_nearest
from ..ops.pictures import in_frame, stretch
from ..ops.sam_prompts import class_prompts
from ..ops.windows import SlidingWindow
from ..stages import of_source
from ..types import ImageContext, WindowBatch
from .base import Segmentor

WINDOWS_PER_PASS = 8  # bounds the memory of CLIP
FRAME, PROMPT_SIDE = 1024, 256  # SAM's input and its mask prompts


@SEGMENTORS.register_module(name="trident")
class Trident(Segmentor):
    """CLIP's last block attends by the cosines of a vision encoder, as in ProxyCLIP, but centred by the mean over all windows
    (`beta`, `gamma`). The features of overlapping windows are averaged. Every cell of SAM's grid then takes a mean of all
    cells, weighted by the attention of SAM's last block where the cosine of their values exceeds a threshold: `cos_fac` times
    the mean cosine, at most 0.9. With `refine_neg_cos=False` thresholds below 0 become 0.6.

    `sam_refine`: components of at least `minimal_area` pixels at half size become prompts for SAM's decoder, with the class
    scores above `coarse_thresh`, times `sam_mask_coff`, as mask; masks with a predicted IoU above `sam_iou_thresh` replace the
    labels. `halves`: for the aggregation, SAM encodes each half of the image separately (Cityscapes).

    `vfm`: by name, or any callable WindowBatch -> (B, C, H, W). `sam`: by name, or any callable image -> object with `values`
    (K, d, h, w) and `attention` of its last block, where `attention[k]` is (h*w, h*w), and a method `decode`, see
    auxiliary/sam.py. Without `sam` there is neither aggregation nor refinement.

    Where the official softmax of a row is empty, patches attend to themselves. An image smaller than a window is always
    enlarged; the official code fails on it if its sides are multiples of the patch.
    """

    requires = ("vfm",)
    positive = ("minimal_area",)
    uses = ("window", "stride", "position", "logit_scale")
    attention_maps = 1
    joins_patches = True

    vfm: str | None = None
    feature: Literal["tokens", "q", "k", "v", "q+k"] = "tokens"
    sam: str | None = None
    beta: float = 1.2
    gamma: float = 3.0
    cos_fac: float = 1.2
    refine_neg_cos: bool = True
    halves: bool = False
    sam_refine: bool = True
    coarse_thresh: float = 0.2
    minimal_area: int = 225
    sam_mask_coff: float = 0.005
    sam_iou_thresh: float = 0.8

    @torch.inference_mode()
    def image_scores(self, context: ImageContext) -> Tensor:
        """Class probabilities (C, H, W) at the size of the result."""
        cosines = F.interpolate(self.image_cosines(context), context.size, mode="bilinear")[0]
        scores = self.decision.class_scores(cosines)
        context.by_products["scores"] = scores
        return scores

    def image_cosines(self, context: ImageContext) -> Tensor:
        return self.cosines_of(self.tensor(context.pixels), context)

    def cosines_of(self, pixels: Tensor, context: ImageContext) -> Tensor:
        """Pixels (3, H, W) of an image -> cosines (1, Q, h, w) on SAM's grid."""
        features = self.aggregated(self.spliced(self.enlarged(pixels)), context)
        embeddings = self.clip.project(features.flatten(1).T[None].to(self.clip.dtype))
        return self.compare(embeddings, features.shape[1:])

    # Section 3.2: splice

    def enlarged(self, pixels: Tensor) -> Tensor:
        """Pixels (3, H, W) resized to whole patches and at least a window, as in `preprocess_image` of the official code."""
        patch, size = self.clip.patch_size, pixels.shape[1:]
        least = patch if self.recipe.window == "whole" else self.recipe.window
        if any(side % patch for side in size):
            factor = ceil(max(size) / patch) * patch / max(size)
            size = [ceil(int(side * factor) / patch) * patch for side in size]
        size = [max(side, least) for side in size]
        return resized_maps(pixels, size)

    def spliced(self, pixels: Tensor) -> Tensor:
        """Pixels (3, H, W) -> features (D, H/patch * ratio, W/patch * ratio), averaged over the windows. `ratio`: the vision
        encoder's cells per patch of CLIP, in one direction."""
        patch, recipe = self.clip.patch_size, self.recipe
        windows = SlidingWindow.of(*pixels.shape[1:], recipe.window, recipe.stride, patch, "none")
        maps = self.window_features(torch.stack(windows.cut(pixels)))
        cells = windows.rows.cells, windows.columns.cells
        ratio = max(maps.shape[3] // cells[1] if maps.shape[3] % cells[1] == 0 else round(maps.shape[2] / cells[0]), 1)
        maps = F.interpolate(maps, [side * ratio for side in cells], mode="bilinear")
        starts = product(windows.rows.starts, windows.columns.starts)
        return stitch(maps, [(y // patch * ratio, x // patch * ratio) for y, x in starts])

    def window_features(self, pixels: Tensor) -> Tensor:
        """Windows (n, 3, H, W) of one image -> their features (n, D, h, w) float32 on the grid of the vision encoder."""
        features, parts = WindowBatch(pixels).once(self.vfm), pixels.split(WINDOWS_PER_PASS)
        trunks = [self.trunk(WindowBatch(part)) for part in parts]
        block, grid = self.clip.block(-1, trunks[0].grid), features.shape[2:]
        values = block.value_map(torch.cat([trunk.tokens for trunk in trunks]), grid)
        similarity = cosine_matrix(features.flatten(2).transpose(1, 2))
        attention = proxy_attention(similarity, self.beta, self.gamma, mean=similarity.mean())
        mixed = block.project((attention.to(values.dtype) @ values)[:, None])
        return mixed.float().transpose(1, 2).unflatten(2, grid)

    # Section 3.3: aggregation by SAM's correlation

    def aggregated(self, canvas: Tensor, context: ImageContext) -> Tensor:
        """Features (D, h, w) -> (D, H, W) on SAM's grid."""
        if self.sam is None:
            return canvas
        image, middle = self.sam_image(context), canvas.shape[2] // 2
        if not self.halves:
            return self.correlated(canvas, self.encoded(image, context))
        cut = image.shape[1] // 2
        pairs = ((canvas[..., :middle], image[:, :cut]), (canvas[..., middle:], image[:, cut:]))
        return torch.cat([self.correlated(part, self.encoded(half)) for part, half in pairs], -1)

    def sam_image(self, context: ImageContext) -> np.ndarray:
        """SAM's input: the original image, resized to whole patches of CLIP."""
        patch = self.clip.patch_size
        height, width = (ceil(side / patch) * patch for side in context.original.shape[:2])
        return stretch(context.original, (height, width), "bilinear")

    def encoded(self, image: np.ndarray, context: ImageContext | None = None) -> Any:
        """SAM's output for an image; with its context, kept there for the refinement."""
        kept = {} if context is None else context.by_products
        if "sam" not in kept:
            with of_source(self.sam):
                kept["sam"] = self.sam(np.ascontiguousarray(image))
        return kept["sam"]

    def correlated(self, canvas: Tensor, encoded: Any) -> Tensor:
        """Features (D, h, w) of what SAM encoded -> (D, H, W) on SAM's grid, mixed by its attention."""
        values = self.tensor(encoded.values).float()
        grid, unit = values.shape[2:], F.normalize(values.flatten(2).transpose(1, 2), dim=-1)
        cells = resized_maps(canvas, grid).flatten(1).T
        # The mean cosine of a query over heads and keys, without the matrix of cosines.
        threshold = self.cos_fac * (unit @ unit.sum(1)[:, :, None]).mean(0) / unit.shape[1]
        if not self.refine_neg_cos:
            threshold = threshold.masked_fill(threshold < 0, 0.6)
        threshold, total = threshold.clamp(max=0.9), 0
        for head, vectors in enumerate(unit):  # one by one: maps of all heads are large
            total = total + self.tensor(encoded.attention[head]).float() * (vectors @ vectors.T > threshold)
        return (total @ cells / total.sum(1, keepdim=True).clamp(min=1e-30)).T.unflatten(1, grid)

    # Section 3.4: refinement by SAM's decoder

    @torch.inference_mode()
    def correct(self, label_map: Tensor, context: ImageContext) -> Tensor:
        scores = context.by_products.pop("scores")
        if self.sam is None or not self.sam_refine:
            return label_map
        half = max(label_map.shape[0] // 2, 1), max(label_map.shape[1] // 2, 1)
        small = resized_maps(scores, half)
        labels = torch_nearest(label_map, half).masked_fill(small.amax(0) < self.coarse_thresh, len(scores))
        image, refined = self.sam_image(context), torch.zeros_like(scores)
        inside = in_frame(half, FRAME)
        zoom = torch.tensor([inside[1] / half[1], inside[0] / half[0]])
        prompts = class_prompts(labels.numpy(force=True), small.numpy(force=True), self.coarse_thresh, self.minimal_area)
        for c, boxes, points in prompts:
            boxes, points = torch.from_numpy(boxes) * zoom.repeat(2), torch.from_numpy(points) * zoom
            logits, iou = self.encoded(image, context).decode(boxes, points, self.mask_prompt(small[c]))
            logits, kept = self.tensor(logits).float(), self.tensor(iou) > self.sam_iou_thresh
            if logits.shape[1:] != label_map.shape:
                logits = resized_maps(logits, label_map.shape)
            best = logits.masked_fill(~kept[:, None, None], -torch.inf).amax(0)
            refined[c] = best.sigmoid() * scores[c] * (best > 0)
        context.by_products.pop("sam", None)
        best, labels = refined.max(0)
        return torch.where(best > 0, labels, label_map)

    def mask_prompt(self, scores: Tensor) -> Tensor:
        """Scores (h, w) of a class -> SAM's mask prompt (H, W), whose long side is 256: small values where the class is, else
        0."""
        (prompt,) = resized_maps(scores[None], in_frame((scores.shape[0], scores.shape[1]), PROMPT_SIDE))
        return prompt * self.sam_mask_coff * (prompt > self.coarse_thresh)
