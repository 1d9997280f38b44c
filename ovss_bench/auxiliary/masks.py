"""The automatic mask generators of SAM and SAM 2 on the networks of transformers: a grid of points, one or three masks per
point, filters, and a map on which larger masks cover smaller ones (CorrCLIP).

Shapes: image (H, W, 3); S side of the networks' square input; N masks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..config.validation import Count, Number
from ..encoders.checkpoints import state_digest, weight_errors
from ..encoders.hub import WEIGHTS_FOLDER, download_failed, hub, short, whole_network
from ..errors import OvssError
from ..files import digest, user_path, weights_folders
from ..image import normalize
from ..ops.pictures import in_frame

MASKS_AT_ONCE = 32  # upsampled to the size of the image at once: bounds the memory


@dataclass(eq=False)
class Sam:
    """SAM (Kirillov et al., ICCV 2023, arXiv 2304.02643): an image (H, W, 3) uint8 RGB -> regions (H, W) int32, 0 for none.

    Settings have the names of the official `SamAutomaticMaskGenerator`; others keep its defaults (crop_n_layers 0,
    min_mask_region_area 0). `weights`: a repository on huggingface.co or a folder, in transformers' layout. `precision`: fp16
    casts the weights to fp16 and runs under autocast, `autocast` keeps the weights in fp32; both on GPUs only, a CPU computes
    in fp32. `digest` depends on tensors and settings only, not on the source of the tensors.
    """

    kind: ClassVar[str] = "sam"
    network: ClassVar[str] = "SamModel"
    stand_in = False

    weights: str
    precision: Literal["fp32", "fp16", "autocast"]
    points_per_side: Count
    points_per_batch: Count
    multimask_output: bool
    pred_iou_thresh: Number
    stability_score_thresh: Number
    stability_score_offset: Number
    mask_threshold: Number
    box_nms_thresh: Number
    device: Any = "cpu"  # a torch.device once made

    def __post_init__(self) -> None:
        self.device = torch.device(self.device)
        self.half = self.precision != "fp32" and self.device.type == "cuda"
        self.model: Any = load_network(self.network, self.weights)
        self.precision = self.precision if self.half else "fp32"
        with weight_errors(f"the weights {self.weights} of {self.kind} cannot be used"):
            described = {**self.settings, "weights": state_digest(self.model.state_dict())}
            del described["points_per_batch"]  # changes rounding at most
            self.digest = digest(self.kind, json.dumps(described, sort_keys=True))
            dtype = torch.float16 if self.precision == "fp16" else torch.float32
            self.model.eval().requires_grad_(False).to(self.device, dtype)
            self.side: int = self.model.prompt_encoder.input_image_size
            self._lock = Lock()

    @property
    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "device"}

    def __call__(self, image: np.ndarray) -> np.ndarray:
        try:
            with self._lock:  # one image at a time, while other threads read and write images
                return paint(self.masks(image), image.shape[:2])
        except torch.OutOfMemoryError as error:
            raise OvssError(
                f"an image of {image.shape[0]} x {image.shape[1]} pixels (height x width) needs more memory than {self.device} "
                f"has. Use fewer points at a time: settings.points_per_batch={max(self.points_per_batch // 4, 1)}"
            ) from error

    @torch.inference_mode()
    def masks(self, image: np.ndarray) -> np.ndarray:
        """The masks of an image, best first, as rows of packed bits (N, ceil(HW/8)); see `paint`."""
        pixels, inside = self.frame(image)
        points = (point_grid(self.points_per_side) * torch.tensor(inside[::-1])).to(self.device)
        bits, scores, boxes = [], [], []
        with torch.autocast(self.device.type, torch.float16, enabled=self.half):
            embeddings = self.model.get_image_embeddings(pixels.to(self.device))
            for some in points.split(self.points_per_batch):
                output = self.model(
                    image_embeddings=embeddings, input_points=some[None, :, None], multimask_output=self.multimask_output
                )
                for logits, iou in self.promising(output.pred_masks[0].flatten(0, 1), output.iou_scores[0].flatten()):
                    logits = self.enlarge(logits[:, None], inside, image.shape[:2])[:, 0]
                    keep = self.stable(logits)
                    masks = logits[keep] > self.mask_threshold
                    bits.append(np.packbits(masks.flatten(1).cpu().numpy(), axis=1))
                    scores.append(iou[keep])
                    boxes.append(boxes_of(masks))
        if not bits:
            return np.empty((0, -(-image.shape[0] * image.shape[1] // 8)), np.uint8)
        from torchvision.ops import nms

        best = nms(torch.cat(boxes), torch.cat(scores), self.box_nms_thresh)
        return np.concatenate(bits)[best.cpu().numpy()]

    def promising(self, logits: Tensor, iou: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Low-resolution masks (N, h, w) whose predicted IoU is high enough, in float32, a few at a time."""
        if self.pred_iou_thresh > 0:
            keep = iou.float() > self.pred_iou_thresh
            logits, iou = logits[keep], iou[keep]
        logits, iou = logits.float(), iou.float()
        return ((a, b) for a, b in zip(logits.split(MASKS_AT_ONCE), iou.split(MASKS_AT_ONCE), strict=True) if len(a))

    def stable(self, logits: Tensor) -> Tensor:
        """(N,) bool for masks (N, H, W): whether a higher and a lower threshold give masks of high IoU; false if empty."""
        if self.stability_score_thresh == 0:
            return torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        higher, lower = ((logits > self.mask_threshold + sign * self.stability_score_offset).sum((1, 2)) for sign in (1, -1))
        return higher / lower >= self.stability_score_thresh

    def frame(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """Network input (1, 3, S, S), zero-padded after normalisation, and the image's size in it: its long side is S."""
        return framed(image, self.side)

    def enlarge(self, logits: Tensor, inside: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Low-resolution masks (N, 1, h, w) -> (N, 1, H, W) of the image, upsampled to the network input in between."""
        return enlarged(logits, self.side, inside, size)


@dataclass(eq=False)
class Sam2(Sam):
    """SAM 2 (Ravi et al., ICLR 2025, arXiv 2408.00714), `SAM2AutomaticMaskGenerator` without use_m2m.

    As CorrCLIP builds it with `apply_postprocessing=False`, single masks are returned unchanged; by transformers' default,
    unstable ones would be replaced by the best of three.
    """

    kind: ClassVar[str] = "sam2"
    network: ClassVar[str] = "Sam2Model"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model.mask_decoder.dynamic_multimask_via_stability = False

    def frame(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """Both sides become S (bilinear, antialiased, not rounded to integers)."""
        square = (self.side, self.side)
        return F.interpolate(normalize(image, "imagenet")[None], square, mode="bilinear", antialias=True), square

    def enlarge(self, logits: Tensor, inside: tuple[int, int], size: tuple[int, int]) -> Tensor:
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def framed(image: np.ndarray, side: int) -> tuple[Tensor, tuple[int, int]]:
    """SAM's input (1, 3, side, side), zero-padded after normalisation, and the image's size in it: its long side is `side`."""
    height, width = in_frame((image.shape[0], image.shape[1]), side)
    resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    pixels = F.pad(normalize(resized, "imagenet"), (0, side - width, 0, side - height))
    return pixels[None], (height, width)


def enlarged(logits: Tensor, side: int, inside: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """SAM's low-resolution masks (N, 1, h, w) -> (N, 1, H, W) of the image, upsampled to the network input in between."""
    logits = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
    return F.interpolate(logits[..., : inside[0], : inside[1]], size, mode="bilinear", align_corners=False)


def point_grid(per_side: int) -> Tensor:
    """(per_side^2, 2) as (x, y) in 0..1, in the middle of equal cells, row by row."""
    middle = (torch.arange(per_side) + 0.5) / per_side
    return torch.cartesian_prod(middle, middle).flip(1)


def boxes_of(masks: Tensor) -> Tensor:
    """Masks (N, H, W) -> (N, 4) float: the first and last column and row as (x1, y1, x2, y2), so a single pixel has no area;
    zeros for an empty mask, which older releases of torchvision refuse."""
    from torchvision.ops import masks_to_boxes

    boxes, filled = torch.zeros(len(masks), 4, device=masks.device), masks.flatten(1).any(1)
    boxes[filled] = masks_to_boxes(masks[filled])
    return boxes


def paint(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Masks as rows of packed bits (`np.packbits` of (N, H*W)), best first -> (H, W) int32: ids 1, 2, ... painted in order of
    area (stable), as in CorrCLIP's code, so that larger masks cover smaller ones; 0 outside of all masks."""
    regions = np.zeros(size[0] * size[1], np.int32)
    areas = np.bitwise_count(masks).sum(1, dtype=np.int64)
    for number, i in enumerate(np.argsort(areas, kind="stable"), 1):
        regions[np.unpackbits(masks[i], count=regions.size).view(bool)] = number
    return regions.reshape(size)


def load_network(network: str, weights: str) -> nn.Module:
    """A network of transformers in float32 from a folder, from OVSS_WEIGHTS, or from huggingface.co (cached).

    Raises OvssError for missing or damaged weights, or those of another network.
    """
    import transformers

    name = weights.rpartition("/")[2]
    places = (user_path(weights), *(folder / name for folder in weights_folders()))
    source = next((str(folder) for folder in places if (folder / "config.json").is_file()), weights)
    local = source != weights or Path(weights).exists() or weights.count("/") != 1
    try:
        with nullcontext() if local else hub():
            return whole_network(getattr(transformers, network), source, local_files_only=local, dtype=torch.float32)
    except OvssError:
        raise
    except Exception as error:  # parsers and downloads raise nearly anything
        if local:
            raise OvssError(
                f"{source} is not a folder with weights of {network} in transformers' layout (config.json, model.safetensors; "
                f"{short(error)}). Give a folder made by `hf download REPOSITORY --local-dir FOLDER`."
            ) from error
        hint = f"move the folder {name} to {WEIGHTS_FOLDER}, or give its path: settings.weights=/path/to/{name}"
        raise download_failed(f"the weights {weights}", f"https://huggingface.co/{weights}", error, hint) from error
