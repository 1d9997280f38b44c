"""The demo's CLIP-DINOiser: two convolutions on a middle layer of the demo CLIP, trained without labels on drawn scenes.

As in CLIP-DINOiser (Wysoczanska et al., ECCV 2024, section 3), both losses are binary cross-entropies. The teacher of the
similarities is the demo's vision encoder: patches belong together if the cosine of its values exceeds a threshold. The teacher
of the objects is the demo's FOUND. There is one difference: values are centred per window before the comparison, because those
of the demo encoder have a large common component. Index maps are used only to measure.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ovss_bench as ob
from ovss_bench.auxiliary.foreground import load_foreground
from ovss_bench.encoders.clip import DenseCLIP
from ovss_bench.encoders.vision import VisionEncoder
from ovss_bench.image import normalize, resize

from .canvases import Training
from .foreground import draw

SIDE, WINDOW, BLOCK = 192, 56, -3  # as in the recipe for clip=demo; the block as in the paper
SURE = 1e-4  # cosines are kept away from 0 and 1, where the cross-entropy is infinite


class Convolutions(nn.Module):
    """The trained part, with the names of the official checkpoint. The input is the maps G (B, D, h, w)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.obj_proj = nn.Conv2d(width, channels, 3, padding=1, padding_mode="replicate")
        self.bkg_decoder = nn.Conv2d(width, 1, 1)

    def similarities(self, middle: Tensor) -> Tensor:
        """Cosines (B, N, N) of all pairs of patches."""
        unit = F.normalize(self.obj_proj(middle), dim=1).flatten(2)
        return unit.transpose(1, 2) @ unit

    def objects(self, middle: Tensor) -> Tensor:
        """Logits (B, N)."""
        return self.bkg_decoder(F.normalize(middle, dim=1)).flatten(1)


@torch.no_grad()
def middle_features(clip: DenseCLIP, pixels: Tensor) -> Tensor:
    """Normalised windows (B, 3, H, W) -> input of the block's feed-forward network (B, D, h, w)."""
    index = clip.depth + BLOCK
    trunk = clip.trunk(pixels, keep_qkv=[index])
    block = clip.block(index, trunk.grid)
    x = trunk.states[index] + block.project(F.scaled_dot_product_attention(*clip.qkv(trunk, index)))
    return block.ln_2(x)[:, 1:].float().transpose(1, 2).unflatten(2, trunk.grid).clone()


@torch.no_grad()
def belong_together(encoder: VisionEncoder, pixels: Tensor, grid: tuple[int, int], threshold: float) -> Tensor:
    """Windows (B, 3, H, W), normalised for the encoder -> (B, N, N) bool on a grid."""
    values = F.adaptive_avg_pool2d(encoder.features(pixels), grid)
    unit = F.normalize(values - values.mean((2, 3), keepdim=True), dim=1).flatten(2)
    return unit.transpose(1, 2) @ unit > threshold


class Examples:
    """Windows of drawn scenes: `middle` (M, D, h, w), the teachers' `together` (M, N, N) and `objects` (M, N), and `same`
    (M, N, N): whether two patches show the same piece, by the index map."""

    def __init__(self, args: argparse.Namespace, clip: DenseCLIP) -> None:
        encoder, found = ob.load_vision(args.encoder, feature="v"), load_foreground(args.foreground)
        rng = np.random.RandomState(args.seed)
        parts: list[tuple[Tensor, ...]] = []
        for number in range(args.scenes):
            scene, index = draw(args.seed * 10_000_019 + number)
            image = resize(scene, "keep_ratio", SIDE, 2048, clip.patch_size)
            objects = torch.from_numpy(found(image))
            pieces = F.interpolate(torch.from_numpy(index)[None, None].float(), image.shape[:2], mode="nearest")[0, 0]
            places = [[rng.randint(side - WINDOW + 1) for side in image.shape[:2]] for _ in range(args.windows)]
            crops = [np.s_[y : y + WINDOW, x : x + WINDOW] for y, x in places]
            middle = middle_features(clip, torch.stack([normalize(image[crop], "clip") for crop in crops]))
            windows = torch.stack([normalize(image[crop], "imagenet") for crop in crops])
            grid = (middle.shape[2], middle.shape[3])
            covered = F.adaptive_avg_pool2d(torch.stack([objects[crop] for crop in crops])[:, None], grid).flatten(1)
            centres = F.interpolate(torch.stack([pieces[crop] for crop in crops])[:, None], grid, mode="nearest-exact").flatten(
                1
            )
            same = centres[:, :, None] == centres[:, None]
            parts.append((middle, belong_together(encoder, windows, grid, args.gamma), covered > 0.5, same))
        self.middle, self.together, self.objects, self.same = (torch.cat(part) for part in zip(*parts, strict=True))

    def __len__(self) -> int:
        return len(self.middle)


def losses(model: Convolutions, middle: Tensor, together: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of the similarities and of the objects."""
    cosines = model.similarities(middle).clamp(SURE, 1 - SURE)
    similar = F.binary_cross_entropy(cosines, together.float())
    return similar, F.binary_cross_entropy_with_logits(model.objects(middle), objects.float())


@torch.no_grad()
def agreement(decided: Tensor, same: Tensor) -> float:
    """Intersection over union, in percent, of the pairs decided to belong together and those of the same piece."""
    return 100 * float((decided & same).sum() / (decided | same).sum())


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    clip = ob.load_clip(args.clip)
    model = Convolutions(clip.width, args.channels)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps)
    training = Training(args.out, args.steps, args.every, {"model": model, "optimizer": optimizer, "schedule": schedule})
    examples = Examples(args, clip)
    kept = len(examples) - len(examples) // 10  # for training; the others measure
    middle, together, same = examples.middle[kept:], examples.together[kept:], examples.same[kept:]
    for step in range(training.start, args.steps):
        chosen = torch.from_numpy(
            np.random.RandomState(args.seed * 1_000_003 + step).choice(kept, min(args.batch, kept), False)
        )
        similar, objects = losses(model, *(part[chosen] for part in (examples.middle, examples.together, examples.objects)))
        loss = similar + objects
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if training.due(step, loss.item()):
            with torch.no_grad():
                found = model.similarities(middle) > args.gamma
            training.keep(
                step,
                "dinoiser",
                model,
                similar=similar.item(),
                objects=objects.item(),
                pairs=agreement(found, same),
                teacher=agreement(together, same),
            )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/train_dinoiser"))
    parser.add_argument("--clip", default="demo", help="an entry of configs/clip, or a file")
    parser.add_argument("--encoder", default="demo", help="teacher of the similarities: configs/vision, or a file")
    parser.add_argument("--foreground", default="demo", help="teacher of the objects: configs/foreground, or a file")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--windows", type=int, default=12, help="windows of each scene")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64, help="windows per step")
    parser.add_argument("--channels", type=int, default=64, help="channels of the features whose cosines are the similarities")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--gamma", type=float, default=0.2, help="cosine of the teacher above which two patches belong together"
    )
    parser.add_argument("--every", type=int, default=100, help="steps between log lines and checkpoints")
