"""SAM 3 as a concept segmenter, for `concepts=`: an image and short noun phrases -> for each phrase, instance masks with
scores, a semantic mask, and the presence of the phrase (Carion et al., ICLR 2026, arXiv 2511.16719; facebookresearch/sam3).

transformers' `Sam3Model`, run in parts: the image once, the texts once per vocabulary, then presence before masks.

Shapes: image (H, W, 3); K prompts, T tokens per prompt, D width; N object queries; (h, w) mask grid.
"""

# transformers' models are not typed.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import MutableMapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import OvssError, unknown
from ..files import config_names, digest, load_config, user_path
from ..ops.device import to_device, whole_numbers
from ..stages import within
from ..torch_defaults import ordinary_torch
from .checkpoints import state_digest
from .clip import PRECISIONS
from .hub import WEIGHTS_FOLDER, hub, local_repository, short, whole_network

TOKENS = 32  # per prompt, as in the official code
PASS_BYTES = {"cpu": 2**31, "cuda": 2**34}  # activations of the prompts in one pass; on a GPU at most MEMORY_SHARE
MEMORY_SHARE = 0.25  # leaves room for the network in fp32 and the maps of 847 classes on an 8 GB GPU
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class ConceptPrompts:
    """Encoded prompts: `features` (K, T, D) and `valid` (K, T), False for padding."""

    features: Tensor
    valid: Tensor

    def __getitem__(self, rows: Any) -> ConceptPrompts:
        return ConceptPrompts(self.features[rows], self.valid[rows])

    def __len__(self) -> int:
        return len(self.features)

    def joined(self, other: ConceptPrompts) -> ConceptPrompts:
        """These prompts, each followed by the tokens of its counterpart in `other`."""
        return ConceptPrompts(torch.cat([self.features, other.features], 1), torch.cat([self.valid, other.valid], 1))


@dataclass
class ConceptImage:
    """An encoded image: FPN `levels`, each (1, D, side, side), the finest first, and the `position` encoding of the last; the
    `geometry` token (1, 1, D) or None; the `pixels` (1, 3, S, S) that the network saw."""

    levels: list[Tensor]
    position: Tensor
    geometry: Tensor | None
    pixels: Tensor


@dataclass
class Concepts:
    """The detections for K prompts, before any mask is decoded: logits of `objects` (K, N) and `presence` (K,). An object's
    score is the product of both sigmoids. `state` is the input of the mask decoder."""

    objects: Tensor
    presence: Tensor
    state: Any = None

    @property
    def present(self) -> Tensor:
        """Presence probabilities (K,) float32."""
        return self.presence.float().sigmoid()

    @property
    def scores(self) -> Tensor:
        """Object scores (K, N) float32, with presence."""
        return self.objects.float().sigmoid() * self.present[:, None]

    def on_host(self) -> Concepts:
        """The logits on the CPU, without the state: decisions based on them do not wait for a GPU."""
        objects, presence = torch.cat([self.objects.float(), self.presence.float()[:, None]], 1).cpu().tensor_split([-1], 1)
        return Concepts(objects, presence[:, 0])


