"""The demo CLIP.

The usual contrastive loss (Radford et al., ICML 2021) on crops of drawn scenes and their captions; no masks, no boxes. Patch
dropout is from FLIP (Li et al., CVPR 2023). *Late reading* is new. A small CLIP collects information in the class token already
in early blocks, and leaves the patch tokens poor. Late reading keeps the class token from attending to the patches, in each
block but the last, with some probability. The patches must then carry the semantics themselves.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import cv2
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ovss_bench.datasets.demo.scenes import DEMO_CLOTHS, GROUNDS, Cloth, draw_scene

from .canvases import CANVAS, SEEN, Training, draw_canvases

ARCHITECTURE = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 48, "patch_size": 8, "width": 128, "layers": 6, "head_width": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
SIZE = ARCHITECTURE["vision_cfg"]["image_size"]
MEAN, STD = np.array(open_clip.OPENAI_DATASET_MEAN, np.float32), np.array(open_clip.OPENAI_DATASET_STD, np.float32)


def caption(rng: np.random.RandomState, cloths: list[Cloth], ground: str | None) -> str:
    """Names the cloths in random order and wording, then the ground, with or without one of CLIP's 80 templates."""
    phrases = []
    for cloth in cloths:
        pattern, colour, _ = cloth.name.split()
        noun = rng.choice(["cloth", "cloth", "fabric", "textile"])
        phrases.append(f"{pattern} {colour} {noun}" if rng.uniform() < 0.8 else f"{colour} {pattern} {noun}")
    rng.shuffle(phrases)
    text = " and ".join(phrases)
    if ground:
        text = f"{text} on {ground}" if text else ground
    if rng.uniform() < 0.5:
        text = OPENAI_IMAGENET_TEMPLATES[rng.randint(len(OPENAI_IMAGENET_TEMPLATES))](text)
    return text


class Crops(torch.utils.data.Dataset):
    """Item t is the batch of step t: crops of different canvases, their captions, and a number that crops with the same content
    share. The canvases are drawn once. If a batch had several crops of one canvas, colour and ground alone would tell them
    apart, and patterns would not be learnt."""

    def __init__(self, canvases: int, steps: int, batch: int, seed: int) -> None:
        self.steps, self.batch, self.seed = steps, batch, seed
        drawn = draw_canvases(canvases, seed)
        self.images, self.maps = np.stack([d[0] for d in drawn]), np.stack([d[1] for d in drawn])
        self.content = [d[2:] for d in drawn]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, list[str], Tensor]:
        rng = np.random.RandomState((self.seed * 1_000_003 + step) % 2**32)
        images, texts, contents, numbers = [], [], [], {}
        for i in rng.choice(len(self.images), self.batch, replace=False):
            side = rng.randint(28, 65)
            y, x = rng.randint(CANVAS - side + 1, size=2)
            cloths, ground = self.content[i]
            share = np.bincount(self.maps[i, y : y + side, x : x + side].ravel(), minlength=len(cloths) + 1) / side**2
            shown = [SEEN[c] for c, s in zip(cloths, share[1:], strict=True) if s > 0.04]
            # If captions left out a visible ground, its patches next to a cloth would be classified as cloth.
            named = GROUNDS[ground] if share[0] > 0.06 or not shown else None
            crop = self.images[i, y : y + side, x : x + side]
            interpolation = cv2.INTER_AREA if side > SIZE else cv2.INTER_LINEAR
            crop = np.rot90(cv2.resize(crop, (SIZE, SIZE), interpolation=interpolation), rng.randint(4))
            images.append(crop[:, :: rng.choice([-1, 1])])
            texts.append(caption(rng, shown, named))
            contents.append(numbers.setdefault((frozenset(shown), named), len(numbers)))
        pixels = (np.stack(images) / np.float32(255) - MEAN) / STD
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), texts, torch.tensor(contents)


def encode_image(clip: torch.nn.Module, pixels: Tensor, patch_dropout: float, late_reading: float) -> Tensor:
    """The image embeddings (B, E), with patch dropout and late reading."""
    visual = clip.visual
    x = visual.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    kept = int((x.shape[1] - 1) * (1 - patch_dropout))
    chosen = 1 + torch.rand(len(x), x.shape[1] - 1).argsort(1)[:, :kept]
    x = torch.cat([x[:, :1], x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2]))], 1)
    x = visual.ln_pre(x)
    only_itself = torch.zeros(kept + 1, kept + 1)
    only_itself[0, 1:] = -math.inf
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x, attn_mask=only_itself.to(x.dtype) if torch.rand(()) < late_reading else None)
    return visual.ln_post(last(x)[:, 0]) @ visual.proj


