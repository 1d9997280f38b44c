"""Small deterministic things to give methods for what they need beside CLIP: functions of the pixels, alike for every batch."""

import numpy as np
import torch
import torch.nn.functional as F

import ovss_bench as ob
from trained_networks import weights_of


def vfm(batch):
    """(B, 12, H, W) on cells of 8 pixels."""
    height, width = (max(side // 8, 1) for side in batch.pixels.shape[2:])
    mixture = torch.linspace(-2, 2, 36, device=batch.pixels.device).sin().view(12, 3)
    cells = F.adaptive_avg_pool2d(batch.pixels, (height, width))
    return torch.einsum("cd,bdhw->bchw", mixture, cells).sin()


def regions(image):
    """Tiles of 25 pixels, every fifth unsegmented."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] // 25
    ids = 1 + x + y * (int(x.max()) + 1)
    return np.where(ids % 5 == 0, 0, ids)


def foreground(image):
    return image[..., 0].astype(np.float32) / 255


def diffusion(image):
    """Two layers of two heads on an 8 x 8 grid: attention by similar colour."""
    cells = F.adaptive_avg_pool2d(torch.from_numpy(image).permute(2, 0, 1).float() / 255, (8, 8)).flatten(1).T
    similarity = -torch.cdist(cells, cells)
    return [torch.stack([(scale * similarity).softmax(-1), (2 * scale * similarity).softmax(-1)]) for scale in (2, 5)]


SOURCES = {"vfm": vfm, "regions": regions, "foreground": foreground, "diffusion": diffusion}


def sources_of(name, joint=64):
    """The stand-ins for what a segmentor takes; `joint`: the channels of the texts, for checkpoints of trained methods."""
    own = ob.SEGMENTORS.get(ob.compose_recipe(name).segmentor).hyperparameters()
    return {kind: source for kind, source in SOURCES.items() if kind in own} | weights_of(name, joint)
