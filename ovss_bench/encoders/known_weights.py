"""Identifies CLIP weights by the digest of their file, which the URL of published weights contains."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path


def known_weights(path: Path, addresses: Mapping[str, str] | None = None) -> list[str]:
    """ARCHITECTURE:TAG of published weights whose `addresses` (default: open_clip's) contain the SHA-256 of this file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    stated = {name: stated_digest(url) for name, url in (addresses or open_clip_addresses()).items()}
    return [name for name, start in stated.items() if start and sha256.startswith(start)]


def open_clip_addresses() -> dict[str, str]:
    import open_clip

    address = open_clip.pretrained.get_pretrained_url
    return {f"{name}:{tag}": address(name, tag) or "" for name, tag in open_clip.list_pretrained()}


def stated_digest(url: str) -> str:
    """The SHA-256 in a URL of OpenAI (a folder), or its first eight digits in one of open_clip (file name); else empty."""
    if "openaipublic" in url:
        return url.split("/")[-2]
    start = Path(url).stem.rpartition("-")[2]
    return start if "mlfoundations" in url and re.fullmatch("[0-9a-f]{8}", start) else ""
