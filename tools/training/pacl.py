"""The demo's PACL: a vision embedder on the demo CLIP's patch tokens, trained on crops of drawn scenes and their captions.

The losses are those of PACL (Mukhoti et al., CVPR 2023), the pairs those of the demo CLIP, which is frozen. Pairs with the same
content are mutual positives, as in the training of the demo CLIP. No masks, no boxes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import ovss_bench as ob
from ovss_bench.encoders.clip import DenseCLIP, layer_norm
from ovss_bench.encoders.patch_embedder import PatchEmbedder, compatibility, contrastive_loss

from .canvases import Training
from .clip import Crops


@torch.no_grad()
def patch_tokens(clip: DenseCLIP, pixels: Tensor) -> Tensor:
    """Normalised crops (B, 3, H, W) -> patch tokens after CLIP's last LayerNorm (B, N, D)."""
    trunk = clip.trunk(pixels)
    x = clip.block(-1, trunk.grid)(trunk.tokens)[:, 1:]
    return layer_norm(x, clip.model.visual.ln_post, clip.layer_norm_eps).clone()


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    clip = ob.load_clip(args.clip)
    joint = clip.model.visual.proj.shape[1]
    embedder = PatchEmbedder(clip.width, args.hidden, joint).train()
    optimizer = torch.optim.AdamW(embedder.parameters(), lr=args.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps)
    parts = {"embedder": embedder, "optimizer": optimizer, "schedule": schedule}
    training = Training(args.out, args.steps, args.every, parts)
    crops = Crops(args.canvases, args.steps, args.batch, args.seed)
    for step in range(training.start, args.steps):
        pixels, texts, contents = crops[step]
        torch.manual_seed(args.seed * 1_000_003 + step)
        captions = clip.encode_text(texts).clone()
        fits = compatibility(embedder.patches(patch_tokens(clip, pixels)), captions, "softmax", args.scale)
        loss = contrastive_loss(fits, args.temperature, contents[:, None] == contents)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if training.due(step, loss.item()):
            training.keep(step, "pacl", embedder)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/train_pacl"))
    parser.add_argument("--clip", default="demo", help="an entry of configs/clip, or a file")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--canvases", type=int, default=2000, help="scenes drawn before the training")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--hidden", type=int, default=128, help="width of the embedder's inner layer")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--scale", type=float, default=10.0, help="factor of the similarities in the softmax over patches")
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--every", type=int, default=50, help="steps between log lines and checkpoints")
