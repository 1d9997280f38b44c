"""TagCLIP without training (Lin et al., AAAI 2024, arXiv 2312.12828): image tags by a local-to-global framework, then refined
class activation maps of these tags ("CLS-SEG") by CLIP-ES (Lin et al., CVPR 2023, arXiv 2212.09506)."""

from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.hyperparameters import File
from ..config.registry import SEGMENTORS
from ..encoders.grad_cam import grad_cam
from ..errors import OvssError
from ..ops.attention import balanced
from ..ops.boxes import in_boxes, tight_box, to_unit_range
from ..ops.crf import dense_crf
from ..ops.enlarge import resized_maps
from ..ops.nearest import torch_nearest
from ..ops.scores import best_of_groups
from ..types import ImageContext, Trunk, WindowBatch
from .base import Segmentor
from .features import encoded, read_texts, whole_pixels

MEAN = (104.008, 116.669, 122.675)  # of BGR, subtracted from the image of the CRF


@SEGMENTORS.register_module(name="tagclip_training_free")
class TagCLIPTrainingFree(Segmentor):
    """Every foreground query is a class until the decision. Layers are counted from 0.

    Tags: the attention of a pair of patches is averaged over the layers `first_layer` to `last_layer`; it counts if at least
    `votes` layers agree on the pair. Queries above the share `tag_threshold` of the range of scores are classified again on
    their boxes (`reidentify`); those then above it are tags.

    Maps: Grad-CAM in the last block, with texts in `cam_template` and cosines times `cam_scale`, refined by the attention of
    the layers `cam_first` to `cam_last` inside boxes above `box_threshold`. `cam_texts`: a file with other names for these maps
    (see `read_texts`). `crf`: whether a dense CRF refines the maps.
    """

    attention_maps = 3
    uses = ("position", "logit_scale")

    votes: int = 4
    first_layer: int = 8
    last_layer: int = 10
    tag_threshold: float = 0.5
    reidentify: bool = True
    cam_template: str = "a clean origami {}."
    cam_texts: File | None = None
    cam_scale: float = 100.0
    cam_first: int = 4
    cam_last: int = 10
    box_threshold: float = 0.4
    crf: bool = False

    @property
    def needs_qkv(self) -> frozenset[int]:
        depth = self.clip.depth
        for first, last in ("first_layer", "last_layer"), ("cam_first", "cam_last"):
            if not 0 <= (start := getattr(self, first)) <= (end := getattr(self, last)) < depth:
                raise OvssError(
                    f"{first}={start}, {last}={end} of {self.recipe.segmentor}: expected layers 0 to {depth - 1} of this CLIP, "
                    "in ascending order."
                )
        return frozenset(range(depth))

    @cached_property
    def stage_text(self) -> Tensor:
        """The text features (Q, E) of all queries, those of the foreground first."""
        others = (q for q in range(len(self.text)) if q not in self.vocabulary.foreground)
        return self.text[self.indices([*self.vocabulary.foreground, *others])]

    @cached_property
    def cam_text(self) -> Tensor:
        """Text features for the maps: the foreground queries, then all other queries, or the word "background" if there are
        none."""
        vocabulary = self.vocabulary
        names = [vocabulary.queries[q] for q in vocabulary.foreground]
        if self.cam_texts is not None:
            texts = read_texts(self.cam_texts, vocabulary)
            classes = [c for c in range(len(vocabulary.classes)) if c != vocabulary.background]
            names = [texts[classes.index(vocabulary.group[q])] for q in vocabulary.foreground]
        others = [query for q, query in enumerate(vocabulary.queries) if q not in vocabulary.foreground] or ["background"]
        if vocabulary.given_features is None:
            return encoded([*names, *others], [self.cam_template], self.clip)
        missing = len(names) + len(others) > len(self.text)  # given features have no names to put into the template
        return torch.cat([self.stage_text, encoded(others, [self.cam_template], self.clip)]) if missing else self.stage_text

    @torch.inference_mode()
    def image_scores(self, context: ImageContext) -> Tensor:
        """Class maps (C, H, W): 0 for classes without a tag; the background is 1 minus the best map."""
        background, group = self.vocabulary.background, self.vocabulary.group
        count = len(self.vocabulary.classes)
        if not self.vocabulary.foreground:
            return self.text.new_ones(count, *context.size)
        pixels = whole_pixels(self, context)
        trunk = self.trunk(WindowBatch(pixels))
        affinity, smooth = self.affinities(trunk)
        tags = self.tags(self.image_tags(pixels, self.refined_scores(trunk, affinity)))
        text = torch.cat([self.cam_text[self.indices(tags)], self.cam_text[len(self.vocabulary.foreground) :]])
        maps = self.refined_cams(grad_cam(self.clip, trunk, text, self.cam_scale, len(tags)), smooth)
        # Rounded to fp16, as the official code stores them.
        maps = resized_maps(maps, context.size).half()
        if background is not None:
            maps = torch.cat([1 - maps.amax(0, keepdim=True), maps])
        maps = self.with_crf(maps.float(), context) if self.crf else maps.float()
        classes = [group[self.vocabulary.foreground[tag]] for tag in tags]
        context.by_products["classes"] = sorted(set(classes))
        return best_of_groups(maps, classes if background is None else [background, *classes], count)

    def decide(self, scores: Tensor, context: ImageContext) -> Tensor:
        if self.vocabulary.background is not None or not self.vocabulary.foreground:
            return scores.argmax(0)
        classes = self.indices(context.by_products["classes"])
        return classes[scores[classes].argmax(0)]

    def affinities(self, trunk: Trunk) -> tuple[Tensor, Tensor]:
        """Attention between all N patches, both (N, N): for the tags, where enough layers agree, and for the maps."""
        layers = (self.clip.attention(trunk, i)[0].float().mean(0)[1:, 1:] for i in range(self.clip.depth))
        votes, affinity, smooth = 0, 0, 0
        for i, attention in enumerate(layers):
            votes = votes + (attention > attention.mean()).to(torch.uint8)
            affinity = affinity + attention if self.first_layer <= i <= self.last_layer else affinity
            smooth = smooth + attention if self.cam_first <= i <= self.cam_last else smooth
        affinity = affinity / (self.last_layer - self.first_layer + 1) * (votes >= self.votes)
        smooth = balanced(smooth)  # the sum instead of the mean: only ratios count
        return affinity, smooth @ smooth

    # Tags (TagCLIP, section 3)

    def cosine_maps(self, trunk: Trunk) -> Tensor:
        """Cosines (Q, h, w) with `stage_text`. In the last block each token attends to itself only."""
        block = self.clip.block(-1, trunk.grid)
        x = trunk.tokens + block.project(block.qkv(block.ln_1(trunk.tokens))[2])
        x = x + block.mlp(block.ln_2(x))
        return (self.stage_text @ self.clip.head(x[:, 1:])[0].T).unflatten(1, trunk.grid)

    def coarse_scores(self, trunk: Trunk) -> Tensor:
        return (self.recipe.logit_scale * self.cosine_maps(trunk)).softmax(0)

    def refined_scores(self, trunk: Trunk, affinity: Tensor) -> Tensor:
        """Dual-masking attention refinement (Q, h, w) of the coarse scores inside boxes around each query's high scores."""
        coarse = self.coarse_scores(trunk).flatten(1)
        inside = self.boxes(to_unit_range((coarse @ affinity.T).unflatten(1, trunk.grid).numpy(force=True)), None)
        return ((coarse * inside.flatten(1)) @ affinity.T).unflatten(1, trunk.grid)

    def boxes(self, maps: np.ndarray, threshold: float | None) -> Tensor:
        """Maps (n, h, w) in 0..1 -> (n, h, w) bool: inside the boxes above the threshold; None: the mean of each map."""
        return self.tensor(np.stack([in_boxes(one, one.mean() if threshold is None else threshold) for one in maps]))

    def image_tags(self, pixels: Tensor, refined: Tensor) -> np.ndarray:
        """The scores (F,) of the foreground queries: their maxima, averaged with the probabilities in their boxes (class-wise
        re-identification). As published, the first empty box ends it for all later queries."""
        maps, patch, grid = refined.numpy(force=True), self.clip.patch_size, self.clip.stored_grid
        scores = maps[: len(self.vocabulary.foreground)].max((1, 2))
        least, queries, crops, inside = maps.min() + self.tag_threshold * (maps.max() - maps.min()), [], [], []
        for query in (scores > least).nonzero()[0] if self.reidentify else ():
            members = to_unit_range(maps[query]) > 0.5
            box = tight_box(members)
            if box is None:
                break
            rows, columns = (slice(side.start * patch, side.stop * patch) for side in box)
            crops.append(F.interpolate(pixels[..., rows, columns], [side * patch for side in grid], mode="bilinear"))
            inside.append(torch_nearest(torch.from_numpy(members[box]), grid) > 0)
            queries.append(query)
        if queries:
            inside = self.tensor(torch.stack(inside))
            embeddings = self.clip.region_embeddings(torch.cat(crops), inside, self.recipe.position)
            probabilities = (self.recipe.logit_scale * embeddings @ self.stage_text.T).softmax(1).numpy(force=True)
            scores[queries] = (scores[queries] + probabilities[range(len(queries)), queries]) / 2
        return scores

    def tags(self, scores: np.ndarray) -> list[int]:
        """The foreground queries that are in the image, as indices, by their scores (F,); at least one."""
        least = scores.min() + self.tag_threshold * (scores.max() - scores.min())
        return (scores > least).nonzero()[0].tolist() or [int(scores.argmax())]

    # Maps (CLIP-ES, section 3)

    def refined_cams(self, cams: Tensor, smooth: Tensor) -> Tensor:
        """Class-aware attention-based affinity: maps (n, h, w) -> the refined maps, stretched to 0..1."""
        cams = stretched(stretched(cams))  # twice: it matters where gradients are tiny
        inside = self.boxes(cams.numpy(force=True), self.box_threshold)
        return stretched(((cams * inside).flatten(1) @ smooth.T).view_as(cams))

    def with_crf(self, maps: Tensor, context: ImageContext) -> Tensor:
        """Kept as published: the CRF sees BGR minus a mean as 8 bits, so values below the mean wrap around."""
        image = (context.original[..., ::-1] - np.array(MEAN, np.float32)).astype(np.int64) % 256
        image = resized_maps(self.tensor(image.astype(np.float32)).movedim(-1, 0), context.size)
        return dense_crf(maps, image.movedim(0, -1))


def stretched(maps: Tensor) -> Tensor:
    """(n, h, w) -> nearly 0..1, as in the Grad-CAM library."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (1e-7 + maps.amax((1, 2), keepdim=True))
