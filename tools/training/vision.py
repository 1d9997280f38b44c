"""The demo vision encoder: a ViT trained by self-distillation on drawn scenes, without labels or captions.

As in DINO (Caron et al., ICCV 2021) a student learns the assignments of its own moving average to learnt prototypes, from
another view of the image; as in iBOT (Zhou et al., ICLR 2022) patch by patch and with some patches masked; the assignments are
balanced by Sinkhorn iterations as in SwAV (Caron et al., NeurIPS 2020). What is our own: the target of a patch is not the
patch at the same place but one a few pixels away, because neighbours mostly belong to one thing. In patterned cloth that makes
the features those of the cloth, where the same place would make them those of the thread.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ovss_bench.datasets.scenes import DEMO_CLOTHS, GROUNDS, draw_scene

from .canvases import CANVAS, Training, draw_canvases

SIZE, PATCH = 40, 4
GRID = SIZE // PATCH
HEADS = 4
IMAGENET_MEAN, IMAGENET_STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def vit() -> VisionTransformer:
    return VisionTransformer(img_size=SIZE, patch_size=PATCH, embed_dim=128, depth=6, num_heads=HEADS, num_classes=0)


class Student(nn.Module):
    """The encoder, a mask token, and a head of prototypes on its patches."""

    def __init__(self, prototypes: int) -> None:
        super().__init__()
        self.encoder = vit()
        self.mask = nn.Parameter(torch.zeros(self.encoder.embed_dim))
        self.head = nn.Sequential(nn.Linear(self.encoder.embed_dim, 256), nn.GELU(), nn.Linear(256, 64))
        self.prototypes = nn.Linear(64, prototypes, bias=False)

    def forward(self, pixels: Tensor, masked: Tensor | None = None) -> Tensor:
        """(B, 3, SIZE, SIZE), masked patches (B, N) bool -> cosines of the patches with the prototypes (B, N, P)."""
        x = self.encoder.patch_embed(pixels)
        if masked is not None:
            x = torch.where(masked[..., None], self.mask.to(x.dtype), x)
        x = self.encoder.norm(self.encoder.blocks(self.encoder._pos_embed(x)))[:, 1:]
        return F.normalize(self.head(x).float(), dim=-1) @ F.normalize(self.prototypes.weight, dim=-1).T


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
    """Another brightness, a slightly other colour and some noise for each view; then ImageNet's normalisation."""
    gain = torch.empty(len(pixels), 3, 1, 1).uniform_(-0.06, 0.06, generator=generator)
    gain += torch.empty(len(pixels), 1, 1, 1).uniform_(0.85, 1.15, generator=generator)
    noise = torch.randn(pixels.shape, generator=generator) * 0.012
    return ((pixels * gain + noise).clamp(0, 1) - IMAGENET_MEAN.view(3, 1, 1)) / IMAGENET_STD.view(3, 1, 1)


def balanced_assignments(cosines: Tensor, temperature: float = 0.05, iterations: int = 3) -> Tensor:
    """Sinkhorn: (..., P) -> assignments with rows of sum 1 in which all prototypes are used alike."""
    assignment = ((cosines - cosines.amax()) / temperature).exp().flatten(0, -2)
    for _ in range(iterations):
        assignment = assignment / assignment.sum(0).clamp(min=1e-12)
        assignment = assignment / assignment.sum(1, keepdim=True).clamp(min=1e-12)
    return assignment.view_as(cosines)


def step_loss(student: Student, teacher: Student, canvases: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    """Cross entropy of the student's patches with the assignments of the teacher's patches nearby, in the other view."""
    batch = len(canvases)
    centre = torch.empty(batch, 2).uniform_(20, CANVAS - 20, generator=generator)
    shift = torch.empty(batch, 2).uniform_(-6, 6, generator=generator)
    views = [Views(batch, centre, generator), Views(batch, centre + shift, generator)]
    seen = [jitter(view.pixels(canvases), generator) for view in views]
    pixels = torch.cat(seen)
    share = torch.rand(2 * batch, 1, generator=generator) * 0.7 - 0.2  # none at all for two views in seven
    masked = torch.rand(2 * batch, GRID**2, generator=generator) < share
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        with torch.no_grad():
            target = balanced_assignments(teacher(pixels))
        logits = student(pixels, masked) / 0.1
    total, count = torch.zeros(()), 0
    for own, other in ((0, 1), (1, 0)):
        places = views[own].place(lattice(GRID).expand(batch, -1, -1))
        angle = torch.rand(batch, GRID**2, generator=generator) * 2 * math.pi
        radius = torch.rand(batch, GRID**2, generator=generator).sqrt() * reach
        points = views[other].find(places + torch.stack([angle.cos(), angle.sin()], -1) * radius[..., None])
        inside = (points.abs() < 1).all(-1)
        cell = ((points.clamp(-0.999, 0.999) + 1) / 2 * GRID).long()
        rows = target[other * batch : (other + 1) * batch].gather(
            1, (cell[..., 1] * GRID + cell[..., 0])[..., None].expand(-1, -1, target.shape[2])
        )
        entropy = -(rows * logits[own * batch : (own + 1) * batch].log_softmax(-1)).sum(-1)
        total, count = total + entropy[inside].sum(), count + int(inside.sum())
    return total / max(count, 1)


@torch.no_grad()
def same_piece(encoder: VisionTransformer, seed: int = 7, scenes: int = 24) -> float:
    """How well the cosine of two patches tells whether they show the same piece: area under the ROC curve in percent, over
    pairs of pure patches of one scene that are at least 16 pixels apart. Index maps are used for this number alone."""
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
    student = Student(args.prototypes)
    teacher = copy.deepcopy(student).requires_grad_(False)
    groups = [
        {"params": [p for p in student.parameters() if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in student.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / args.steps))
    )
    parts = {"student": student, "teacher": teacher, "optimizer": optimizer, "schedule": schedule}
    training = Training(args.out, args.steps, args.every, parts)
    canvases = np.stack([image for image, *_ in draw_canvases(args.canvases, args.seed)])
    for step in range(training.start, args.steps):
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        chosen = torch.randperm(len(canvases), generator=generator)[: args.batch].numpy()
        batch = torch.from_numpy(canvases[chosen]).permute(0, 3, 1, 2).float() / 255
        loss = step_loss(student, teacher, batch, args.reach, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        momentum = 1 - 0.01 * (0.5 + 0.5 * math.cos(math.pi * step / args.steps))
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 1 - momentum)
        if training.due(step, loss.item()):
            training.keep(step, same_piece=same_piece(teacher.encoder.eval()))
            half = {name: t.half().contiguous() for name, t in teacher.encoder.state_dict().items()}
            save_file(half, args.out / "demo_vision.safetensors", {"heads": json.dumps(HEADS), "layer_norm_eps": "1e-6"})


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/train_vision"))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--canvases", type=int, default=24000, help="scenes drawn before the training")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--prototypes", type=int, default=256)
    parser.add_argument("--reach", type=float, default=6.0, help="how many pixels the target of a patch is away, at most")
