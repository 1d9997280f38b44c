"""Stand-ins for auxiliary models, which need no files: networks with random weights, measured like other encoders, and `given`
outputs, which are cached at the first call as if precomputed, and cost nothing."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoders.clip import DenseCLIP
from ..encoders.diffusion import load_diffusion
from ..encoders.vision import FeatureFolder, OncePerImage, VisionEncoder, load_vision
from ..ops.pictures import in_frame
from ..progress import Progress
from ..segmentors.base import Segmentor
from ..types import WindowBatch

REGIONS = 60  # in an image
HEADS, LAYERS = 5, 2  # of the attention maps that Stable Diffusion 2.1 gives CLIPer
LATENTS = 64  # side of the grid of these maps; 16 with a tiny CLIP
FRAME = 1024  # pixels of the long side of SAM's input
THIN = 4  # every fourth pixel of rows and columns is enough to tell images apart, at hardly any cost
CELL = 8  # pixels of a given feature: the patch of DINO ViT-B/8


class Given:
    """The outputs of a source, cached by input: each is computed once."""

    def __init__(self, source: Callable[[Any], Any]) -> None:
        self.source, self.known = source, {}
        self.patch_size = CELL

    def __call__(self, image: Any) -> Any:
        if not isinstance(image, WindowBatch):
            return self._kept(image[::THIN, ::THIN].tobytes(), lambda: self.source(image))
        pixels = image.pixels
        features = (
            self._kept(some.numpy().tobytes(), lambda each=window: self.source(each.cpu()).to(pixels.device))
            for some, window in zip(pixels[..., ::THIN, ::THIN].cpu(), pixels, strict=True)
        )
        return torch.stack(list(features))

    def _kept(self, content: bytes, compute: Callable[[], Any]) -> Any:
        key = hash(content)
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]


class Recorded:
    """A source that keeps the arguments of its calls while `calls` is a list."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.calls: list[Any] | None = None

    def __call__(self, argument: Any) -> Any:
        if self.calls is not None:
            self.calls.append(argument)
        return self.source(argument)

    def joined(self, batch: WindowBatch, join: Callable[[Tensor], Tensor]) -> Tensor:
        """Records a call of a vision encoder's `joined`."""
        if self.calls is not None:
            self.calls.append(batch)
        return self.source.joined(batch, join)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


def random_vision(clip: DenseCLIP, feature: str | None) -> VisionEncoder | OncePerImage | FeatureFolder:
    """A vision encoder in DINO's layout, with random weights and the size of the CLIP: a ViT-B/16 for a ViT-B/16."""
    generator = torch.Generator().manual_seed(1)
    width, patch, tokens = clip.width, clip.patch_size, clip.stored_grid[0] * clip.stored_grid[1] + 1
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, tokens, width), "patch_embed.proj.weight": (width, 3, patch, patch)}
    for block in (f"blocks.{i}." for i in range(clip.depth)):
        for name, sides in {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}.items():
            shapes[f"{block}{name}.weight"] = (sides[0] * width, sides[1] * width)
    state = {}
    for name, shape in shapes.items():
        fan_in = width if "weight" not in name else int(np.prod(shape[1:]))
        state[name] = torch.randn(shape, generator=generator) * (fan_in**-0.5 if "weight" in name else 1)
        if "weight" in name:
            state[name.replace("weight", "bias")] = torch.zeros(shape[0])
    for norm in ("norm", *(f"blocks.{i}.norm{n}" for i in range(clip.depth) for n in (1, 2))):
        state |= {f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.zeros(width)}
    heads = clip.model.visual.transformer.resblocks[0].attn.num_heads
    options = {"heads": heads, "feature": feature, "precision": clip.precision, "device": clip.device}
    return load_vision(state_dict=state, **options)


