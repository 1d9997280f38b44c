"""SAM's encoder and decoder on the network of transformers, for `sam=` (Trident): the attention of the encoder's last block,
and masks for prompts.

Shapes: image (H, W, 3); S side of the network's square input; K heads; (h, w) the part of the grid that shows the image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoders.checkpoints import state_digest
from ..errors import unknown
from ..files import config_names, digest, load_config, user_path
from ..torch_defaults import ordinary_torch
from .masks import enlarged, framed, load_network

FRAME = 1024  # prompts have the coordinates of the published networks' input


class PromptedSam:
    """An image (H, W, 3) uint8 RGB -> `Encoded`. `weights`: a repository on huggingface.co or a folder, in transformers'
    layout; on a GPU the encoder runs in fp16, the decoder in fp32, as in Trident's code."""

    stand_in = False

    def __init__(self, weights: str, device: str | torch.device = "cpu") -> None:
        self.model: Any = load_network("SamModel", weights).eval().requires_grad_(False)
        self.device = torch.device(device)
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.digest = digest("sam", json.dumps(str(self.dtype)), state_digest(self.model.state_dict()))
        self.model.to(self.device)
        self.model.vision_encoder.to(self.dtype)
        self.side: int = self.model.prompt_encoder.input_image_size
        self.patch: int = self.model.vision_encoder.config.patch_size

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> Encoded:
        pixels, inside = framed(image, self.side)
        encoder, entering = self.model.vision_encoder, []
        hook = encoder.layers[-1].register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
        try:
            embedding = encoder(pixels.to(self.device, self.dtype))[0].float()
        finally:
            hook.remove()
        return Encoded(self, entering[0], embedding, inside, image.shape[:2])


class Encoded:
    """SAM's output for an image: `values` (K, d, h, w) of the last block, its `attention`, where `attention[k]` is (h*w, h*w),
    cut from a softmax over the whole grid, and `decode`."""

    def __init__(
        self, sam: PromptedSam, entering: Tensor, embedding: Tensor, inside: tuple[int, int], size: tuple[int, ...]
    ) -> None:
        self.sam, self.embedding, self.inside, self.size = sam, embedding, inside, (size[0], size[1])
        layer = sam.model.vision_encoder.layers[-1]
        self.block, self.whole = layer.attn, entering.shape[1:3]
        self.grid = tuple(max(side // sam.patch, 1) for side in inside)
        joint = self.block.qkv(layer.layer_norm1(entering))[0].flatten(0, 1)
        self.q, self.k, v = joint.unflatten(-1, (3, self.block.num_attention_heads, -1)).permute(1, 2, 0, 3)
        self.values = v.transpose(1, 2).unflatten(2, self.whole)[..., : self.grid[0], : self.grid[1]].float()

    @property
    def attention(self) -> Encoded:
        return self

    @torch.inference_mode()
    def __getitem__(self, head: int) -> Tensor:
        """The attention of a head, computed on request: all heads would take a gigabyte."""
        q, block = self.q[head], self.block
        logits = (q * block.scale) @ self.k[head].T
        if block.use_rel_pos:
            bias = block.get_decomposed_rel_pos(q[None], block.rel_pos_h, block.rel_pos_w, self.whole, self.whole)
            logits = logits + bias.reshape_as(logits)
        maps = logits.float().softmax(-1).view(*self.whole, *self.whole)
        height, width = self.grid
        return maps[:height, :width, :height, :width].flatten(2).flatten(0, 1)

    @torch.inference_mode()
    def decode(self, boxes: Tensor, points: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (n, H, W) of one mask per prompt and its predicted IoU (n,). A prompt is a box (n, 4) of (x1, y1, x2, y2)
        and a point (n, 2) inside, in pixels of an image whose long side is 1024, and a mask of at most (256, 256), the same for
        all."""
        model, sam = self.sam.model, self.sam
        scale, points, boxes = sam.side / FRAME, points.to(sam.device).float(), boxes.to(sam.device).float()
        side = model.prompt_encoder.image_embedding_size[0] * 4
        if max(prompt.shape) > side:
            prompt = F.interpolate(prompt[None, None], [max(round(n * side / 256), 1) for n in prompt.shape], mode="bilinear")
        prompt = prompt.view(1, 1, *prompt.shape[-2:]).to(sam.device).float()
        prompt = F.pad(prompt, (0, side - prompt.shape[3], 0, side - prompt.shape[2]))
        output = model(
            image_embeddings=self.embedding,
            input_points=(scale * points)[None, :, None],
            input_labels=torch.ones(1, len(points), 1, dtype=torch.int64, device=sam.device),
            input_boxes=(scale * boxes)[None],
            input_masks=prompt,
            multimask_output=False,
        )
        logits = enlarged(output.pred_masks[0], sam.side, self.inside, self.size)
        return logits[:, 0], output.iou_scores[0, :, 0]


@ordinary_torch()
def load_sam(name: str | Path, *, device: str | torch.device = "cpu") -> PromptedSam:
    """SAM from an entry of configs/sam (`sam_vitb`, ...), or a folder in transformers' layout. Raises OvssError for an unknown
    name, and for missing or damaged weights."""
    return PromptedSam(find_sam(name), device)


def find_sam(name: str | Path) -> str:
    """The repository or folder of the weights. Raises OvssError for an unknown name."""
    if str(name) in config_names("sam"):
        return load_config("sam", str(name))["weights"]
    if user_path(name).is_dir():
        return str(name)
    raise unknown("sam (neither an entry of configs/sam nor a folder)", name, config_names("sam"))
