"""Checks whether an image fits into memory before it is processed: an error is better than swapping or the OOM killer."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import OvssError
from ..segmentors.base import Segmentor
from .forward import PendingImage

CGROUP = Path("/sys/fs/cgroup")


def check_memory(segmentors: Sequence[Segmentor], image: PendingImage) -> None:
    """Raises OvssError if one of the methods needs more than the free memory for this image."""
    free = free_memory(segmentors[0].clip.device)
    needs = [least_memory(segmentor, image, number) for number, segmentor in enumerate(segmentors)]
    needed = max(needs)
    if free is not None and needed > free:
        segmentor = segmentors[needs.index(needed)]
        height, width = image.contexts[0].original.shape[:2]
        raise OvssError(
            f"out of memory: {segmentor.recipe.segmentor} needs at least {needed / 2**30:.1f} GiB for image {image.key} of "
            f"{height} x {width} pixels (height x width), and {free / 2**30:.1f} GiB are free. Use a smaller "
            "recipe.short_side or recipe.long_side, windows (recipe.window=224), or a machine with more memory."
        )


def least_memory(segmentor: Segmentor, image: PendingImage, number: int) -> int:
    """A lower bound in bytes: the tokens and attention maps of one window, the logits of all windows, and the class maps of the
    whole image if the method or the recipe needs them."""
    clip, windows, context = segmentor.clip, image.windows, image.contexts[number]
    by_windows = segmentor.granularity != "image"
    cells = windows.rows.cells * windows.columns.cells if by_windows else context.pixels[0].numel() // clip.patch_size**2
    tokens = cells + 1
    needed = int(tokens * (clip.width + segmentor.attention_maps * clip.heads * tokens)) * clip.dtype.itemsize
    if by_windows:
        queries, (height, width) = len(segmentor.vocabulary.queries), context.size
        needed += 4 * queries * cells * len(windows.origins)
        whole = not segmentor.only_logits or segmentor.recipe.area_threshold
        needed += 4 * len(segmentor.vocabulary.classes) * height * width if whole else 0
    return needed


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still allocate: the least of free memory, cgroup limit and ulimit; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    limits = []
    try:
        facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text("utf-8").splitlines())
        limits.append(1024 * int(facts["MemAvailable"].split()[0]))
        limits.append(int((CGROUP / "memory.max").read_text("utf-8")) - int((CGROUP / "memory.current").read_text("utf-8")))
    except (OSError, KeyError, ValueError):  # not Linux, an old kernel, no cgroup, or one without a limit ("max")
        pass
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        limits.append(most - int(Path("/proc/self/statm").read_text("utf-8").split()[0]) * resource.getpagesize())
    return min(limits, default=None)