class ConceptSegmenter:
    """A `Sam3Model` behind four calls: `image`, `texts`, `detect` and, only for the prompts that need them, `masks`.

    `geometry_token`: whether to use the official predictor's, which transformers leaves out. `precision`: of autocast; weights
    stay in fp32. `decoded` counts the prompts passed to `detect` and to `masks`, `encoded` the images by side.
    """

    def __init__(self, model: Any, *, name: str, identity: str, precision: str = "fp32", stand_in: bool = False) -> None:
        self.model, self.name, self.digest, self.stand_in, self.precision = model, name, identity, stand_in, precision
        self.geometry_token, self.prompts_per_pass = True, None
        self.decoded, self.encoded = {"detect": 0, "masks": 0}, Counter()
        self._encoders = {self.side: model.vision_encoder}
        self._texts: dict[Any, ConceptPrompts] = {}  # of the latest vocabularies

    @property
    def device(self) -> torch.device:
        return self.model.text_projection.weight.device

    @property
    def side(self) -> int:
        """Side of the network's input in pixels."""
        return self.model.config.vision_config.backbone_config.image_size

    def chunk(self, side: int | None = None) -> int:
        """How many prompts share a pass: `prompts_per_pass`, or as many as fit into PASS_BYTES.

        A prompt holds a copy of the three FPN levels, about three maps of the pixel decoder, and the masks, none larger than
        the finest level (about half a gigabyte at 1008 pixels)."""
        if self.prompts_per_pass:
            return self.prompts_per_pass
        config, cells = self.model.config, (4 * (side or self.side) // self._patch) ** 2
        planes = 5 * config.detr_encoder_config.hidden_size + 2 * config.detr_decoder_config.num_queries
        most = PASS_BYTES[self.device.type]
        if self.device.type == "cuda":
            most = min(most, MEMORY_SHARE * torch.cuda.mem_get_info(self.device)[1])
        return int(min(max(most // (4 * planes * cells), 1), 32))

    @property
    def _patch(self) -> int:
        return self.model.config.vision_config.backbone_config.patch_size

    def _autocast(self) -> Any:
        dtype = AUTOCAST.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    @torch.inference_mode()
    def image(self, image: np.ndarray, side: int | None = None, shared: MutableMapping[Any, Any] | None = None) -> ConceptImage:
        """Encodes an image, uint8 RGB, resized to a square of `side` pixels as in the official code: antialiased, rounded to
        uint8. `shared` keeps the features of this image for calls with the same network, precision and side."""
        side, shared = side or self.side, {} if shared is None else shared
        key = "concept image", self.digest, self.precision, side
        with within("concept image"), self._autocast():
            if key not in shared:
                shared[key] = self._features(image, side)
            seen = shared[key]
            geometry = self._geometry(seen.levels[-1], seen.position) if self.geometry_token else None
        return replace(seen, geometry=geometry)

    def _features(self, image: np.ndarray, side: int) -> ConceptImage:
        """`image` without the geometry token."""
        from torchvision.transforms.v2.functional import resize

        self.encoded[side] += 1
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        pixels = to_device(resize(pixels, [side, side], antialias=True), self.device)[None].float() / 255
        pixels = (pixels - 0.5) / 0.5
        seen = self._encoder(side)(pixels)
        # The decoders never see the coarsest level.
        return ConceptImage(list(seen.fpn_hidden_states[:-1]), seen.fpn_position_encoding[-2], None, pixels)

    def _encoder(self, side: int) -> Any:
        """The vision encoder for inputs of this side. Rotary tables are fixed at construction, so another side needs a second
        encoder, which shares the tensors."""
        if side not in self._encoders:
            config = copy.deepcopy(self.model.config.vision_config)
            if side % self._patch:
                raise OvssError(
                    f"side {side}: expected a multiple of {self._patch}, the patch size of concept segmenter '{self.name}'."
                )
            config.backbone_config.image_size = side
            encoder = self.model.vision_encoder
            with torch.device(self.device):
                other = type(encoder)(config)
            other.load_state_dict(encoder.state_dict(), assign=True)
            self._encoders[side] = other.eval().requires_grad_(False)
        return self._encoders[side]

    def _geometry(self, level: Tensor, position: Tensor) -> Tensor:
        """The geometry encoder's class token (1, 1, D), which attends to the image. The box is a masked dummy."""
        hidden = torch.zeros(1, 1, dtype=torch.bool, device=self.device)
        level, position = level.float(), position.float()
        with torch.autocast("cpu", enabled=False):  # torchvision's roi_align refuses half precision there
            out = self.model.geometry_encoder(
                box_embeddings=level.new_zeros(1, 1, 4),
                box_mask=hidden,
                box_labels=hidden.long(),
                img_feats=[level],
                img_pos_embeds=[position],
            )
        # Valid tokens are moved to the front; the class token is the only one.
        return out.last_hidden_state[:, :1]

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> ConceptPrompts:
        """Encodes prompts in lower case, without a template. Those of more than 32 tokens are cut but keep the end token."""
        key = (self.precision, *prompts)
        if key not in self._texts:
            ids, parts = tokens(prompts).to(self.device), []
            with within("concept text"), self._autocast():
                for some in ids.split(64):
                    parts.append(self.model.get_text_features(some, attention_mask=(some != 0).long()).pooler_output)
            for old in list(self._texts)[:-3]:
                del self._texts[old]
            self._texts[key] = ConceptPrompts(torch.cat(parts), ids != 0)
        return self._texts[key]

    def forget(self) -> None:
        """Clears the encoded texts, which copies with other settings share."""
        self._texts.clear()

    @torch.inference_mode()
    def words(self, texts: Sequence[str]) -> Tensor:
        """The mean input embedding of each text's tokens, including start and end: (K, width of the text encoder)."""
        ids = tokens(tuple(texts)).to(self.device)
        valid = (ids != 0)[..., None].float()
        rows = self.model.text_encoder.get_input_embeddings()(ids)
        return (rows * valid).sum(1) / valid.sum(1)

    @torch.inference_mode()
    def project(self, vectors: Tensor) -> Tensor:
        """The projection after the text encoder: vectors of its width -> (..., D)."""
        with self._autocast():
            return self.model.text_projection(vectors)

    @torch.inference_mode()
    def detect(self, image: ConceptImage, prompts: ConceptPrompts) -> Concepts:
        """Presence and object logits of a chunk of prompts: the DETR encoder and decoder, without masks."""
        self.decoded["detect"] += len(prompts)
        count, model = len(prompts), self.model
        if image.geometry is not None:
            token = image.geometry.expand(count, -1, -1)
            prompts = prompts.joined(ConceptPrompts(token.to(prompts.features.dtype), prompts.valid.new_ones(count, 1)))
        level, position = (each.expand(count, -1, -1, -1) for each in (image.levels[-1], image.position))
        with within("concept prompts"), self._autocast():
            encoded = model.detr_encoder(
                vision_features=[level],
                text_features=prompts.features,
                vision_pos_embeds=[position],
                text_mask=prompts.valid,
            )
            decoded = model.detr_decoder(
                vision_features=encoded.last_hidden_state,
                text_features=encoded.text_features,
                vision_pos_encoding=encoded.pos_embeds_flattened,
                text_mask=prompts.valid,
                spatial_shapes=encoded.spatial_shapes,
            )
            queries = decoded.intermediate_hidden_states
            objects = model.dot_product_scoring(
                decoder_hidden_states=queries[-1:], text_features=encoded.text_features, text_mask=prompts.valid
            )[-1, ..., 0]
        return Concepts(objects, decoded.presence_logits[-1][:, 0], (queries[-1], encoded.last_hidden_state, prompts))

    @torch.inference_mode()
    def masks(self, image: ConceptImage, found: Concepts, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mask logits (R, N, h, w) and semantic logits (R, h, w), float32, for R of the prompts of one call of `detect`."""
        self.decoded["masks"] += len(rows)
        queries, hidden, prompts = found.state
        picked = whole_numbers(tuple(rows), like=queries)
        chosen = prompts[picked]
        with within("concept masks"), self._autocast():
            out = self.model.mask_decoder(
                decoder_queries=queries[picked],
                backbone_features=[level.expand(len(picked), -1, -1, -1) for level in image.levels],
                encoder_hidden_states=hidden[picked],
                prompt_features=chosen.features,
                prompt_mask=chosen.valid,
            )
        return out.pred_masks.float(), out.semantic_seg[:, 0].float()

    def __call__(self, image: np.ndarray, prompts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All at once: logits of masks (K, N, h, w), semantic maps (K, h, w), objects (K, N) and presence (K,)."""
        seen = self.image(image)
        found = self.detect(seen, self.texts(prompts))
        return *self.masks(seen, found, range(len(prompts))), found.objects, found.presence

    def settings(self, *, geometry_token: bool, precision: str) -> ConceptSegmenter:
        """The same network with other settings; precision `auto`: bf16 on a GPU, fp32 on a CPU."""
        if precision == "auto":
            precision = "bf16" if self.device.type == "cuda" else "fp32"
        other = copy.copy(self)
        other.geometry_token, other.precision = geometry_token, precision
        return other


@lru_cache(maxsize=8)
def _tokenizer() -> Any:
    from open_clip import SimpleTokenizer

    return SimpleTokenizer(context_length=TOKENS)


def tokens(prompts: Sequence[str]) -> Tensor:
    """Token ids (K, 32) of CLIP's BPE; 0 is padding."""
    return _tokenizer()([prompt.lower() for prompt in prompts])


@ordinary_torch()
def load_concepts(name: str | Path, *, precision: str = "fp32", device: str | torch.device = "cpu") -> ConceptSegmenter:
    """A concept segmenter: `name` is an entry of configs/concepts or a folder in transformers' layout (config.json and weights,
    of the image or the video model).

    An entry's repository is looked up by its last name in the folder given by the environment variable OVSS_WEIGHTS, then in
    the cache of huggingface_hub, or downloaded to the latter. Raises OvssError for an unknown name, a missing or incomplete
    folder, or a gated repository without access.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    entry, folder = find_concepts(name)
    if entry.get("stand_in"):
        from .concepts_stand_in import random_network

        model = random_network(entry["network"], entry["weights_seed"], entry["gain"])
    else:
        model = _read(str(name), entry.get("repo"), folder)
    model = model.eval().requires_grad_(False).to(device)
    identity = digest(json.dumps(model.config.to_dict(), sort_keys=True, default=str), state_digest(model.state_dict()))
    return ConceptSegmenter(model, name=str(name), identity=identity, precision=precision, stand_in=bool(entry.get("stand_in")))


def find_concepts(name: str | Path) -> tuple[dict[str, Any], Path | None]:
    """The entry of configs/concepts (empty for a folder), and the folder of the weights, None if they are downloaded or
    random. Raises OvssError for an unknown name or a folder of another network."""
    entry: dict[str, Any] = {}
    folder: Path | None = user_path(name)
    if name in config_names("concepts"):
        entry = load_config("concepts", name)
        folder = local_repository(entry["repo"]) if "repo" in entry else None
    elif not folder.is_dir():
        raise unknown("concepts (neither an entry of configs/concepts nor a folder)", str(name), config_names("concepts"))
    if folder:
        _check_kind(folder)
    return entry, folder


def _read(name: str, repo: str | None, folder: Path | None) -> Any:
    """The network from a folder or from a repository on huggingface.co."""
    from transformers import Sam3Model

    try:
        with nullcontext() if folder else hub():
            return whole_network(Sam3Model, str(folder or repo), dtype=torch.float32)
    except OvssError:
        raise
    except Exception as error:  # parsers and downloads raise nearly anything
        if folder:
            raise _incomplete(folder, short(error)) from error
        page = f"https://huggingface.co/{repo}"
        raise OvssError(
            f"the weights of concept segmenter '{name}' are not on this machine and could not be downloaded from {page} "
            f"({short(error)}). The repository is gated: request access on that page, then run `hf auth login`; or put its "
            f"files into a folder and give it (concepts=/path/to/{repo.rpartition('/')[2] if repo else name}), or move that to "
            f"{WEIGHTS_FOLDER}."
        ) from error


def _incomplete(folder: Path, reason: str) -> OvssError:
    what = f"{folder} is not a complete SAM 3 in transformers' layout (config.json, model.safetensors)"
    return OvssError(f"{what}: {reason}. Copy or download it again.")


def _check_kind(folder: Path) -> None:
    """Raises OvssError for another model's folder, which transformers would fill with random weights."""
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _incomplete(folder, f"config.json cannot be read ({short(error)})") from error
    if not str(kind).startswith("sam3"):
        raise OvssError(f"{folder} holds a model of type {kind!r}, not a SAM 3. Give the folder of facebook/sam3.")