def stand_in(kind: str, clip: DenseCLIP, feature: str | None, given: bool) -> Given | Recorded:
    """A source of `kind`. `given`: features and attention maps of full size are given, instead of computed by a network."""
    if kind == "vfm":
        return Given(lambda pixels: _features(pixels, clip.width)) if given else Recorded(random_vision(clip, feature))
    if kind == "diffusion":
        side = LATENTS if clip.width >= 512 else LATENTS // 4
        return Given(lambda image: _attention(image, side)) if given else Recorded(load_diffusion("demo", device=clip.device))
    return Given({"regions": _regions, "foreground": _foreground, "sam": _sam}[kind])


def given_experts(segmentor: Segmentor, progress: Progress | None = None) -> Tensor:
    """Replaces FLOSS's classifiers (1 + Q, Q, E), which need texts and a ranking, by slightly perturbed features of the
    queries."""
    noise = torch.randn(1 + len(segmentor.text), *segmentor.text.shape, generator=torch.Generator().manual_seed(5))
    return segmentor.tensor(F.normalize(segmentor.text.cpu() + 0.05 * noise, dim=-1))


def _features(pixels: Tensor, width: int) -> Tensor:
    """A window (3, H, W) -> (width, H/8, W/8): random functions of the mean colours of cells."""
    generator = torch.Generator().manual_seed(2)
    rows, columns = (max(side // CELL, 1) for side in pixels.shape[1:])
    cells = F.adaptive_avg_pool2d(pixels.float(), (rows, columns))
    return torch.einsum("cd,dhw->chw", torch.randn(width, 3, generator=generator), cells).sin()


def _regions(image: np.ndarray) -> np.ndarray:
    """The Voronoi cells of random centres; the last cell is in no region."""
    random = np.random.RandomState(_seed(image))
    centres = random.rand(REGIONS, 2) * image.shape[:2]
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    distance = [(y - row) ** 2 + (x - column) ** 2 for row, column in centres]
    return (np.argmin(distance, 0) + 1) % REGIONS


def _foreground(image: np.ndarray) -> np.ndarray:
    """Random values (H, W) in 0..1, interpolated from a 5 x 5 grid."""
    random = torch.from_numpy(np.random.RandomState(_seed(image)).rand(1, 1, 5, 5).astype(np.float32))
    return F.interpolate(random, image.shape[:2], mode="bilinear")[0, 0].numpy()


def _sam(image: np.ndarray) -> SimpleNamespace:
    """HEADS heads of attention by colour, on a grid of SAM's shape; the mask of a prompt is its box."""
    size = in_frame((image.shape[0], image.shape[1]), FRAME)
    grid = max(size[0] // 16, 1), max(size[1] // 16, 1)
    values = F.adaptive_avg_pool2d(torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255, grid) - 0.5
    cells = values.flatten(1).T

    def decode(boxes: Tensor, points: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        y, x = torch.arange(image.shape[0])[:, None], torch.arange(image.shape[1])
        scale = max(image.shape) / FRAME
        inside = [(x >= a * scale) & (x <= c * scale) & (y >= b * scale) & (y <= d * scale) for a, b, c, d in boxes.tolist()]
        return torch.stack(inside) * 2.0 - 1, torch.ones(len(boxes))

    attention = torch.stack([(-scale * torch.cdist(cells, cells)).softmax(-1) for scale in torch.linspace(1, 9, HEADS)])
    return SimpleNamespace(values=values.expand(HEADS, -1, -1, -1), attention=attention, decode=decode)


def _attention(image: np.ndarray, side: int) -> list[Tensor]:
    """LAYERS tensors (HEADS, N, N) of N = side * side: softmax of the distances between cells in colour and place."""
    colours = F.adaptive_avg_pool2d(torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255, (side, side))
    places = torch.stack(torch.meshgrid(*2 * [torch.linspace(0, 1, side)], indexing="ij"))
    cells = torch.cat([colours, places]).flatten(1).T
    distance = torch.cdist(cells, cells)
    scales = torch.linspace(5, 30, LAYERS * HEADS)
    return [torch.stack([(-scale * distance).softmax(-1) for scale in some]) for some in scales.split(HEADS)]


def _seed(image: np.ndarray) -> int:
    return zlib.crc32(image.tobytes())
