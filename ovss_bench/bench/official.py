"""An evaluation loop in the style of the official code (SCLIP and its forks on mmseg), a baseline for speed only. Windows are
encoded one at a time, padded to the size of the image and added. All maps have full size in every step. Synonyms are merged by
a product with a one-hot mask, and pixels counted by `histc`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.base import SegDataset
from ..datasets.lists import Sample
from ..inference.engine import make_context
from ..segmentors.base import Segmentor
from ..types import WindowBatch


@torch.inference_mode()
def official_label_map(segmentor: Segmentor, image: np.ndarray) -> Tensor:
    """The label map (H, W) of an image (H, W, 3) uint8 RGB. Calls only two hooks of the method: `patch_logits`, for one window
    at a time, and `correct`."""
    recipe, vocabulary, device = segmentor.recipe, segmentor.vocabulary, segmentor.clip.device
    context = make_context(image, segmentor, image.shape[:2])
    context.pixels = context.pixels.to(device)
    pixels = context.pixels[None]
    height, width = pixels.shape[2:]
    window, stride = int(recipe.window), recipe.stride
    total = pixels.new_zeros(1, len(vocabulary.group), height, width)
    count = pixels.new_zeros(1, 1, height, width)
    for row in range(max(height - window + stride - 1, 0) // stride + 1):
        for column in range(max(width - window + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + window, height), min(column * stride + window, width)
            top, left = max(bottom - window, 0), max(right - window, 0)
            crop = pixels[:, :, top:bottom, left:right]
            padded = _to_multiple(crop, recipe.pad_multiple or segmentor.clip.patch_size) if recipe.pad == "center" else crop
            above, before = ((big - small) // 2 for big, small in zip(padded.shape[2:], crop.shape[2:], strict=True))
            origins, images = torch.tensor([[top - above, left - before]]), torch.zeros(1, dtype=torch.int64)
            logits = segmentor.patch_logits(WindowBatch(padded, origins, images, [context]))
            logits = F.interpolate(logits, padded.shape[2:], mode="bilinear")
            logits = logits[:, :, above : above + crop.shape[2], before : before + crop.shape[3]]
            total += F.pad(logits, (left, width - right, top, height - bottom))
            count[:, :, top:bottom, left:right] += 1
    cosines = F.interpolate(total / count, image.shape[:2], mode="bilinear")[0]
    scores = (cosines * recipe.logit_scale).softmax(0)
    classes = len(vocabulary.classes)
    if classes < len(vocabulary.group):
        group = torch.tensor(vocabulary.group, device=device)
        one_hot = (group == torch.arange(classes, device=device)[:, None]).to(scores)
        scores = (scores[None] * one_hot[..., None, None]).amax(1)
    labels = scores.argmax(0)
    if recipe.threshold > 0 and vocabulary.background is not None:
        labels[scores.amax(0) < recipe.threshold] = vocabulary.background
    return segmentor.correct(labels, context) if segmentor.correct else labels


def has_official_loop(segmentor: Segmentor) -> bool:
    """Whether the loop reproduces the method: it has sliding windows, and no hooks between logits and labels."""
    others = (segmentor.group_features, segmentor.prior, segmentor.scores, segmentor.decide)
    return (
        segmentor.granularity == "window" and segmentor.recipe.window != "whole" and not segmentor.refines and not any(others)
    )


def official_miou(dataset: SegDataset, samples: Iterable[Sample], label_maps: Iterable[Tensor]) -> float:
    """mIoU in percent over the classes that occur or are predicted, with counts as in mmseg's `IoUMetric`."""
    classes, counts = len(dataset.classes), []
    for sample, labels in zip(samples, label_maps, strict=True):
        target = torch.from_numpy(dataset.label(sample)).to(labels.device)
        valid = target != dataset.ignore_index
        labels, target = labels[valid], target[valid]
        parts = (labels[labels == target], labels, target)
        counts.append([torch.histc(part.float(), bins=classes, min=0, max=classes - 1).cpu() for part in parts])
    intersection, predicted, true = (torch.stack(each).double().sum(0) for each in zip(*counts, strict=True))
    return 100 * float((intersection / (predicted + true - intersection)).nanmean())


def _to_multiple(crop: Tensor, patch: int) -> Tensor:
    """Pads a window with zeros to multiples of the patch size; an odd pixel goes to the end (ClearCLIP)."""
    down, right = (-side % patch for side in crop.shape[2:])
    return F.pad(crop, (right // 2, right - right // 2, down // 2, down - down // 2))
