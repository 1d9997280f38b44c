"""The provenance of a result: versions, source code, hardware, command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ..files import CONFIGS, code, digest
from .code import source_digest

if TYPE_CHECKING:
    import torch

PACKAGES = ("ovss-bench", "torch", "torchvision", "open_clip_torch", "numpy", "opencv-python", "onedl-mmcv")
PACKAGES += ("onedl-mmengine", "onedl-mmsegmentation", "hydra-core", "pillow", "timm")


def provenance(
    device: torch.device, source: Mapping[str, str] | None = None, plugins: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """`source` and `plugins`: the digests from `row_code`; by default `source` is the digest of the whole package."""
    import torch

    return {
        "command": " ".join([os.path.basename(sys.executable), *sys.argv]),
        "source_digest": source_digest(source or {"package": code(".")}, plugins or {}),
        "code": dict(source or {}),
        "plugins": dict(sorted((plugins or {}).items())),
        "git": _git(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": _processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "world_size": 1,
    }


def package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _git() -> dict[str, str] | None:
    """The commit and a digest of uncommitted changes; None outside a git checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(CONFIGS.parent), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        changes = git("status", "--porcelain") and git("diff", "HEAD")
        return {"commit": git("rev-parse", "HEAD").strip(), "uncommitted": digest(changes)[:16] if changes else ""}
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.processor())
    except OSError:
        return platform.processor()
