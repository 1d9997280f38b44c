"""Weights of CLIP that are known by the digest of their file: that which their address states."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path


def known_weights(path: Path, addresses: Mapping[str, str] | None = None) -> list[str]:
    """ARCHITECTURE:TAG of the weights of open_clip that a file holds, by its SHA-256; none for files that are not on record.
    `addresses`: URLs by that name, by default those of the installed open_clip."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    stated = {name: stated_digest(url) for name, url in (open_clip_addresses() if addresses is None else addresses).items()}
    return [name for name, start in stated.items() if start and found.startswith(start)]


def open_clip_addresses() -> dict[str, str]:
    import open_clip

    pairs = open_clip.list_pretrained()
    return {f"{name}:{tag}": open_clip.pretrained.get_pretrained_url(name, tag) or "" for name, tag in pairs}


def stated_digest(url: str) -> str:
    """The start of the SHA-256 that an address states, as open_clip reads it: OpenAI's whole as a folder, open_clip's own first
    eight digits at the end of the file's name; nothing in others."""
    folder, _, name = url.rpartition("/")
    if "openaipublic" in url:
        return folder.rpartition("/")[2]
    own = Path(name).stem.rpartition("-")[2]
    return own if "mlfoundations" in url and re.fullmatch("[0-9a-f]{8}", own) else ""
