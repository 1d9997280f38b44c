"""The demo's FOUND: a 1x1 convolution on the demo encoder's keys that separates cloth from ground, trained without labels.

As in FOUND (Siméoni et al., CVPR 2023), the first target comes from the keys alone: patches similar to a background seed are
background, the others foreground. Then the decoder is trained on its own predictions. There are two differences. FOUND's seed
is the patch that receives the least attention from the class token. The demo encoder's class token is not trained, so the seed
is the mean of the image's border, which cloth reaches in few places. Keys are centred per image before the comparison, because
those of the demo encoder have a large common component. Index maps are used only to measure.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ovss_bench.auxiliary.foreground import Found, keys
from ovss_bench.datasets.demo.scenes import GROUNDS, draw_scene, void_border
from ovss_bench.encoders.vision import load_vision

from .canvases import SEEN


def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A scene of three to five seen cloths, as large as the demo's, and its index map."""
    rng = np.random.RandomState(seed % 2**32)
    height, width = 8 * rng.randint(15, 21), 8 * rng.randint(21, 27)
    cloths = [SEEN[i] for i in rng.choice(len(SEEN), rng.randint(3, 6), replace=False)]
    return draw_scene(rng, height, width, cloths, rng.randint(len(GROUNDS)))


def coarse_foreground(features: Tensor, threshold: float) -> Tensor:
    """Keys (C, h, w) -> (h, w) bool: patches whose cosine with the mean key of the border is at most the threshold."""
    centred = F.normalize(features - features.mean((1, 2), keepdim=True), dim=0)
    border = torch.ones(features.shape[1:], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    seed = F.normalize(centred[:, border].mean(1), dim=0)
    return torch.einsum("chw,c->hw", centred, seed) <= threshold


def foreground_iou(found: Found, scenes: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Intersection over union of the pixels above 0.5 and all cloths, in percent, averaged over the scenes."""
    values = []
    for image, index in scenes:
        valid, target, predicted = ~void_border(index), index > 0, found(image) > 0.5
        values.append((predicted & target & valid).sum() / ((predicted | target) & valid).sum())
    return 100 * float(np.mean(values))


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    began = time.monotonic()
    encoder = load_vision(args.encoder, feature="k")
    first = args.seed * 10_000_019
    features = [keys(encoder, draw(first + number)[0])[0] for number in range(args.scenes)]
    target = torch.cat([coarse_foreground(part, args.threshold).flatten() for part in features]).float()
    x = torch.cat([part.flatten(1).T for part in features])
    mean, deviation = x.mean(0), x.std(0)
    weight, bias = torch.zeros(x.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=args.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, args.steps)
    generator = torch.Generator().manual_seed(args.seed)
    for step in range(args.steps):
        chosen = torch.randint(len(x), (args.batch,), generator=generator)
        logits = (x[chosen] - mean) / deviation @ weight + bias
        predicted = (logits.detach() > 0).float()
        loss = F.binary_cross_entropy_with_logits(logits, target[chosen] if 2 * step < args.steps else predicted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    weight = (weight / deviation).detach()
    bias = bias.detach() - mean @ weight
    found = Found(encoder, weight.view(1, -1, 1, 1), bias)
    tests = [draw(first - 1 - number) for number in range(24)]
    row = {"scenes": args.scenes, "steps": args.steps, "seconds": round(time.monotonic() - began)}
    row |= {"loss": round(loss.item(), 4), "foreground_iou": round(foreground_iou(found, tests), 2)}
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({"decoder.weight": found.weight, "decoder.bias": found.bias}, args.out / "demo_found.safetensors")
    (args.out / "log.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    print(row, flush=True)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/train_foreground"))
    parser.add_argument("--encoder", default="demo", help="an entry of configs/vision, or a file")
    parser.add_argument("--scenes", type=int, default=150)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=4096, help="patches per step")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--threshold", type=float, default=0.3, help="cosine with the border above which a patch is background")
