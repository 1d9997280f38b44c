"""The network of TagCLIP (arXiv 2304.07547) and ZegCLIP (Zhou et al., CVPR 2023, arXiv 2212.03588): CLIP's image tower with
deep visual prompts, and a decoder whose attention maps are the masks of the classes. Parts are named as in the checkpoints.

Shapes: B windows, T prompt tokens, N = h*w patches, D width, E joint width, Q queries.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from ..ops.position import resample_position
from .checkpoints import shared, weight_errors
from .clip import BlockView
from .trained import Shape, read_trained

DECODER_HEADS = 8  # in all released configurations; no tensor's shape reveals it
HEAD_WIDTH = 64  # in CLIP's image towers


class PromptedViT(nn.Module):
    """CLIP's image tower with T prompt tokens after the class token, replaced before every block (TagCLIP, section III-B; the
    deep variant of visual prompt tuning)."""

    def __init__(self, width: int, depth: int, patch: int, positions: int, joint: int, prompts: int) -> None:
        super().__init__()
        self.patch, self.stored = patch, (math.isqrt(positions - 1),) * 2
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(positions, width))
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(
            ResidualAttentionBlock(width, width // HEAD_WIDTH, act_layer=QuickGELU) for _ in range(depth)
        )
        self.proj = nn.Parameter(torch.empty(width, joint))
        self.prompt_embeddings = nn.Parameter(torch.empty(1, prompts, width))
        self.deep_prompt_embeddings = nn.Parameter(torch.empty(depth - 1, prompts, width))
        self.prompt_proj, self.prompt_norm = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W), cropped to whole patches, or padded to a single one -> unit features of the image (B, E) and of
        the patches (B, E, h, w)."""
        missing = (max(self.patch - side, 0) for side in pixels.shape[:1:-1])  # padding of the width first
        x = self.conv1(F.pad(pixels, [part for side in missing for part in (0, side)]))
        grid, count = (x.shape[2], x.shape[3]), self.prompt_embeddings.shape[1]
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x.flatten(2).transpose(1, 2)], 1)
        position = resample_position(self.positional_embedding, grid, self.stored, "bilinear")
        # The official code also adds the class embedding to its position, so it counts twice.
        x = self.ln_pre(x + torch.cat([position[:1] + self.class_embedding, position[1:]]))
        classes, patches = x[:, :1], x[:, 1:]
        for prompt, block in zip(
            [*self.prompt_embeddings, *self.deep_prompt_embeddings], self.transformer.resblocks, strict=True
        ):
            x = torch.cat([classes, self.prompt_proj(prompt).expand(len(x), -1, -1), patches], 1)
            x = BlockView(block, "quick_gelu", block.ln_1.eps, grid)(x)
            classes, patches = x[:, :1], x[:, 1 + count :]
        x = F.normalize(self.ln_post(self.prompt_norm(torch.cat([classes, patches], 1))) @ self.proj, dim=-1)
        return x[:, 0], x[:, 1:].transpose(1, 2).unflatten(2, grid)


