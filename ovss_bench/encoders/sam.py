"""The image encoders of SAM and SAM 2, which give the image embedding, from tensors as named by Meta or transformers.

Both resize the input to the square that they were trained on (bilinear, aspect ratio not kept), as ProxyCLIP does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints import as_float32, renamed

# Rules that rename tensors to timm's names, applied in order.
RENAMED = [
    (r"\bpatch_embed\.projection\.", "patch_embed.proj."),  # transformers, as the next two
    (r"^layers\.(\d+)\.", r"blocks.\1."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.mlp\.(lin1|layers\.0|proj_in)\.", ".mlp.fc1."),  # SAM, SAM 2, transformers' SAM 2
    (r"\.mlp\.(lin2|layers\.1|proj_out)\.", ".mlp.fc2."),
]
NECK = [(r"^neck\.conv1", "neck.0"), (r"^neck\.norm1", "neck.1"), (r"^neck\.conv2", "neck.2"), (r"^neck\.norm2", "neck.3")]
NECK2 = [(r"^backbone\.", "trunk."), (r"^neck\.convs\.([01])\.(conv\.)?", r"convs.\1.")]
# The tensor that identifies each encoder; the group is the prefix of its names.
SAM = re.compile(r"(.*)(?:blocks|layers)\.0\.attn\.rel_pos_h")
SAM2 = re.compile(r"(.*)(?:trunk|backbone)\.pos_embed_window")
EPS = 1e-6  # of every LayerNorm, in both encoders
# Memory per token relative to a plain ViT: attention biases and high-resolution maps are held explicitly.
WEIGHT = 4


def sam_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """SAM's image encoder in float32, in timm's naming."""
    pairs = renamed(state_dict, _stem(state_dict, SAM), [*RENAMED, *NECK])
    return {name: as_float32(name, tensor) for name, tensor in pairs}


def sam2_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """SAM 2's trunk in timm's naming and the two convolutions of the neck that lead to the image embedding, in float32."""
    pairs = renamed(state_dict, _stem(state_dict, SAM2), [*RENAMED, *NECK2])
    return {name: as_float32(name, tensor) for name, tensor in pairs if name.startswith(("trunk.", "convs."))}


def _stem(state_dict: dict[str, Tensor], known_by: re.Pattern) -> str:
    return next(match[1] for match in map(known_by.fullmatch, state_dict) if match)


class _SquareInput(nn.Module):
    """An encoder of images stretched to a square of `side` pixels: (B, 3, H, W) normalised -> (B, 256, 64, 64)."""

    patch_size: int
    side: int

    def tokens(self, height: int, width: int) -> int:
        """The number of tokens of any image, weighted by their memory."""
        return WEIGHT * (self.side // self.patch_size) ** 2

    def stretched(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        return F.interpolate(pixels, (self.side, self.side), mode="bilinear").to(dtype)

    def before_last(self, pixels: Tensor) -> tuple[Tensor]:
        """The image embedding, which is the only feature."""
        return (self(pixels, "tokens"),)

    def last(self, x: Tensor, feature: str) -> Tensor:
        return x


class SAMEncoder(_SquareInput):
    """The ViT of SAM with its neck: 256 channels on a grid of 64x64 for the published sizes."""

    architecture = "sam"

    def __init__(self, state: dict[str, Tensor], eps: float | None) -> None:
        super().__init__()
        from timm.models.vision_transformer_sam import VisionTransformerSAM

        self.width, _, self.patch_size, _ = state["patch_embed.proj.weight"].shape
        grid = state["pos_embed"].shape[1]
        tables = [state[name] for name in sorted(state, key=_block_number) if name.endswith("attn.rel_pos_h")]
        self.depth, self.heads = len(tables), self.width // tables[0].shape[1]
        self.side = grid * self.patch_size
        # Relative positions range from -(n-1) to n-1, where n is the side of the attended area: the whole grid or a window.
        reach = [(len(table) + 1) // 2 for table in tables]
        with torch.device("meta"):
            self.encoder = VisionTransformerSAM(
                img_size=self.side,
                patch_size=self.patch_size,
                embed_dim=self.width,
                depth=self.depth,
                num_heads=self.heads,
                mlp_ratio=len(state["blocks.0.mlp.fc1.weight"]) / self.width,
                num_classes=0,
                norm_layer=partial(nn.LayerNorm, eps=eps or EPS),
                use_rel_pos=True,
                window_size=min(reach),
                global_attn_indexes=tuple(i for i, side in enumerate(reach) if side == grid),
                neck_chans=len(state["neck.0.weight"]),
            )
        self.encoder.load_state_dict(state, strict=True, assign=True)
        self.settings = {"layer_norm_eps": eps or EPS}

    def forward(self, pixels: Tensor, feature: str) -> Tensor:
        return self.encoder.forward_features(self.stretched(pixels, self.encoder.pos_embed.dtype))


class SAM2Encoder(_SquareInput):
    """The Hiera of SAM 2 with the part of its feature pyramid that gives the image embedding: 256 channels on a grid of 64x64.

    `settings` hold what does not follow from the tensors: `heads` of the first stage, `windows` per stage, `whole_blocks`
    (those with global attention) and `input`, the side of the square.
    """

    architecture = "sam2"
    patch_size = 16  # pixels of a cell of the embedding: stride 4, pooled twice

    def __init__(self, state: dict[str, Tensor], settings: Mapping[str, Any], eps: float | None) -> None:
        super().__init__()
        from timm.models.hieradet_sam2 import HieraDet

        self.width, self.depth = sam2_size(state)
        self.heads, self.side = settings["heads"], settings["input"]
        starts = [i for i in range(self.depth) if f"trunk.blocks.{i}.proj.weight" in state]  # a stage starts with more channels
        stages = [after - before for before, after in zip([0, *starts], [*starts, self.depth], strict=True)]
        with torch.device("meta"):
            self.trunk = HieraDet(
                embed_dim=self.width,
                num_heads=self.heads,
                num_classes=0,
                stages=tuple(stages),
                global_pos_size=tuple(state["trunk.pos_embed"].shape[2:]),
                window_spec=tuple(settings["windows"]),
                global_att_blocks=tuple(settings["whole_blocks"]),
                norm_layer=partial(nn.LayerNorm, eps=eps or EPS),
            )
            self.trunk.head = nn.Identity()
            shapes = [state[f"convs.{i}.weight"].shape for i in (0, 1)]
            self.convs = nn.ModuleList(nn.Conv2d(shape[1], shape[0], 1) for shape in shapes)
        self.load_state_dict(state, strict=True, assign=True)
        self.settings = {"layer_norm_eps": eps or EPS, **settings}

    def forward(self, pixels: Tensor, feature: str) -> Tensor:
        x = self.stretched(pixels, self.trunk.pos_embed.dtype)
        fine, coarse = self.trunk.forward_intermediates(x, indices=[2, 3], intermediates_only=True)
        return self.convs[1](fine) + F.interpolate(self.convs[0](coarse), scale_factor=2, mode="nearest")


def sam2_size(state: dict[str, Tensor]) -> tuple[int, int]:
    """Width of the first stage, and number of blocks."""
    return len(state["trunk.patch_embed.proj.weight"]), sum(name.endswith(".attn.qkv.weight") for name in state)


def _block_number(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("blocks.") else -1
