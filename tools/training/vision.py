"""The demo vision encoder: a ViT trained on drawn scenes without labels, captions or index maps.

The objective is redundancy reduction between two views, as in Barlow Twins (Zbontar et al., ICML 2021), on patches, as in
VICRegL (Bardes et al., NeurIPS 2022). Three changes are new; without any one of them, the features group patches worse than
mean colours do. The positive of a patch in the other view is not the patch at the same place but one a few pixels away, which
mostly shows the same object. Embeddings are centred per image, so that what all its patches have in common does not help. Each
view is a collage of two images, so that a patch cannot be inferred from the rest of its image. Self-distillation to prototypes,
as in DINO and iBOT, was tried first and fell below mean colours within 300 steps.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ovss_bench.datasets.demo.scenes import DEMO_CLOTHS, GROUNDS, draw_scene

from .canvases import CANVAS, Training, draw_canvases

SIZE, PATCH = 40, 4
GRID = SIZE // PATCH
HEADS = 4
IMAGENET_MEAN, IMAGENET_STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def vit() -> VisionTransformer:
    return VisionTransformer(img_size=SIZE, patch_size=PATCH, embed_dim=128, depth=6, num_heads=HEADS, num_classes=0)


class Embedding(nn.Module):
    """The encoder and a projector on its patches."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = vit()
        self.projector = nn.Sequential(nn.Linear(self.encoder.embed_dim, 256), nn.GELU(), nn.Linear(256, 96))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, SIZE, SIZE) -> embeddings of the patches (B, N, 96)."""
        return self.projector(self.encoder.forward_features(pixels)[:, 1:])


class Views:
    """A square cut out of each canvas at a random place, size and angle."""

    def __init__(self, batch: int, centre: Tensor, generator: torch.Generator) -> None:
        side = torch.empty(batch).uniform_(22, 48, generator=generator)
        angle = torch.empty(batch).uniform_(0, 2 * math.pi, generator=generator)
        cos, sin = angle.cos(), angle.sin()
        self.matrix = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1) * (side / 2)[:, None, None]
        self.centre = centre

    def place(self, points: Tensor) -> Tensor:
        """Points (B, M, 2) of the view, -1..1, as (x, y) in pixels of the canvas."""
        return points @ self.matrix.transpose(1, 2) + self.centre[:, None]

    def find(self, places: Tensor) -> Tensor:
        return (places - self.centre[:, None]) @ torch.linalg.inv(self.matrix).transpose(1, 2)

    def pixels(self, canvases: Tensor) -> Tensor:
        """(B, 3, SIZE, SIZE) of the canvases (B, 3, CANVAS, CANVAS)."""
        points = self.place(lattice(SIZE).expand(len(canvases), -1, -1)) * 2 / CANVAS - 1
        return F.grid_sample(canvases, points.unflatten(1, (SIZE, SIZE)), padding_mode="reflection", align_corners=False)


def lattice(count: int) -> Tensor:
    """(1, count^2, 2): the centres (x, y) of count x count cells in -1..1, row by row."""
    line = (torch.arange(count) + 0.5) * 2 / count - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)[None]


def jitter(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Changes brightness and, slightly, colour for each view, adds noise, and applies ImageNet's normalisation."""
    gain = torch.empty(len(pixels), 3, 1, 1).uniform_(-0.06, 0.06, generator=generator)
    gain += torch.empty(len(pixels), 1, 1, 1).uniform_(0.85, 1.15, generator=generator)
    noise = torch.randn(pixels.shape, generator=generator) * 0.012
    return ((pixels * gain + noise).clamp(0, 1) - IMAGENET_MEAN.view(3, 1, 1)) / IMAGENET_STD.view(3, 1, 1)


