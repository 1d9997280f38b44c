"""DenseCLIP: an open_clip ViT split into its blocks (loaded by clip_loading.py). Methods are in segmentors/.

Shapes: B windows, T tokens (class token first), N = h*w patches, D width, K heads, d = D/K, E joint width, Q queries.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from html import escape
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OvssError
from ..ops.position import resample_position
from ..types import QKV, Trunk
from .checkpoints import state_digest
from .text import encode_tokens, text_tower

if TYPE_CHECKING:
    from open_clip.transformer import ResidualAttentionBlock

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LAYER_NORM_EPS = 1e-5  # CLIP was trained with it
REGIONS_PER_PASS = 8  # bounds the memory


def quick_gelu(x: Tensor) -> Tensor:
    gate = (1.702 * x).sigmoid_()
    return gate * x if torch.is_grad_enabled() else gate.mul_(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class BlockView:
    """The parts of one transformer block, for methods to recombine. `grid` is (h, w) of the patches."""

    def __init__(self, block: ResidualAttentionBlock, activation: str, eps: float, grid: tuple[int, int]) -> None:
        self._block: Any = block  # nn.Module declares the types of its parts as unions
        self._activation, self._eps, self.grid = ACTIVATIONS[activation], eps, grid

    def ln_1(self, x: Tensor) -> Tensor:
        return layer_norm(x, self._block.ln_1, self._eps)

    def ln_2(self, x: Tensor) -> Tensor:
        return layer_norm(x, self._block.ln_2, self._eps)

    def qkv(self, y: Tensor) -> QKV:
        """(B, T, D) -> queries, keys and values (B, K, T, d)."""
        attention = self._block.attn
        joint = F.linear(y, attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = joint.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def queries(self, y: Tensor) -> Tensor:
        """(B, T, D) -> the queries (B, K, T, d) alone: a third of the work of `qkv`."""
        return self._part(y, 0)

    def values(self, y: Tensor) -> Tensor:
        """(B, T, D) -> the values (B, K, T, d) alone: a third of the work of `qkv`."""
        return self._part(y, 2)

    def _part(self, y: Tensor, number: int) -> Tensor:
        attention = self._block.attn
        weight, bias = (each.chunk(3)[number] for each in (attention.in_proj_weight, attention.in_proj_bias))
        return F.linear(y, weight, bias).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    def project(self, o: Tensor) -> Tensor:
        """Concatenates the heads (B, K, T, d) and applies the output projection: (B, T, D)."""
        return self._block.attn.out_proj(o.transpose(1, 2).flatten(2))

    def mlp(self, y: Tensor) -> Tensor:
        return self._block.mlp.c_proj(self._activation(self._block.mlp.c_fc(y)))

    def attention(self, x: Tensor) -> Tensor:
        """The block's original attention maps (B, K, T, T) for the tokens (B, T, D) that enter it; rows sum to 1."""
        return attention_maps(*self.qkv(self.ln_1(x))[:2])

    def value_map(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """The block's values (B, H*W, D) for the patches of x (B, 1+h*w, D), bilinearly resized to a grid (H, W)."""
        values = self.values(self.ln_1(x))[:, :, 1:].transpose(1, 2).flatten(2)
        if grid == self.grid:
            return values
        maps = F.interpolate(values.transpose(1, 2).unflatten(2, self.grid), grid, mode="bilinear")
        return maps.flatten(2).transpose(1, 2)

    def __call__(self, x: Tensor) -> Tensor:
        """The block's original forward pass: (B, T, D) -> (B, T, D)."""
        return self.run(x)[0]

    def run(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, QKV]:
        """The block's original forward pass (B, T, D) -> (B, T, D), and its queries, keys and values. With a `mask` (B, 1, T,
        T) bool, a token sees only the tokens that are True in its row."""
        qkv = self.qkv(self.ln_1(x))
        x = x + self.project(F.scaled_dot_product_attention(*qkv, attn_mask=mask))
        return x + self.mlp(self.ln_2(x)), qkv


class DenseCLIP:
    """The image tower of a CLIP ViT in parts, and its text tower. Runs without gradients, in the precision of its weights."""

    def __init__(self, model: nn.Module, tokenizer: Callable, name: str, activation: str, layer_norm_eps: float = 1e-5) -> None:
        from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

        self.model: Any = model.eval().requires_grad_(False)
        visual: Any = self.model.visual
        blocks: Any = getattr(getattr(visual, "transformer", None), "resblocks", [])
        plain = isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type == "tok"
        if not plain or any(type(b) is not ResidualAttentionBlock or not isinstance(b.ls_1, nn.Identity) for b in blocks):
            raise OvssError(f"clip '{name}' is not a plain CLIP ViT with a class token; only these are supported.")
        self.tokenizer, self.name = tokenizer, name
        self.activation = self.text_activation = activation
        self.layer_norm_eps = self._loaded_eps = layer_norm_eps
        self.changed: dict[str, str | float] = {}  # options of `load_clip` that differ from training
        self._run_block: Callable[[BlockView, Tensor], tuple[Tensor, QKV]] = BlockView.run
        self.patch_size: int = self.model.visual.patch_size[0]
        self.stored_grid: tuple[int, int] = (visual.grid_size[0], visual.grid_size[1])
        self.depth, self.width = len(blocks), visual.conv1.out_channels
        self.weights_digest = state_digest(model.state_dict())
        self.weights_known: list[str] = []  # ARCHITECTURE:TAG of the weights file, if its digest is known

    def __repr__(self) -> str:
        grid = f"{self.stored_grid[0]} x {self.stored_grid[1]}"
        kind = f"{self.depth} blocks of width {self.width}, patches of {self.patch_size} pixels ({grid}), {self.activation}"
        return f"DenseCLIP({self.name}: {kind}, {self.precision} on {self.device})"

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"

    def variant(self, activation: str | None = None, layer_norm_eps: float | None = None) -> DenseCLIP:
        """The same weights with another activation or LayerNorm epsilon in the image tower (MaskCLIP); None: as loaded."""
        other = copy.copy(self)
        other.activation = activation or self.text_activation
        other.layer_norm_eps = layer_norm_eps or self._loaded_eps
        return other

    def to(self, device: str | torch.device, precision: str) -> None:
        """Moves the weights, and casts those of linear layers, convolutions and attention, as OpenAI's code does."""
        from open_clip.model import convert_weights_to_lp

        if precision != "fp32":
            convert_weights_to_lp(self.model, PRECISIONS[precision])
        self.model.to(device)

    def compile(self) -> None:
        """Compiles the trunk's blocks with torch.compile, at the first batch of each shape."""
        self._run_block = torch.compile(BlockView.run, dynamic=False)

    @property
    def heads(self) -> int:
        return self.model.visual.transformer.resblocks[0].attn.num_heads

    @property
    def device(self) -> torch.device:
        return self.model.visual.conv1.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.visual.conv1.weight.dtype

    @property
    def precision(self) -> str:
        return next(name for name, value in PRECISIONS.items() if value == self.dtype)

    def block(self, index: int, grid: tuple[int, int]) -> BlockView:
        return BlockView(self.model.visual.transformer.resblocks[index], self.activation, self.layer_norm_eps, grid)

    def embed_patches(self, pixels: Tensor, position: str = "offset") -> tuple[Tensor, tuple[int, int]]:
        """The tokens (B, T, D) that enter the first block, for normalised pixels (B, 3, H, W), and the patch grid."""
        visual = self.model.visual
        x = F.conv2d(pixels.to(visual.conv1.weight.dtype), visual.conv1.weight, visual.conv1.bias, stride=self.patch_size)
        grid = (x.shape[2], x.shape[3])
        x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = x + resample_position(visual.positional_embedding, grid, self.stored_grid, position).to(x.dtype)
        if not isinstance(visual.ln_pre, nn.Identity):
            x = layer_norm(x, visual.ln_pre, self.layer_norm_eps)
        return x, grid

    @torch.inference_mode()
    def trunk(
        self, pixels: Tensor, keep: Collection[int] = (), position: str = "offset", keep_qkv: Collection[int] = ()
    ) -> Trunk:
        """All blocks but the last, for normalised pixels (B, 3, H, W), cropped to whole patches.

        The result holds the inputs of the blocks in `keep`, and inputs, queries, keys and values of those in `keep_qkv`
        (indices 0 to depth-1; see `qkv`). `position` is a rule of ops/position.py.
        """
        x, grid = self.embed_patches(pixels, position)
        states, kept = {}, {}
        for i in range(self.depth):
            if i in keep or i in keep_qkv:
                states[i] = x
            if i < self.depth - 1:
                x, qkv = self._run_block(self.block(i, grid), x)
                if i in keep_qkv:
                    kept[i] = qkv
        return Trunk(x, grid, states, kept)

    def qkv(self, trunk: Trunk, index: int) -> QKV:
        """Queries, keys and values (B, K, T, d) of a block whose input the trunk kept, computed on first use if not kept."""
        if index not in trunk.qkv:
            block = self.block(index, trunk.grid)
            trunk.qkv[index] = block.qkv(block.ln_1(trunk.states[index]))
        return trunk.qkv[index]

    def attention(self, trunk: Trunk, index: int, windows: slice = slice(None)) -> Tensor:
        """The attention maps (B, K, T, T) of such a block; rows sum to 1. As they are large, `windows` may select some."""
        q, k, _ = self.qkv(trunk, index)
        return attention_maps(q[windows], k[windows])

    @torch.inference_mode()
    def embeddings(self, trunk: Trunk) -> Tensor:
        """CLIP's image embeddings of windows, unit rows (B, E) float32: the projected class token of the last block."""
        return self.head(self.block(-1, trunk.grid)(trunk.tokens)[:, :1])[:, 0]

    @torch.inference_mode()
    def region_embeddings(self, pixels: Tensor, inside: Tensor, position: str = "offset") -> Tensor:
        """Embeddings of regions, unit rows (B, E) float32. In every block, the class token sees only itself and the patches
        `inside` (B, h, w) bool; patches see all tokens."""
        embeddings = []
        for some, patches in zip(pixels.split(REGIONS_PER_PASS), inside.split(REGIONS_PER_PASS), strict=True):
            x, grid = self.embed_patches(some, position)
            mask = patches.new_ones(len(x), 1, x.shape[1], x.shape[1])
            mask[:, 0, 0, 1:] = patches.flatten(1)
            for i in range(self.depth):
                x = self.block(i, grid).run(x, mask)[0]
            embeddings.append(self.head(x[:, :1])[:, 0])
        return torch.cat(embeddings)

    def project(self, x: Tensor) -> Tensor:
        """`ln_post` and the projection to the joint space for all tokens: (B, T, D) -> (B, T, E), not normalised."""
        return layer_norm(x, self.model.visual.ln_post, self.layer_norm_eps) @ self.model.visual.proj

    def head(self, x: Tensor) -> Tensor:
        """`project` with unit rows, float32."""
        return F.normalize(self.project(x).float(), dim=-1)

    @torch.inference_mode()
    def encode_text(self, prompts: list[str], advance: Callable[[int], None] = lambda count: None) -> Tensor:
        """Unit text embeddings (len(prompts), E), float32; `advance` is called with the number of new ones."""
        tokens = self.tokenizer(prompts)
        words = getattr(getattr(text_tower(self.model), "token_embedding", None), "num_embeddings", None)
        if words is not None and tokens.max() >= words:
            what = f"clip '{self.name}' embeds {words} tokens, but its tokenizer gives token {int(tokens.max())}"
            raise OvssError(f"{what}. Use weights with a complete text tower, or text features: Vocabulary.from_features.")
        return encode_tokens(self.model, tokens, self.device, advance)


def default_precision(device: str | torch.device) -> str:
    """OpenAI's default: fp32 on CPUs, fp16 on GPUs."""
    return "fp32" if torch.device(device).type == "cpu" else "fp16"


def attention_maps(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) of queries and keys (B, K, T, d): (B, K, T, T)."""
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)


def layer_norm(x: Tensor, norm: nn.LayerNorm, eps: float) -> Tensor:
    """LayerNorm computed in float32 whatever the precision of x, as in the official fp16 code."""
    return F.layer_norm(x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), eps).to(x.dtype)
