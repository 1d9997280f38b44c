"""RF-CLIP (Li et al., AAAI 2026, arXiv 2511.16170), as released: distraction patches are smoothed after every block, and the
last block attends by the keys of all blocks."""

from functools import cached_property
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import SEGMENTORS
from ..encoders.clip import BlockView, attention_maps
from ..ops.attention import cosine_matrix
from ..ops.image_texts import adjusted_texts, query_clusters
from ..types import ImageContext, WindowBatch
from .base import TOWER, Segmentor
from .features import whole_pixels

# The channels that reveal distraction patches, counted from 0, by width: OpenAI's ViT-B/16 and ViT-L/14 (clip/model.py).
CHANNELS = {
    768: (4, 162, 189, 326, 429, 474, 633, 713),
    1024: (250, 261, 437, 650, 720, 779, 936, 1005),
}


class Smoothed(NamedTuple):
    """The smoothed outputs (B, T, D) of the block `before` the last and of the `last` one, and the mean of all blocks, `guide`
    (float32). `by_keys` (B, K, N, N): the key-key attention between patches, summed over all blocks except the last."""

    before: Tensor
    last: Tensor
    guide: Tensor
    by_keys: Tensor
    grid: tuple[int, int]


@SEGMENTORS.register_module(name="rf_clip")
class RFCLIP(Segmentor):
    """After every block, distraction patches are blended (`blend`) with the mean of their 3 x 3 cells: those in which one of
    `channels` exceeds `sigma` times the average of all channels, both measured from the lowest. `channels=None`: the published
    ones for the widths of OpenAI's ViT-B/16 and ViT-L/14; none are known for other widths, and nothing is smoothed.

    The last block attends by the mean key-key attention of all blocks. It runs on the output of the block before and on the
    mean output of all blocks, and the two results are averaged. In both inputs, each patch is the sum of all patches, weighted
    by the cosines of their mean outputs where these are at least `similarity`.

    Texts are adjusted as in CASS: the queries are clustered once (cut at `h_threshold`), the best query of each cluster moves
    towards the window's patches (`mean_vector_weight`), and the cosines of a class token after all smoothed blocks are mixed in
    (`global_semantics_weight`), that of the whole resized image or of the window (`image_level`).

    `strategy=refocus`, off in the release: in all blocks except the last, patches that get more than `refocus_threshold` of the
    others' attention on average keep `refocus_decay` of it; the rest goes to the other patches.
    """

    # Blocks get smoothed inputs, so no trunk is shared with other methods; but the recipe's values for the image tower apply.
    own_network = True
    uses = TOWER
    attention_maps = 3

    channels: tuple[int, ...] | None = None
    sigma: float = 5.0
    blend: float = 0.4
    similarity: float = 0.4
    strategy: Literal["vanilla", "refocus"] = "vanilla"
    refocus_threshold: float = 0.1
    refocus_decay: float = 0.6
    h_threshold: float = 0.1
    mean_vector_weight: float = 0.03
    global_semantics_weight: float = 0.25
    image_level: Literal["image", "window"] = "image"

    @cached_property
    def clusters(self) -> list[int]:
        """The cluster of each query."""
        return query_clusters(self.text, self.h_threshold, "complete")

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        patches, window, grid = self.once(self.embedded, batch.pixels)
        image = self.similarity_to_image(batch, window)
        text = adjusted_texts(self.text, self.indices(self.clusters), patches, image, self.mean_vector_weight)
        share = self.global_semantics_weight
        logits = (1 - share) * text @ patches.transpose(1, 2) + share * image[..., None]
        return logits.unflatten(2, grid)

    def embedded(self, pixels: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Unit embeddings of the patches (B, N, E) and of the class tokens (B, E) of windows, and the patch grid."""
        encoded = self.encode(pixels)
        return self.clip.head(self.last_attention(encoded)), self.clip.head(encoded.last[:, 0]), encoded.grid

    def encode(self, pixels: Tensor, by_keys: bool = True) -> Smoothed:
        """Runs all blocks on windows (B, 3, H, W). `by_keys=False` skips the attention maps, which only patches need."""
        x, grid = self.clip.embed_patches(pixels, self.recipe.position)
        depth, before, total, maps = self.clip.depth, x, x.new_zeros(1).float(), x.new_zeros(1).float()
        for i in range(depth):
            before, block = x, self.clip.block(i, grid)
            x, k = self.run(block, x, self.strategy == "refocus" and i < depth - 1)
            x = self.smoothed(x, grid)
            total = total + x
            if by_keys and i < depth - 1:
                maps = maps + attention_maps(k, k)[..., 1:, 1:]
        return Smoothed(before, x, total / depth, maps, grid)

    def run(self, block: BlockView, x: Tensor, refocus: bool) -> tuple[Tensor, Tensor]:
        """A block's output (B, T, D), and its keys (B, K, T, d)."""
        if not refocus:
            x, (_, k, _) = block.run(x)
            return x, k
        q, k, v = block.qkv(block.ln_1(x))
        attention = refocused(attention_maps(q, k), self.refocus_threshold, self.refocus_decay)
        x = x + block.project(attention @ v)
        return x + block.mlp(block.ln_2(x)), k

    def distracted(self, x: Tensor) -> Tensor:
        """Which patches of the tokens (B, T, D) are smoothed: (B, N) bool."""
        channels = CHANNELS.get(self.clip.width, ()) if self.channels is None else self.channels
        above = x[:, 1:].float()
        above = above - above.amin(-1, keepdim=True)
        if not channels:
            return torch.zeros_like(above[..., 0], dtype=torch.bool)
        share = above[..., self.indices(channels)].amax(-1) / above.sum(-1).clamp(min=1e-8)
        return share > self.sigma / self.clip.width

    def smoothed(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, T, D) with distraction patches blended; zeros around the grid count in the means."""
        maps = x[:, 1:].transpose(1, 2).unflatten(2, grid).float()
        means = F.avg_pool2d(maps, 3, 1, 1).flatten(2).transpose(1, 2)
        blended = (1 - self.blend) * x[:, 1:] + self.blend * means
        return torch.cat([x[:, :1], torch.where(self.distracted(x)[..., None], blended.to(x), x[:, 1:])], 1)

    def last_attention(self, encoded: Smoothed) -> Tensor:
        """The last block's output (B, N, D) for the patches, without residual connection or feed-forward network."""
        block, similarity = self.clip.block(-1, encoded.grid), cosine_matrix(encoded.guide[:, 1:])
        similarity = similarity.masked_fill(similarity < self.similarity, 0)
        first, second = (self.attended(block, x.float(), similarity, encoded.by_keys) for x in (encoded.before, encoded.guide))
        return (first + second) / 2

    def attended(self, block: BlockView, x: Tensor, similarity: Tensor, by_keys: Tensor) -> Tensor:
        """The attention's output (B, N, D) for tokens (B, T, D) float32 whose patches are first summed by their similarities;
        the LayerNorm cancels the scale of the sums."""
        x = torch.cat([x[:, :1], similarity @ x[:, 1:]], 1)
        _, k, v = block.qkv(block.ln_1(x).to(self.clip.dtype))
        attention = self.mean_attention(by_keys, k)
        return block.project(attention.to(v) @ v[:, :, 1:])

    def mean_attention(self, by_keys: Tensor, k: Tensor) -> Tensor:
        """The mean key-key attention between patches (B, K, N, N), given the last block's keys. The class token's column is cut
        off, so rows sum to less than 1."""
        return (by_keys + attention_maps(k, k)[..., 1:, 1:]) / self.clip.depth

    def similarity_to_image(self, batch: WindowBatch, window: Tensor) -> Tensor:
        """The cosines (B, Q) of the queries with the class token of each `window` (B, E), or of its image."""
        of_windows = self.image_level == "window" or self.recipe.window == "whole"
        if of_windows or batch.contexts is None or batch.images is None:
            return window @ self.text.T
        return torch.stack([self.of_image(batch.contexts[number]) for number in batch.images.tolist()])

    def of_image(self, context: ImageContext) -> Tensor:
        """The cosines (Q,) of the whole resized image, which is encoded once."""
        if "embedding" not in context.by_products:
            encoded = self.encode(whole_pixels(self, context), by_keys=False)
            context.by_products["embedding"] = self.clip.head(encoded.last[:, 0])
        return (context.by_products["embedding"] @ self.text.T)[0]


def refocused(attention: Tensor, threshold: float, decay: float) -> Tensor:
    """Attention maps (B, K, T, T) in which patches that get too much pass `1 - decay` of it, in each row of a patch, to the
    other patches in proportion to what these get. The row and the column of the class token are unchanged."""
    patches = attention[..., 1:, 1:]
    sinks = patches.sum(-2, keepdim=True) / attention.shape[-1] > threshold
    freed = (1 - decay) * (patches * sinks).sum(-1, keepdim=True)
    factor = 1 + freed / ((patches * ~sinks).sum(-1, keepdim=True) + 1e-8)
    moved = patches * torch.where(sinks, decay, factor)
    return torch.cat([attention[..., :1, :], torch.cat([attention[..., 1:, :1], moved], -1)], -2)
