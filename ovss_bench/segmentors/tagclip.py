"""TagCLIP (arXiv 2304.07547), and ZegCLIP (Zhou et al., CVPR 2023, arXiv 2212.03588), on which it builds: trained on the masks
of seen classes; each pixel gets the class whose text attends to it most."""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..config.hyperparameters import File
from ..config.recipe import Recipe
from ..config.registry import SEGMENTORS
from ..encoders.prompted_vit import load_prompted
from ..encoders.trained import check_channels
from ..errors import OvssError, unknown
from ..ops.compose import compose
from ..ops.windows import SlidingWindow
from ..types import WindowBatch
from .base import Segmentor


@SEGMENTORS.register_module(name="tagclip")
class TagCLIP(Segmentor):
    """Sigmoids of the decoder's attention (section III-C), corrected by the split into seen and unseen classes (section III-D).
    CLIP only encodes the texts; the network of the `checkpoint` encodes the images.

    `layout`: the architecture of the checkpoint. `seen_offset` is subtracted from the scores of seen classes. `trusty`: the use
    of the trusty token's map w, which says where unseen classes are. `both`: seen classes are multiplied by 1 - w, unseen ones
    by w; `seen`, `unseen`: only one of the two; `off`: the token takes part in the decoder, but its map is dropped; `absent`:
    it takes no part, as in ZegCLIP. `unseen`: indices or comma-separated names of classes; None: the data set's split.
    """

    requires = ("checkpoint",)
    own_network = True
    checkpoint: File | None = None
    layout: Literal["tagclip", "zegclip"] = "tagclip"
    trusty: Literal["both", "seen", "unseen", "off", "absent"] = "both"
    seen_offset: float = 0.1
    unseen: str | tuple[int, ...] | None = None

    @classmethod
    def check(cls, recipe: Recipe, has_background: bool) -> None:
        super().check(recipe, has_background)
        trusty = recipe.hyperparameters["trusty"]
        if recipe.hyperparameters["layout"] == "zegclip" and trusty != "absent":
            raise OvssError(f"trusty={trusty}: layout=zegclip has no trusty token. Use trusty=absent.")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.network = self.own(load_prompted, str(self.checkpoint), self.layout)
        classes = self._split()
        self.is_unseen = [c in classes for c in self.vocabulary.group]
        self.split_counts = bool(classes) and (self.seen_offset != 0 or self.trusty in ("both", "seen", "unseen"))

    def _split(self) -> set[int]:
        """The unseen classes. Raises OvssError for one that the vocabulary does not have."""
        names = self.vocabulary.classes
        if self.unseen is None:
            return set(self.vocabulary.unseen)
        entries = self.unseen.split(",") if isinstance(self.unseen, str) else map(str, self.unseen)
        unseen = set()
        for entry in filter(None, map(str.strip, entries)):
            if entry not in names and not (entry.isdecimal() and int(entry) < len(names)):
                raise unknown("class in unseen", entry, names)
            unseen.add(names.index(entry) if entry in names else int(entry))
        return unseen

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        """Scores (B, Q, S, S) on the pixels of a window of the training size S. They are averaged over windows afterwards, so
        all nonlinear steps come first."""
        real = len(batch.pixels) - batch.padding
        self.observed.update(windows=real, windows_scored_by_split=real if self.split_counts else 0)
        what, expected = f"checkpoint {self.checkpoint} expects text features", self.network.backbone.proj.shape[1]
        check_channels(what, expected, self.text.shape[1], self.clip.name)
        tower = partial(self.once, self.network.backbone)
        logits = self.network(batch.pixels.float(), self.text, self.trusty != "absent", tower)
        side = self.network.side
        window = SlidingWindow.of(side, side, "whole", side, 1, "none")
        scores = logits.new_empty(len(logits), side, side, len(self.text))
        for of_window, result in zip(logits.split(1), scores, strict=True):
            for rows, columns, enlarged in compose(of_window, window, (side, side)):  # parts that stay in a core's cache
                result[rows, columns] = self.corrected(enlarged.sigmoid_())
        return scores.movedim(-1, 1)

    def corrected(self, scores: Tensor) -> Tensor:
        """Scores (..., Q or Q+1) -> (..., Q), in place. The offset comes before the factors; a score may become negative."""
        unseen = self.indices(self.is_unseen).bool()
        if self.trusty == "absent":
            return scores.sub_(self.seen_offset * ~unseen)
        scores, trusty = scores[..., :-1], scores[..., -1:]
        of_seen = 1 - trusty if self.trusty in ("both", "seen") else torch.ones_like(trusty)
        of_unseen = trusty if self.trusty in ("both", "unseen") else torch.ones_like(trusty)
        return scores.sub_(self.seen_offset * ~unseen).mul_(torch.where(unseen, of_unseen, of_seen))