class CrossAttention(nn.Module):
    """Attention of queries (B, Q, E) over a memory (B, N, E)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def scores(self, queries: Tensor, memory: Tensor) -> Tensor:
        """The scaled products of all heads (B, heads, Q, N), before the softmax."""
        q, k = (self.heads(part(x)) for part, x in ((self.q, queries), (self.k, memory)))
        return q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (DECODER_HEADS, -1)).transpose(1, 2)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        mixed = self.scores(queries, memory).softmax(-1) @ self.heads(self.v(memory))
        return self.proj(mixed.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """A transformer decoder layer with post-norm. Without self-attention, it has no first norm."""

    def __init__(self, width: int, inner: int, self_attention: bool) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, DECODER_HEADS, batch_first=True) if self_attention else None
        self.norm1 = nn.LayerNorm(width) if self_attention else None
        self.multihead_attn = CrossAttention(width)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)

    def mixed(self, queries: Tensor) -> Tensor:
        """The queries after the self-attention, in which classes see each other."""
        if self.self_attn is None:
            return queries
        return self.norm1(queries + self.self_attn(queries, queries, queries, need_weights=False)[0])

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        queries = self.mixed(queries)
        queries = self.norm2(queries + self.multihead_attn(queries, memory))
        return self.norm3(queries + self.linear2(F.relu(self.linear1(queries))))

    def masks(self, queries: Tensor, memory: Tensor) -> Tensor:
        """The attention scores before the softmax, averaged over the heads: (B, Q, N)."""
        return self.multihead_attn.scores(self.mixed(queries), memory).mean(1)


class MaskHead(nn.Module):
    """The relationship descriptor of ZegCLIP (section 3.3) and the decoder. `trusty`: TagCLIP's layout, with a learned query
    for the pixels of unseen classes (the trusty token) and a first layer in which the queries attend to each other."""

    def __init__(self, joint: int, inner: int, layers: int, trusty: bool) -> None:
        super().__init__()
        project = nn.Linear(2 * joint, joint)
        if trusty:
            self.relationship_discriptor = nn.Module()  # spelt as in the checkpoints
            self.relationship_discriptor.q_proj = project
            self.disc_token = nn.Parameter(torch.empty(1, joint))
        else:
            self.q_proj = project
        self.trusty = trusty
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(DecoderLayer(joint, inner, trusty and i == 0) for i in range(layers))

    def forward(self, image: Tensor, patches: Tensor, texts: Tensor, with_trusty: bool) -> Tensor:
        """Image (B, E), patches (B, E, h, w), texts (Q, E) -> mask logits (B, Q, h, w), or (B, Q+1, h, w) with those of the
        trusty token last."""
        texts = torch.cat([texts, self.disc_token]) if with_trusty else texts
        related = torch.cat([image[:, None] * texts, texts.expand(len(image), -1, -1)], -1)
        queries = (self.relationship_discriptor.q_proj if self.trusty else self.q_proj)(related)
        memory = patches.flatten(2).transpose(1, 2)
        for layer in self.decoder.layers[:-1]:
            queries = layer(queries, memory)
        return self.decoder.layers[-1].masks(queries, memory).unflatten(2, patches.shape[2:])


class PromptedSegmenter(nn.Module):
    """Tower and head, under the names of the checkpoints."""

    def __init__(self, backbone: PromptedViT, decode_head: MaskHead) -> None:
        super().__init__()
        self.backbone, self.decode_head = backbone, decode_head

    @property
    def side(self) -> int:
        """Side in pixels of the windows that the network was trained on."""
        return self.backbone.stored[0] * self.backbone.patch

    def forward(
        self, pixels: Tensor, texts: Tensor, with_trusty: bool, encode: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    ) -> Tensor:
        """Pixels (B, 3, H, W) and unit text features (Q, E) -> mask logits, see `MaskHead`. `encode` replaces the tower, for
        example to reuse its output."""
        return self.decode_head(*(encode or self.backbone)(pixels), texts, with_trusty)


def _linear(name: str, inner: str, outer: str) -> dict[str, Shape]:
    return {f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)}


def _norm(name: str, width: str) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _attention(name: str, width: str) -> dict[str, Shape]:
    joint: dict[str, Shape] = {f"{name}.in_proj_weight": (f"3{width}", width), f"{name}.in_proj_bias": (f"3{width}",)}
    return joint | _linear(f"{name}.out_proj", width, width)


def _tower() -> dict[str, Shape]:
    """Shapes with the width D, L positions, patches of P pixels, T prompts in M further blocks, and the joint width E."""
    block = "transformer.resblocks.*"
    shapes: dict[str, Shape] = {
        "class_embedding": ("D",),
        "positional_embedding": ("L", "D"),
        "conv1.weight": ("D", 3, "P", "P"),
        "proj": ("D", "E"),
        "prompt_embeddings": (1, "T", "D"),
        "deep_prompt_embeddings": ("M", "T", "D"),
        **_linear("prompt_proj", "D", "D"),
        **_attention(f"{block}.attn", "D"),
        **_linear(f"{block}.mlp.c_fc", "D", "4D"),
        **_linear(f"{block}.mlp.c_proj", "4D", "D"),
    }
    norms = ("ln_pre", "ln_post", "prompt_norm", f"{block}.ln_1", f"{block}.ln_2")
    for name in norms:
        shapes |= _norm(name, "D")
    return {f"backbone.{name}": shape for name, shape in shapes.items()}


def _head(trusty: bool) -> dict[str, Shape]:
    """Shapes with the inner width F of the feed-forward networks."""
    layer, first = "decoder.layers.*", "decoder.layers.0"
    shapes = _linear("relationship_discriptor.q_proj" if trusty else "q_proj", "2E", "E")
    for part in "q", "k", "v", "proj":
        shapes |= _linear(f"{layer}.multihead_attn.{part}", "E", "E")
    shapes |= _linear(f"{layer}.linear1", "E", "F") | _linear(f"{layer}.linear2", "F", "E")
    shapes |= _norm(f"{layer}.norm2", "E") | _norm(f"{layer}.norm3", "E")
    if trusty:
        shapes |= {"disc_token": (1, "E")} | _attention(f"{first}.self_attn", "E") | _norm(f"{first}.norm1", "E")
    return {f"decode_head.{name}": shape for name, shape in shapes.items()}


UNUSED = ("text_encoder.*", "decode_head.decoder.layers.*.norm1.*")  # the user's CLIP encodes the texts


@shared
def load_prompted(path: str, layout: str, device: str = "cpu") -> PromptedSegmenter:
    """The network of a checkpoint in the `layout` "tagclip" or "zegclip". Raises OvssError for any other tensors."""
    trusty = layout == "tagclip"
    state, sizes = read_trained(path, _tower() | _head(trusty), ignorable=UNUSED)
    depth, layers = sizes["backbone.transformer.resblocks.*"], sizes["decode_head.decoder.layers.*"]
    with weight_errors(f"checkpoint {path}"):
        with torch.device("meta"):
            tower = PromptedViT(sizes["D"], depth, sizes["P"], sizes["L"], sizes["E"], sizes["T"])
            network = PromptedSegmenter(tower, MaskHead(sizes["E"], sizes["F"], layers, trusty))
        network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False).to(device)
