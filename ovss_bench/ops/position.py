"""How the position embedding of a ViT is resampled to another grid: the rules of the official codes, by name.

They differ by up to 0.03 in the final cosine, so a recipe names the one that its method used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def resample_position(
    embedding: Tensor, grid: tuple[int, int], stored: tuple[int, int], rule: str, same: bool | None = None
) -> Tensor:
    """(1+N0, D) for the stored grid -> (1+h*w, D) for `grid`, align_corners=False, bicubic but for
    `bilinear`; the class position is unchanged.

    `offset` (SCLIP, ClearCLIP, NACLIP: DINO's code): by scale factors ((h+0.1)/g), so the sampling step is g/(h+0.1).
    `size` (MaskCLIP): to the size. `antialias` (GEM): to the size, antialiased. `bilinear` (CLIPer): to the size.
    `offset` and `size` leave the embedding unchanged if the number of tokens is the same, the others if the grid is; `same`
    overrides this for codes with another condition (DINO: the same number and a square input).
    """
    if same is None:
        same = grid == stored if rule in ("antialias", "bilinear") else grid[0] * grid[1] == stored[0] * stored[1]
    if same:
        return embedding
    patches = embedding[1:].float().reshape(1, *stored, -1).permute(0, 3, 1, 2)
    if rule == "offset":
        factors = [(new + 0.1) / old for new, old in zip(grid, stored, strict=True)]
        patches = F.interpolate(patches, scale_factor=factors, mode="bicubic")
    else:
        mode = "bilinear" if rule == "bilinear" else "bicubic"
        patches = F.interpolate(patches, size=grid, mode=mode, antialias=rule == "antialias")
    return torch.cat([embedding[:1], patches.flatten(2)[0].T.to(embedding.dtype)])
