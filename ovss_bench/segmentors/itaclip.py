"""ITACLIP (Aydin et al., CVPR Workshops 2025, arXiv 2411.12044): changes of the image, of the texts and of the architecture."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.hyperparameters import File
from ..config.registry import SEGMENTORS
from ..encoders.clip import BlockView, attention_maps
from ..errors import OvssError
from ..ops.image_engineering import image_engineering
from ..progress import Progress
from ..types import ImageContext, Trunk, WindowBatch
from ..vocabulary import Vocabulary
from .base import Segmentor
from .features import class_texts


@SEGMENTORS.register_module(name="itaclip")
class ITACLIP(Segmentor):
    """Self-correlation attention of the last block, averaged with that of `middle_blocks` (counted from 1, as in the paper);
    residual connection, no feed-forward network.

    `img_engineering`: the cosines of five versions of each window are averaged; those that keep its orientation have the weight
    `img_eng_coefficient`. `texts`: a file with a definition or a synonym of each foreground class (see `class_texts`), mixed
    with the weight `def_coefficient` into the text features of its queries, which are not normalised again; None: class names
    only. `closing`: a morphological closing of the label map itself, which prefers large class numbers, as published.
    """

    attention_maps = 3

    middle_blocks: tuple[int, ...] = (7, 8, 10)
    texts: File | None = None
    def_coefficient: float = 0.2
    img_engineering: bool = True
    img_eng_coefficient: float = 0.75
    closing: bool = True

    @property
    def middle(self) -> tuple[int, ...]:
        """The middle blocks, counted from 0."""
        if not 1 <= min(self.middle_blocks) <= max(self.middle_blocks) < self.clip.depth:
            raise OvssError(
                f"middle_blocks={self.middle_blocks} of {self.recipe.segmentor}: expected blocks from 1 to "
                f"{self.clip.depth - 1}, as this CLIP has {self.clip.depth}, and the last is not a middle block."
            )
        return tuple(sorted({block - 1 for block in self.middle_blocks}))

    @property
    def needs_qkv(self) -> frozenset[int]:
        return frozenset(self.middle)

    # Texts (section 3.3)

    def enriched(self, text: Tensor, vocabulary: Vocabulary, progress: Progress | None = None) -> Tensor:
        return text if self.texts is None else self.mix_texts(text, class_texts(self.texts, vocabulary, self.clip, progress))

    def mix_texts(self, names: Tensor, auxiliary: Tensor) -> Tensor:
        """Text features of the queries (Q, E) and of the foreground classes (F, E) -> (Q, E). Queries of the background and
        distractors stay as they are."""
        classes = [c for c in range(len(self.vocabulary.classes)) if c != self.vocabulary.background]
        row = {c: number for number, c in enumerate(classes)}
        weight = self.tensor(torch.tensor([self.def_coefficient * (c in row) for c in self.vocabulary.group]))[:, None]
        return (1 - weight) * names + weight * auxiliary[self.indices(row.get(c, 0) for c in self.vocabulary.group)]

    # Architecture (section 3.1)

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        if self.img_engineering:
            return image_engineering(self.window_logits, batch, self.img_eng_coefficient)
        return self.window_logits(batch)

    def window_logits(self, batch: WindowBatch) -> Tensor:
        return self.cosines(*self.once(self.encoded, batch))

    def encoded(self, batch: WindowBatch) -> tuple[Tensor, tuple[int, int]]:
        """The tokens that leave the last block, and the patch grid."""
        trunk = self.trunk(batch)
        return self.last_block(self.clip.block(-1, trunk.grid), trunk), trunk.grid

    def last_block(self, block: BlockView, trunk: Trunk) -> Tensor:
        """The tokens (B, T, D) that leave the last block."""
        q, k, v = block.qkv(block.ln_1(trunk.tokens))
        middle = sum(self_correlation(*self.clip.qkv(trunk, i)[:2]) for i in self.middle)
        attention = (self_correlation(q, k) + middle / len(self.middle)) / 2
        return trunk.tokens + block.project(attention @ v)

    def correct(self, label_map: Tensor, context: ImageContext) -> Tensor:
        return closed(label_map) if self.closing else label_map


def self_correlation(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q q^T / sqrt d) + softmax(k k^T / sqrt d) of queries and keys (B, K, T, d): (B, K, T, T), rows of sum 2."""
    return attention_maps(q, q) + attention_maps(k, k)


def closed(label_map: Tensor) -> Tensor:
    """(H, W) int64 -> the maximum, then the minimum over 3 x 3 pixels, without those outside the image."""
    labels = F.max_pool2d(label_map[None].float(), 3, 1, 1)
    return (-F.max_pool2d(-labels, 3, 1, 1))[0].long()
