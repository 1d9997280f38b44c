"""Where things are on disk: packaged configurations and weights, the cache; and how files are written (atomically)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from .errors import OvssError, unknown

PACKAGE = Path(__file__).resolve().parent
WEIGHTS = PACKAGE / "weights"
# A wheel carries the configurations and the published figures inside the package; a checkout has them beside it.
CONFIGS = next(path for path in (PACKAGE / "configs", PACKAGE.parent / "configs") if path.is_dir())
PUBLISHED = next(path for path in (PACKAGE / "published", PACKAGE.parent / "results" / "published") if path.is_dir())


# What NumPy and zipfile raise for files with wrong bytes in them.
DAMAGES = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)

# Files and folders that operating systems, storages and tools leave beside data, in lower case.
CLUTTER = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin", "lost+found"}
CLUTTER |= {"system volume information", ".ipynb_checkpoints", ".appledouble", ".trashes", ".spotlight-v100", ".git", ".svn"}


@cache
def code(*parts: str) -> str:
    """SHA-256 of the package's Python files in and below these folders, and of these files."""
    files = [file for part in parts for file in sorted((PACKAGE / part).rglob("*.py")) or [PACKAGE / part]]
    return digest(*(part for file in files for part in (file.relative_to(PACKAGE).as_posix(), file.read_bytes())))


@cache
def load_config(group: str, name: str) -> dict[str, Any]:
    """configs/<group>/<name>.yaml as a plain dictionary."""
    folder = CONFIGS / group
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise unknown(group, name, config_names(group))
    return OmegaConf.to_container(OmegaConf.load(path))


def config_names(group: str) -> list[str]:
    return sorted(p.stem for p in (CONFIGS / group).glob("*.yaml"))


def cache_dir() -> Path:
    """`OVSS_CACHE`, else `ovss_bench` in the user's cache folder. Everything in it can be made again."""
    chosen = os.environ.get("OVSS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ovss_bench"


def weights_folders() -> list[Path]:
    """Where weights are looked for before they are downloaded: the folder that `OVSS_WEIGHTS` names, and the package's own."""
    chosen = os.environ.get("OVSS_WEIGHTS")
    return [Path(chosen).expanduser(), WEIGHTS] if chosen else [WEIGHTS]


def is_clutter(path: str | PurePath) -> bool:
    """Whether a path below a folder of data is a hidden file (.DS_Store, ._a.png), or of an operating system or tool: no image,
    whatever its suffix."""
    parts = PurePath(path).parts
    return bool(parts) and (parts[-1][0] == "." or any(part.lower() in CLUTTER for part in parts))


def data_files(folder: Path, pattern: str = "*") -> list[Path]:
    """The paths of a pattern in a folder, sorted, without what is no data: see `is_clutter`."""
    return sorted(path for path in folder.glob(pattern) if not is_clutter(path.relative_to(folder)))


def write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a temporary file beside `path` and renames it, so that readers see the old file or the whole new
    one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OvssError(
            f"cannot write {path}: {error.strerror or error}. Free some space, change its "
            "permissions, or choose another folder "
            "(results: output=DIR, cache: the environment variable OVSS_CACHE)."
        ) from error


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises OSError or ValueError, also for what could not be written again as it is: numbers
    beyond 64 bits, NaN, halves of surrogate pairs."""

    def number(text: str) -> float:
        value = float(text) if not text.lstrip("-").isdigit() or len(text) > 20 else int(text)
        if not abs(value) < 2**63:
            raise ValueError(f"the number {text[:30]} is too large")
        return value

    def refuse(text: str) -> None:
        raise ValueError(f"{text} is no number of JSON")

    text = Path(path).read_text(encoding="utf-8")
    try:
        content = json.loads(text, parse_float=number, parse_int=number, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if re.search(r"\\u[dD][89a-fA-F]", text):
        json.dumps(content, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    return content


def read_array(path: Path, name: str) -> np.ndarray:
    """An array of an npz file, whose bytes are compared with the file's own checksum as a whole, which `np.load` does not
    always do. Raises one of `DAMAGES`."""
    with zipfile.ZipFile(path) as archive:
        return np.lib.format.read_array(BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)


def digest(*parts: str | bytes) -> str:
    """SHA-256 (hex) of the parts, each preceded by its length, so that no two lists of parts share a digest."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def path_digest(path: str | Path) -> str:
    """SHA-256 of what a file holds, or a folder: all files in and below it, by their names. Raises OvssError if it cannot be
    read."""
    path = Path(path)
    try:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        stats = [file.stat() for file in files]
        return _path_digest(path, tuple(files), tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))
    except OSError as error:
        raise OvssError(f"{error.filename or path} cannot be read: {error.strerror}. Change its permissions.") from error


@lru_cache(maxsize=64)
def _path_digest(path: Path, files: tuple[Path, ...], stamps: tuple) -> str:
    """Anew when a file has changed; the runs of a sweep share it."""
    parts: list[str] = []
    for file in files:
        with file.open("rb") as content:
            parts += [file.relative_to(path).as_posix(), hashlib.file_digest(content, "sha256").hexdigest()]
    return digest(*parts)


@cache
def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
