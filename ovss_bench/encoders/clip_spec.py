"""Which CLIP is meant by a name, known without loading it or importing torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..files import config_names, load_config


@dataclass(frozen=True)
class ClipSpec:
    """A CLIP that is not loaded yet: `name` and `pretrained` as in `load_clip`, `label` as in `clip_label`."""

    name: str
    pretrained: str | None
    label: str

    @classmethod
    def of(cls, text: str | Path, weights: str | None = None) -> ClipSpec:
        """From NAME, NAME:TAG or a file, and optionally a file of `weights`."""
        name, _, tag = (str(text), "", "") if os.path.isfile(text) else str(text).partition(":")
        pretrained = weights or tag or None
        return cls(name, pretrained, clip_label(name, pretrained))


NO_CLIP = ClipSpec("none", None, "none")  # of segmentors that use none


def clip_label(name: str | Path | None, pretrained: str | Path | None = None) -> str:
    """The name of a CLIP in recipes and results: its entry in configs/clip, else the architecture or the file's name."""
    if name is None:
        return "state_dict"
    for entry in config_names("clip"):
        config = load_config("clip", entry)
        if name == entry or (name, pretrained) == (config.get("architecture"), config["pretrained"]):
            return entry
    return Path(name).stem if Path(name).is_file() else str(name)