def collage(pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Replaces one side of a random line in each image by the next one. Returns the images and the kept patches (B, N)."""
    angle = torch.rand(len(pixels), 1, generator=generator) * 2 * math.pi
    offset = torch.rand(len(pixels), 1, generator=generator) - 0.5
    x, y = lattice(GRID)[0].unbind(1)
    kept = x * angle.cos() + y * angle.sin() > offset
    mask = F.interpolate(kept.view(-1, 1, GRID, GRID).float(), scale_factor=PATCH)
    return pixels * mask + pixels.roll(1, 0) * (1 - mask), kept


def step_loss(model: Embedding, canvases: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    """The distance of the cross-correlation of the partners' embeddings from the identity."""
    batch = len(canvases)
    centre = torch.empty(batch, 2).uniform_(20, CANVAS - 20, generator=generator)
    shift = torch.empty(batch, 2).uniform_(-6, 6, generator=generator)
    views = [Views(batch, centre, generator), Views(batch, centre + shift, generator)]
    collages = [collage(jitter(view.pixels(canvases), generator), generator) for view in views]
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        embeddings = model(torch.cat([pixels for pixels, _ in collages])).float().unflatten(0, (2, batch))
    kept = torch.stack([kept for _, kept in collages])
    weight = kept[..., None].float()
    embeddings = embeddings - (embeddings * weight).sum((0, 2), keepdim=True) / weight.sum((0, 2), keepdim=True).clamp(min=1)
    anchor, partner = [], []
    for view, other in ((0, 1), (1, 0)):
        places = views[view].place(lattice(GRID).expand(batch, -1, -1))
        angle = torch.rand(batch, GRID**2, generator=generator) * 2 * math.pi
        radius = torch.rand(batch, GRID**2, generator=generator).sqrt() * reach
        points = views[other].find(places + torch.stack([angle.cos(), angle.sin()], -1) * radius[..., None])
        cell = ((points.clamp(-0.999, 0.999) + 1) / 2 * GRID).long()
        cell = cell[..., 1] * GRID + cell[..., 0]
        valid = (points.abs() < 1).all(-1) & kept[view] & kept[other].gather(1, cell)
        anchor.append(embeddings[view][valid])
        partner.append(embeddings[other].gather(1, cell[..., None].expand(-1, -1, embeddings.shape[-1]))[valid])
    anchor, partner = ((x - x.mean(0)) / x.std(0).clamp(min=1e-4) for x in (torch.cat(anchor), torch.cat(partner)))
    correlation = anchor.T @ partner / len(anchor)
    diagonal = correlation.diagonal()
    return (1 - diagonal).square().sum() + 0.02 * (correlation.square().sum() - diagonal.square().sum())


@torch.no_grad()
def same_piece(encoder: VisionTransformer, seed: int = 7, scenes: int = 24) -> float:
    """How well the cosine of two patches tells whether they show the same piece: area under the ROC curve in percent, over
    pairs of pure patches of one scene that are at least 16 pixels apart. Index maps are used only here."""
    rng, areas = np.random.RandomState(seed), []
    for _ in range(scenes):
        cloths = [DEMO_CLOTHS[i] for i in rng.choice(len(DEMO_CLOTHS), 4, replace=False)]
        image, index = draw_scene(rng, 120, 120, cloths, rng.randint(len(GROUNDS)))
        pixels = torch.from_numpy(image[:, :, :]).permute(2, 0, 1)[None].float() / 255
        pixels = F.interpolate(pixels, (160, 160), mode="bilinear")
        pixels = (pixels - IMAGENET_MEAN.view(3, 1, 1)) / IMAGENET_STD.view(3, 1, 1)
        tiles = F.unfold(pixels, SIZE, stride=SIZE)[0].T.reshape(-1, 3, SIZE, SIZE)
        x = encoder.forward_features(tiles)[:, 1:].unflatten(0, (4, 4)).unflatten(2, (GRID, GRID))
        x = F.normalize(x.permute(0, 2, 1, 3, 4).reshape(1600, -1), dim=-1)
        blocks = index.reshape(40, 3, 40, 3).transpose(0, 2, 1, 3).reshape(1600, 9)
        pure = np.flatnonzero((blocks == blocks[:, :1]).all(1))
        chosen = rng.choice(pure, 300, replace=False)
        cosines = (x[chosen] @ x[chosen].T).numpy()
        labels, place = blocks[chosen, 0], np.stack([chosen // 40, chosen % 40], 1)
        far = np.abs(place[:, None] - place).max(-1) >= 4
        same = (labels[:, None] == labels) & far
        ranks = cosines[far].argsort().argsort()
        positive = same[far]
        n, m = positive.sum(), (~positive).sum()
        areas.append((ranks[positive].sum() - n * (n - 1) / 2) / (n * m))
    return 100 * float(np.mean(areas))


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model = Embedding()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.02},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * step / args.steps))
    )
    parts = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
    training = Training(args.out, args.steps, args.every, parts)
    canvases = np.stack([image for image, *_ in draw_canvases(args.canvases, args.seed)])
    for step in range(training.start, args.steps):
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        chosen = torch.randperm(len(canvases), generator=generator)[: args.batch].numpy()
        batch = torch.from_numpy(canvases[chosen]).permute(0, 3, 1, 2).float() / 255
        loss = step_loss(model.train(), batch, args.reach, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        if training.due(step, loss.item()):
            encoder = average.module.encoder.eval()
            metadata = {"heads": str(HEADS), "layer_norm_eps": "1e-6"}
            training.keep(step, "vision", encoder, metadata, same_piece=same_piece(encoder))


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/train_vision"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--canvases", type=int, default=24000, help="scenes drawn before the training")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--reach", type=float, default=6.0, help="largest distance of a patch's partner, in pixels")
    parser.add_argument("--every", type=int, default=100, help="steps between log lines and checkpoints")
