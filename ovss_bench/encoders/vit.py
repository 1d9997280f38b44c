"""PlainViT: the vision transformer of DINO, DINOv2, DINOv3 and MAE, from tensors as named by the authors, timm or transformers.

Shapes: B images, T tokens (class token, R registers, then N = h*w patches), D width, d = D/heads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OvssError
from ..ops.device import kept
from ..ops.position import resample_position
from .checkpoints import as_float32, renamed

# Rules that rename tensors, applied in order; the comments say where the names come from.
RENAMED = [
    (r"^embeddings\.", ""),  # transformers
    (r"^(patch_embed\.proj|patch_embeddings\.projection|patch_embeddings)\.", "patch_embed."),
    (r"^position_embeddings$", "pos_embed"),
    (r"^(register_tokens|storage_tokens|reg_token)$", "registers"),  # DINOv2, DINOv3, timm
    (r"^rope_embed\.periods$", "periods"),  # DINOv3
    (r"^(model\.)?(encoder\.)?layers?\.(\d+)\.", r"blocks.\3."),  # transformers, as the following rules down to `fc2`
    (r"\.attention\.(attention\.)?(query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.)?(key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.)?(value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.(intermediate\.dense|mlp\.w12|mlp\.weights_in)\.", ".mlp.fc1."),  # w12, w3: DINOv2's gated networks
    (r"\.(output\.dense|mlp\.w3|mlp\.weights_out|mlp\.down_proj)\.", ".mlp.fc2."),
    (r"\.mlp\.(w1|gate_proj|fc1_g)\.", ".mlp.gate."),  # DINOv3, transformers, timm
    (r"\.mlp\.(w2|up_proj|fc1_x)\.", ".mlp.up."),
    (r"\.attn\.([qv])_bias$", r".attn.\1.bias"),  # timm's DINOv3: keys have none
    (r"\.(ls|layer_scale)([12])\.(gamma|lambda1)$", r".gamma_\2"),
    (r"^layernorm\.", "norm."),
]
STEM = re.compile(r"(|.*\.)(patch_embed\.proj|embeddings\.patch_embeddings(\.projection)?)\.weight")
UNUSED = re.compile(r"(mask_token|head|pooler|decoder|local_cls_norm)\b.*|decoder_.*|rope.*")
# At these widths, every published model has heads of 64 channels; at others, the number of heads must be given.
KNOWN_WIDTHS = (384, 768, 1024, 1536)


def plain_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors in float32 under the names of `PlainViT`: with a joint projection for queries, keys and values, a
    bias of 0 where the file has none, and the position of the class token added to it."""
    stems = [match[1] for match in map(STEM.fullmatch, state_dict) if match]
    if not stems:
        raise OvssError("no patch embedding in the naming of DINO, MAE, SAM, timm or transformers.")
    pairs = renamed(state_dict, stems[0], RENAMED)
    state = {name: as_float32(name, tensor) for name, tensor in pairs if not UNUSED.fullmatch(name)}
    for i in range(_depth(state)):
        _join(state, f"blocks.{i}.")
    position = state.get("pos_embed")
    if position is not None and "cls_token" in state:
        position = position.flatten(0, -2)
        if not _is_square(len(position)):
            state["cls_token"] = state["cls_token"] + position[0]
            position = position[1:]
        if not _is_square(len(position)):
            raise OvssError(f"the position embedding has {len(position)} patches, which is not a square grid.")
        state["pos_embed"] = position
    return state


def _is_square(count: int) -> bool:
    return math.isqrt(count) ** 2 == count


def _depth(state: dict[str, Tensor]) -> int:
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    if blocks != set(range(len(blocks))):
        raise OvssError(f"there are {len(blocks)} blocks, but they are not numbered from 0 to {len(blocks) - 1}.")
    return len(blocks)


