"""TagCLIP (arXiv 2304.07547), and ZegCLIP (Zhou et al., CVPR 2023, arXiv 2212.03588), on which it builds: trained on the masks
of seen classes; each pixel gets the class whose text attends to it most."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.hyperparameters import File
from ..config.registry import SEGMENTORS
from ..encoders.prompted_vit import load_prompted
from ..errors import OvssError, unknown
from ..types import WindowBatch
from .base import Segmentor


@SEGMENTORS.register_module(name="tagclip")
class TagCLIP(Segmentor):
    """Sigmoids of the decoder's attention (section III-C), corrected by the split into seen and unseen classes (section III-D).
    CLIP only encodes the texts; images are seen by the network of the `checkpoint`.

    `layout`: the network of the checkpoint. `seen_offset` is subtracted from seen classes. `trusty`: what the trusty token's
    map w, which says where unseen classes are, is for. `both`: seen classes are multiplied by 1 - w, unseen ones by w; `seen`,
    `unseen`: only one of the two; `off`: the token takes part in the decoder, its map is dropped; `absent`: it takes no part,
    as in ZegCLIP. `unseen`: numbers or names of classes (names separated by commas); None: the data set's split.
    """

    own_network = True
    checkpoint: File | None = None
    layout: Literal["tagclip", "zegclip"] = "tagclip"
    trusty: Literal["both", "seen", "unseen", "off", "absent"] = "both"
    seen_offset: float = 0.1
    unseen: str | tuple[int, ...] | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.layout == "zegclip" and self.trusty != "absent":
            raise OvssError(f"trusty={self.trusty}: layout=zegclip has no trusty token. Use trusty=absent.")
        if self.checkpoint is None:
            raise OvssError(f"{self.recipe.segmentor} needs trained weights: give checkpoint=FILE (see its page).")
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
        found = set()
        for entry in filter(None, map(str.strip, entries)):
            if entry not in names and not (entry.isdecimal() and int(entry) < len(names)):
                raise unknown("class in unseen", entry, names)
            found.add(names.index(entry) if entry in names else int(entry))
        return found

    @torch.inference_mode()
    def patch_logits(self, batch: WindowBatch) -> Tensor:
        """Scores (B, Q, S, S) on the pixels of a window of the training size S: they are averaged over windows as they are, so
        everything that is not linear comes before."""
        real = len(batch.pixels) - batch.padding
        self.observed.update(windows=real, windows_scored_by_split=real if self.split_counts else 0)
        channels = self.network.backbone.proj.shape[1]
        if channels != self.text.shape[1]:
            raise OvssError(
                f"checkpoint {self.checkpoint} is for texts of {channels} channels, those of clip '{self.clip.name}' have "
                f"{self.text.shape[1]}. Use the CLIP that it was trained with."
            )
        logits = self.network(batch.pixels.float(), self.text, self.trusty != "absent")
        scores = F.interpolate(logits, (self.network.side,) * 2, mode="bilinear").sigmoid()
        return self.corrected(scores)

    def corrected(self, scores: Tensor) -> Tensor:
        """Scores (B, Q or Q+1, S, S) -> (B, Q, S, S). The offset comes before the factors; a score may become negative."""
        unseen = self.indices(self.is_unseen).bool()[:, None, None]
        if self.trusty == "absent":
            return scores.sub_(self.seen_offset * ~unseen)
        scores, trusty = scores[:, :-1], scores[:, -1:]
        scores = scores.sub_(self.seen_offset * ~unseen)
        if self.trusty in ("both", "seen"):
            scores = torch.where(unseen, scores, scores * (1 - trusty))
        if self.trusty in ("both", "unseen"):
            scores = torch.where(unseen, scores * trusty, scores)
        return scores
