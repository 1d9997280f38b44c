"""Resolves the name of a CLIP without loading it or importing torch."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ..errors import OvssError, unknown
from ..files import WEIGHTS, config_names, load_config, user_path


@dataclass(frozen=True)
class ClipSpec:
    """A CLIP that is not loaded yet: `name` and `pretrained` as in `load_clip`, `label` as in `clip_label`."""

    name: str
    pretrained: str | None
    label: str

    @classmethod
    def of(cls, text: str | Path, weights: str | None = None) -> ClipSpec:
        """From NAME, NAME:TAG or a file, and optionally a file of `weights`. Raises OvssError for an unknown name or a path
        without a file."""
        name, _, tag = (str(text), "", "") if user_path(text).is_file() else str(text).partition(":")
        if not user_path(name).is_file():
            check_name(name)
        pretrained = weights or tag or None
        if pretrained and not weights_file(pretrained):
            refuse_path(pretrained)
        return cls(name, pretrained, clip_label(name, pretrained))


NO_CLIP = ClipSpec("none", None, "none")  # for segmentors that use no CLIP


def check_name(name: str) -> None:
    """Raises OvssError for a name that neither configs/clip nor open_clip knows."""
    if name not in config_names("clip") and name not in architectures():
        refuse_path(name)
        raise unknown("clip", name, [*config_names("clip"), *architectures()])


def weights_file(name: str) -> Path | None:
    """The file at this path, or the bundled weights of this name; None if there is neither."""
    return next((path for path in (user_path(name), WEIGHTS / name) if path.is_file()), None)


def refuse_path(name: str | Path) -> None:
    """Raises OvssError for a name that can only be a path."""
    if os.sep in str(name) or Path(name).suffix:
        problem = "are a folder" if user_path(name).is_dir() else "do not exist"
        raise OvssError(f"weights {name} {problem}. Give the path of a file (safetensors, .pt or .bin).")


def architectures() -> list[str]:
    """The names of open_clip's architectures: from its files or, once it is imported, with those that plug-ins added."""
    if open_clip := sys.modules.get("open_clip"):
        return open_clip.list_models()
    spec = find_spec("open_clip") or import_module("open_clip").__spec__  # raises if it is not installed
    folders = (spec.submodule_search_locations or []) if spec else []
    return sorted(path.stem for folder in folders for path in Path(folder, "model_configs").glob("*.json"))


def clip_label(name: str | Path | None, pretrained: str | Path | None = None) -> str:
    """The name of a CLIP in recipes and results: its entry in configs/clip, else the architecture or the file's name."""
    if name is None:
        return "state_dict"
    for entry in config_names("clip"):
        config = load_config("clip", entry)
        if name == entry or (name, pretrained) == (config.get("architecture"), config["pretrained"]):
            return entry
    return Path(name).stem if user_path(name).is_file() else str(name)
