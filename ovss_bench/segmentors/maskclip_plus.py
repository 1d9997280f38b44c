"""MaskCLIP+ (Zhou, Loy, Dai, ECCV 2022, arXiv 2112.01071, whose first version was called DenseCLIP): a DeepLab trained on
MaskCLIP's labels, with text features as its classifier."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.hyperparameters import File
from ..config.registry import SEGMENTORS
from ..encoders.resnet_aspp import load_deeplab
from ..encoders.trained import check_channels
from ..errors import OvssError
from ..ops.scores import best_of_groups
from ..types import ImageContext
from .base import Segmentor


@SEGMENTORS.register_module(name="maskclip_plus")
class MaskCLIPPlus(Segmentor):
    """Inner products of the network's features and text features, neither normalised nor scaled (section 3.4).

    `own_texts=True`: the text features in the `checkpoint` are the classifier; its classes must be those of the vocabulary, in
    the same order. `False`: the vocabulary's text features are the classifier, so classes may differ from those of the
    training; CLIP must be the teacher, whose embedding space the network uses. A learned background (`bg_embeddings`) is
    class 0 in both cases.
    """

    requires = ("checkpoint",)
    own_network = True
    checkpoint: File | None = None
    own_texts: bool = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.network = self.own(load_deeplab, str(self.checkpoint))
        self.texts, self.learned = self.network.decode_head.text_embeddings, self.network.decode_head.bg_embeddings
        rows, classes = len(self.texts) + len(self.learned), len(self.vocabulary.classes)
        if self.own_texts and rows != classes:
            raise OvssError(
                f"checkpoint {self.checkpoint} has text features of {rows} classes (background included), but the vocabulary "
                f"has {classes} classes. Evaluate it on the data set it was trained on, or set own_texts=false."
            )
        if len(self.learned) and self.vocabulary.background != 0:
            raise OvssError(
                f"checkpoint {self.checkpoint} has learned a background as its class 0, but class 0 of the vocabulary is not a "
                "background. Use a data set with a background, such as voc21 or context60."
            )

    def classifier(self) -> tuple[Tensor, list[int]]:
        """Weights (R, D) and the class of each row; rows without a class are left out."""
        learned = F.normalize(self.learned, dim=-1)
        if self.own_texts:
            return torch.cat([learned, self.texts]), list(range(len(learned) + len(self.texts)))
        what = f"checkpoint {self.checkpoint} expects text features"
        check_channels(what, self.texts.shape[1], self.text.shape[1], self.clip.name)
        skipped = {-1, 0} if len(learned) else {-1}
        rows = [row for row, c in enumerate(self.vocabulary.group) if c not in skipped]
        weights = torch.cat([learned, self.text[self.indices(rows)]])
        return weights, [0] * len(learned) + [self.vocabulary.group[row] for row in rows]

    @torch.inference_mode()
    def image_scores(self, context: ImageContext) -> Tensor:
        """Scores (C, H, W): the best row of each class, resized bilinearly to the network's input, then to the result."""
        pixels = self.tensor(context.pixels).float()
        features = self.network(pixels[None])[0]
        weights, classes = self.classifier()
        rows = torch.einsum("rd,dhw->rhw", weights, features)[None]
        rows = F.interpolate(rows, pixels.shape[1:], mode="bilinear")
        rows = F.interpolate(rows, context.size, mode="bilinear")[0]
        return best_of_groups(rows, classes, len(self.vocabulary.classes), torch.finfo(rows.dtype).min)

    def decide(self, scores: Tensor, context: ImageContext) -> Tensor:
        return scores.argmax(0)