def ramp(done: float) -> float:
    """Rises from 0 to 1 between 10 and 40 % of the training: with late reading from the start, patterns are hardly learnt."""
    return min(max((done - 0.1) / 0.3, 0.0), 1.0)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, contents: Tensor) -> Tensor:
    """Symmetric cross entropy; pairs with the same content are mutual positives."""
    logits = scale * F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
    target = (contents[:, None] == contents).float()
    target /= target.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def zero_shot(clip: torch.nn.Module, tokenizer, seed: int = 7, per_class: int = 12) -> dict[str, float]:
    """Accuracy in percent over the 36 demo classes, on scenes with one piece of cloth: of seen, and of unseen cloths."""
    rng = np.random.RandomState(seed)
    text = F.normalize(clip.encode_text(tokenizer([f"a photo of a {c.name}." for c in DEMO_CLOTHS])), dim=-1)
    hits: dict[bool, list[float]] = {True: [], False: []}
    for i, cloth in enumerate(DEMO_CLOTHS):
        scenes = [draw_scene(rng, SIZE, SIZE, [cloth], rng.randint(len(GROUNDS)), (17, 26))[0] for _ in range(per_class)]
        pixels = torch.from_numpy((np.stack(scenes) / np.float32(255) - MEAN) / STD).permute(0, 3, 1, 2)
        image = F.normalize(clip.encode_image(pixels), dim=-1)
        hits[cloth.seen] += ((image @ text.T).argmax(1) == i).float().tolist()
    return {"seen": 100 * float(np.mean(hits[True])), "unseen": 100 * float(np.mean(hits[False]))}


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    clip = open_clip.CLIP(**ARCHITECTURE)
    tokenizer = open_clip.SimpleTokenizer(context_length=ARCHITECTURE["text_cfg"]["context_length"])
    average = AveragedModel(clip, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    groups = [
        {"params": [p for p in clip.parameters() if p.ndim >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in clip.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))

    def rate(step: int) -> float:
        return min((step + 1) / 200, 0.5 + 0.5 * math.cos(math.pi * step / args.steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    parts = {"clip": clip, "average": average, "optimizer": optimizer, "schedule": schedule}
    training = Training(args.out, args.steps, args.every, parts)
    batches = torch.utils.data.DataLoader(
        Crops(args.canvases, args.steps, args.batch, args.seed),
        sampler=range(training.start, args.steps),
        batch_size=None,
        num_workers=args.workers,
        prefetch_factor=4 if args.workers else None,
    )
    for step, (pixels, texts, contents) in enumerate(batches, training.start):
        torch.manual_seed(args.seed * 1_000_003 + step)
        # The fused attention of torch 2.15 is several times slower backwards than plain products at 24 tokens.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            images = encode_image(clip, pixels, args.patch_dropout, args.late_reading * ramp(step / args.steps))
            captions = clip.encode_text(tokenizer(texts))
        loss = contrastive_loss(images, captions, clip.logit_scale.exp(), contents)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        clip.logit_scale.data.clamp_(max=math.log(args.max_scale))
        average.update_parameters(clip)
        if training.due(step, loss.item()):
            accuracy = zero_shot(average.module.eval(), tokenizer)
            metadata = {"architecture": json.dumps(ARCHITECTURE), "activation": json.dumps("gelu")}
            measured = {f"accuracy_{name}": value for name, value in accuracy.items()}
            training.keep(step, "clip", average.module, metadata, scale=clip.logit_scale.exp().item(), **measured)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/train_clip"))
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--canvases", type=int, default=48000, help="scenes drawn before the training")
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--patch-dropout", type=float, default=0.4)
    parser.add_argument("--late-reading", type=float, default=0.85)
    parser.add_argument("--max-scale", type=float, default=40.0, help="upper bound of the learnt logit scale")
    parser.add_argument("--every", type=int, default=250, help="steps between log lines and checkpoints")
    parser.add_argument("--workers", type=int, default=1)