def _join(state: dict[str, Tensor], block: str) -> None:
    """Joins the weights and biases of q, k and v, and those of both halves of a gated network."""
    parts = [state.pop(f"{block}attn.{part}.weight", None) for part in "qkv"]
    if parts[0] is not None:
        state[f"{block}attn.qkv.weight"] = torch.cat(parts)
    biases = [state.pop(f"{block}attn.{part}.bias", None) for part in "qkv"]
    weight, bias = state.get(f"{block}attn.qkv.weight"), state.get(f"{block}attn.qkv.bias")
    mask = state.pop(f"{block}attn.qkv.bias_mask", None)
    if weight is not None and bias is None:
        zero = weight.new_zeros(len(weight) // 3)
        state[f"{block}attn.qkv.bias"] = torch.cat([zero if part is None else part for part in biases])
    elif mask is not None:  # DINOv3 masks the keys' bias; its stored values are arbitrary
        state[f"{block}attn.qkv.bias"] = bias.where(mask == 1, 0)
    for kind in ("weight", "bias"):
        halves = [state.pop(f"{block}mlp.{half}.{kind}", None) for half in ("gate", "up")]
        if halves[1] is not None:
            state[f"{block}mlp.fc1.{kind}"] = torch.cat([half for half in halves if half is not None])


class PlainViT(nn.Module):
    """timm's blocks after a stem that is written here, since timm resamples positions by another rule.

    `position` is a rule of ops/position.py; models without a position embedding have rotary positions (DINOv3). `square` first
    resizes the input to a square, as for MAE.
    """

    architecture = "vit"

    def __init__(self, state: dict[str, Tensor], heads: int | None, eps: float | None, position: str, square: bool) -> None:
        super().__init__()
        from timm.models.eva import EvaBlock

        self.width, _, self.patch_size, _ = state["patch_embed.weight"].shape
        self.rotary = "pos_embed" not in state
        self.depth, self.position, self.square = _depth(state), None if self.rotary else position, square
        self.heads = heads or (self.width // 64 if self.width in KNOWN_WIDTHS else None)
        if not self.heads or self.width % self.heads:
            wrong = f"{self.heads} do not divide it" if self.heads else "the weights do not determine it"
            raise OvssError(f"the number of heads for a width of {self.width}: {wrong}. Give heads=NUMBER.")
        self.prefix = 1 + (state["registers"].shape[1] if "registers" in state else 0)
        outer, inner = state["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.fc2.weight"]
        eps = eps or (1e-5 if self.rotary else 1e-6)  # DINOv3; DINO, DINOv2 and MAE
        with torch.device("meta"):  # replaced by the tensors of `state`, without initialisation
            self.patch_embed = nn.Conv2d(3, self.width, self.patch_size, self.patch_size)
            self.cls_token = nn.Parameter(torch.empty(state["cls_token"].shape))
            for name in ("registers", "pos_embed"):
                self.register_parameter(name, nn.Parameter(torch.empty(state[name].shape)) if name in state else None)
            self.blocks = nn.ModuleList(
                EvaBlock(
                    self.width,
                    self.heads,
                    attn_type="rope",
                    rotate_half=True,
                    num_prefix_tokens=self.prefix,
                    mlp_ratio=Fraction(inner.shape[1], self.width),
                    swiglu_mlp=outer.shape[0] == 2 * inner.shape[1],
                    init_values=1.0 if "blocks.0.gamma_1" in state else None,
                    norm_layer=partial(nn.LayerNorm, eps=eps),
                )
                for _ in range(self.depth)
            )
            self.norm = nn.LayerNorm(self.width, eps=eps)
        quarter = self.width // self.heads // 4
        # DINOv3's files hold the periods rounded to bfloat16; for other files they are computed.
        self.periods = state.get("periods", 100 ** (torch.arange(quarter) / quarter))
        for name, shape in {"cls_token": (1, 1, self.width), "periods": (quarter,)}.items():
            if name in state and state[name].shape != shape:
                raise OvssError(f"{name} has the shape {tuple(state[name].shape)} instead of {shape}.")
        self.load_state_dict({name: t for name, t in state.items() if name != "periods"}, strict=True, assign=True)
        self.settings = {"heads": self.heads, "layer_norm_eps": eps, "position": self.position, "square": square}

    def tokens(self, height: int, width: int) -> int:
        height, width = self._size(height, width)
        return self.prefix + (height // self.patch_size) * (width // self.patch_size)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        return (max(height, width),) * 2 if self.square else (height, width)

    def forward(self, pixels: Tensor, feature: str) -> Tensor:
        """(B, 3, H, W) normalised pixels -> (B, D, h, w), cropped to whole patches."""
        return self.last(*self.before_last(pixels), feature)

    def before_last(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The tokens (B, T, D) that enter the last block, and the patch grid (h, w)."""
        size = self._size(*pixels.shape[2:])
        if size != pixels.shape[2:]:
            pixels = F.interpolate(pixels, size, mode="bilinear")
        x = self.patch_embed(pixels.to(self.patch_embed.weight.dtype))
        grid = (x.shape[2], x.shape[3])
        x, rope = x.flatten(2).transpose(1, 2), self.rope(grid)
        if rope is None:
            stored = (math.isqrt(len(self.pos_embed)),) * 2
            same = x.shape[1] == len(self.pos_embed) and size[0] == size[1]  # DINO's condition
            table = torch.cat([self.cls_token[0], self.pos_embed])
            x = x + resample_position(table, grid, stored, self.position, same)[1:]
        first = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.registers) if token is not None]
        x = torch.cat([*first, x], 1)
        for block in self.blocks[:-1]:
            x = block(x, rope=rope)
        return x, grid

    def rope(self, grid: tuple[int, int]) -> Tensor | None:
        """The rotations of the patches, for models with rotary positions."""
        return rotary(grid, tuple(self.periods.tolist()), like=self.cls_token) if self.rotary else None

    def last(self, x: Tensor, grid: tuple[int, int], feature: str) -> Tensor:
        """A feature (B, D, h, w) from what `before_last` returns."""
        last = self.blocks[-1]
        if feature == "tokens":
            x = self.norm(last(x, rope=self.rope(grid)))
        else:
            parts = dict(zip("qkv", last.attn.qkv(last.norm1(x)).chunk(3, -1), strict=True))
            x = sum(parts[part] for part in feature.split("+"))
        return x[:, self.prefix :].transpose(1, 2).unflatten(2, grid)

    def last_joined(self, x: Tensor, grid: tuple[int, int], join: Callable[[Tensor], Tensor]) -> Tensor:
        """The last block over the patches of all windows, from the output of `before_last`. `join` makes one map (D, H, W) of
        the windows' maps (B, D, h, w). The result is not normalised.

        As in OV-Stitcher's code, the residual first passes the final norm, `join` takes queries, keys and values instead of
        tokens, and only patches take part.
        """
        last: Any = self.blocks[-1]
        maps = [
            join(part[:, self.prefix :].transpose(1, 2).unflatten(2, grid))
            for part in (self.norm(x), *last.attn.qkv(last.norm1(x)).chunk(3, -1))
        ]
        z, *qkv = (part.flatten(1).T for part in maps)
        q, k, v = (part.unflatten(1, (self.heads, -1)).transpose(0, 1)[None] for part in qkv)
        mixed = last.attn.proj(F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1))
        z = z + (mixed if last.gamma_1 is None else last.gamma_1 * mixed)
        refined = last.mlp(last.norm2(z))
        z = z + (refined if last.gamma_2 is None else last.gamma_2 * refined)
        return z.T.unflatten(1, maps[0].shape[1:])


@kept(64)
def rotary(grid: tuple[int, int], periods: tuple[float, ...]) -> Tensor:
    """DINOv3's rotations (h*w, 2d), sines then cosines, by the angles 2 pi x / period for patch centres x in -1..1."""
    lines = [(torch.arange(count) + 0.5) / count * 2 - 1 for count in grid]
    centres = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).view(-1, 2, 1)
    angles = (2 * math.pi * centres / torch.tensor(periods)).flatten(1).tile(2)
    return torch.cat([angles.sin(), angles.cos()], 1)
