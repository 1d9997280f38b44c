"""Small deterministic things to give methods for what they need beside CLIP: functions of the pixels, alike for every batch."""

import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import mmseg
import numpy as np
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.config.recipe import segmentor_config
from ovss_bench.files import config_names, load_config
from tiny_networks import shake
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


def sam(image):
    """Two heads on a 6 x 8 grid: attention by similar colour; for each prompt the mask is its box."""
    values = F.adaptive_avg_pool2d(torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255 - 0.5, (6, 8))
    similarity = -torch.cdist(*2 * [values.flatten(1).T])

    def decode(boxes, points, prompt):
        factor = max(image.shape[:2]) / 1024
        y, x = torch.arange(image.shape[0])[:, None], torch.arange(image.shape[1])
        inside = [
            (x >= a * factor) & (x <= c * factor) & (y >= b * factor) & (y <= d * factor) for a, b, c, d in boxes.tolist()
        ]
        return torch.stack(inside) * 4.0 - 2, torch.linspace(0.95, 0.7, len(boxes))

    attention = torch.stack([(scale * similarity).softmax(-1) for scale in (2, 5)])
    return SimpleNamespace(values=values.expand(2, -1, -1, -1), attention=attention, decode=decode)


def concepts(image, prompts, side=None):
    """Four instances on a 12 x 12 grid and a semantic map: mixtures of the colours, which depend on the text of a prompt."""
    cells = F.adaptive_avg_pool2d(torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255, (12, 12)) - 0.5
    drawn = torch.stack([torch.linspace(0, 40, 24).mul(1 + zlib.crc32(text.encode()) % 97 / 97).sin() for text in prompts])
    masks = 8 * torch.einsum("knd,dhw->knhw", drawn[:, :15].unflatten(1, (5, 3)), cells)
    return masks[:, :4], masks[:, 4], 2 * drawn[:, 15:19], 2 * drawn[:, 19] + (side is None)


# External systems: why their images cannot be predicted with stand-ins.
OUTSIDE = {
    "labels": "reads the files of a data set's images: test_labels.py",
    "command": "reads what a program writes for the images of a data set: test_command.py",
    "mmseg": "another library's network with preprocessing of its own: test_mmseg_model.py",
}
# The project's other methods; those on CLIP; and the recipes of a method without CLIP that lead to other code than its own.
METHODS = sorted(
    name
    for name, method in ob.SEGMENTORS.module_dict.items()
    if method.__module__.startswith("ovss_bench.") and name not in OUTSIDE
)
ON_CLIP = [name for name in METHODS if ob.SEGMENTORS.get(name).uses_clip]
PRESETS = [
    name for name in config_names("segmentor") if load_config("segmentor", name).get("method") in {*METHODS} - {*ON_CLIP}
]
SOURCES = {"vfm": vfm, "regions": regions, "foreground": foreground, "diffusion": diffusion, "sam": sam, "concepts": "demo"}


STEPS = sorted(ob.STEPS.modules)


def needs_of(step):
    """What a step cannot do without; for floss also see `given_experts`."""
    return {"region_vote": {"regions": regions}, "floss": {"ranking": __file__}}.get(step, {})


def mmseg_files(folder, classes):
    """The config and checkpoint of mmseg's smallest SegFormer with random weights."""
    from mmengine import Config
    from mmengine.model import revert_sync_batchnorm
    from mmseg.apis import init_model

    config, checkpoint = folder / "config.py", folder / "checkpoint.pth"
    base = Path(mmseg.__file__).parent / ".mim" / "configs" / "_base_" / "models" / "segformer_mit-b0.py"
    config.write_text(
        f"_base_ = [{str(base)!r}]\nmodel = dict(decode_head=dict(num_classes={len(classes)}))\n"
        "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]\n"
    )
    torch.manual_seed(0)
    network = shake(revert_sync_batchnorm(init_model(Config.fromfile(config), device="cpu")))
    meta = {"dataset_meta": {"classes": list(classes)}}
    torch.save({"state_dict": network.state_dict(), "meta": meta}, checkpoint)
    return config, checkpoint


def outside_of(name, folder, classes):
    """What an external system cannot do without, with an empty folder of label maps."""
    needed = ob.SEGMENTORS.get(name).requires
    if "path" in needed:
        return {"path": str(folder), "allow_missing": True}
    if "concepts" in needed:
        return {"concepts": "demo"}
    if "command" in needed:
        return {"command": f"{sys.executable} {Path(__file__).with_name('outside_program.py')} npy 0"}
    return dict(zip(needed, map(str, mmseg_files(folder, classes)), strict=True)) if "config" in needed else {}


def method_of(name):
    """The class behind a recipe."""
    return segmentor_config(name)[1]


def sources_of(name, joint=64):
    """The stand-ins for what a segmentor takes; `joint`: the channels of the texts, for checkpoints of trained methods."""
    own = method_of(name).hyperparameters()
    return {kind: source for kind, source in SOURCES.items() if kind in own} | weights_of(name, joint)
