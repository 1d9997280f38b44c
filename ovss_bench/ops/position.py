"""Resampling of a ViT's position embedding to another grid, by the rules of the official code.

The rules differ by up to 0.03 in the final cosine, so a recipe names the rule of its method.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def resample_position(
    embedding: Tensor, grid: tuple[int, int], stored: tuple[int, int], rule: str, same: bool | None = None
) -> Tensor:
    """(1+N0, D) for the stored grid -> (1+h*w, D) for `grid`, with align_corners=False; the class position is unchanged.

    `offset` (SCLIP, ClearCLIP, NACLIP; from DINO): bicubic by scale factors (h+0.1)/g, so the sampling step is g/(h+0.1).
    `size` (MaskCLIP) and `grid` (CLIP-DINOiser): bicubic to the size; `antialias` (GEM): also antialiased; `bilinear` (CLIPer);
    `bilinear_fp16` (training-free TagCLIP): bilinear, then rounded to fp16.
    `offset` and `size` leave the embedding unchanged for an equal number of tokens, the others for an equal grid; `same`
    overrides this for networks with another condition (DINO: an equal number and a square input).
    """
    if same is None:
        same = grid[0] * grid[1] == stored[0] * stored[1] if rule in ("offset", "size") else grid == stored
    if same:
        return embedding
    patches = embedding[1:].float().reshape(1, *stored, -1).permute(0, 3, 1, 2)
    if rule == "offset":
        factors = [(new + 0.1) / old for new, old in zip(grid, stored, strict=True)]
        patches = F.interpolate(patches, scale_factor=factors, mode="bicubic")
    else:
        mode = "bilinear" if rule.startswith("bilinear") else "bicubic"
        patches = F.interpolate(patches, size=grid, mode=mode, antialias=rule == "antialias")
    resampled = torch.cat([embedding[:1], patches.flatten(2)[0].T.to(embedding.dtype)])
    return resampled.half().to(embedding.dtype) if rule == "bilinear_fp16" else resampled
