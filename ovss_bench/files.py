"""Locations on disk (configurations, weights, cache), atomic writes, safe file names, readers of hand-written files."""

from __future__ import annotations

import codecs
import copy
import hashlib
import json
import os
import re
import secrets
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from io import BytesIO, StringIO
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from .errors import OvssError, unknown

PACKAGE = Path(__file__).resolve().parent
WEIGHTS = PACKAGE / "weights"
# A wheel carries the configurations and the published figures inside the package; a checkout has them beside it.
CONFIGS = next(path for path in (PACKAGE / "configs", PACKAGE.parent / "configs") if path.is_dir())
PUBLISHED = next(path for path in (PACKAGE / "published", PACKAGE.parent / "results" / "published") if path.is_dir())
DATASET_FACTS = next(path for path in (PACKAGE / "dataset_facts", PACKAGE.parent / "datasets") if path.is_dir())
# What NumPy and zipfile raise for damaged files.
DAMAGES = (OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, MemoryError)
DAMAGES += (struct.error, zlib.error, zipfile.BadZipFile)
# Files and folders that operating systems, storage systems and tools leave among the data, in lower case.
CLUTTER = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin", "lost+found"}
CLUTTER |= {"system volume information", ".ipynb_checkpoints", ".appledouble", ".trashes", ".spotlight-v100", ".git", ".svn"}
# Not allowed in file names: control characters, and surrogates other than those of undecodable bytes (PEP 383).
NO_NAME = re.compile("[\x00-\x1f\ud800-\udc7f\udd00-\udfff]")


@cache
def code(*parts: str, package: Path = PACKAGE) -> str:
    """SHA-256 of the listed Python files of a package, and of all Python files below the listed folders."""
    files = [file for part in parts for file in sorted((package / part).rglob("*.py")) or [package / part]]
    return digest(*(part for file in files for part in (file.relative_to(package).as_posix(), file.read_bytes())))


def load_config(group: str, name: str) -> dict[str, Any]:
    """configs/<group>/<name>.yaml as a plain dictionary, a copy that the caller may change."""
    return copy.deepcopy(_config(group, name))


@cache
def _config(group: str, name: str) -> dict[str, Any]:
    path = CONFIGS / group / f"{name}.yaml"
    if not path.is_file():
        raise unknown(group, name, config_names(group))
    return read_yaml(path, "configuration")


def config_names(group: str) -> list[str]:
    return sorted(p.stem for p in (CONFIGS / group).glob("*.yaml"))


def environment(name: str) -> str | None:
    """An environment variable; None if it is unset, or empty, as in many job scripts."""
    return os.environ.get(name) or None


def user_path(text: str | Path) -> Path:
    """A path with `~` expanded: shells expand it at the start of a word only, not in `data_root=~/data`."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise OvssError(f"{text}: the home folder is unknown. Set HOME, or write the path in full.") from error


def cache_dir() -> Path:
    """`OVSS_CACHE`, else `ovss_bench` in the user's cache folder. Its content can be deleted at any time."""
    if chosen := environment("OVSS_CACHE"):
        return user_path(chosen)
    try:
        return user_path(environment("XDG_CACHE_HOME") or "~/.cache") / "ovss_bench"
    except OvssError as error:
        raise OvssError("no folder for the cache: the home folder is unknown. Set HOME or OVSS_CACHE.") from error


def weights_folders() -> list[Path]:
    """The folders searched for weights before downloading: `OVSS_WEIGHTS`, then the package's folder."""
    chosen = environment("OVSS_WEIGHTS")
    return [user_path(chosen), WEIGHTS] if chosen else [WEIGHTS]


def read_text(path: str | Path, kind: str, expected: str = "UTF-8 text") -> str:
    """The text of a hand-written file, in UTF-8, or in UTF-16 with a byte-order mark. Raises OvssError with the line number
    if it cannot be decoded; `kind` and `expected` describe the file in the message."""
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise OvssError(f"{kind} {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
        reason, before = "it holds NUL characters, like binary files and UTF-16 without a byte-order mark", text.find("\0")
    except UnicodeDecodeError as error:
        reason, before = error.reason, error.start
        text = data[:before].decode(encoding, "ignore")
    if before < 0:
        return text
    line = text.count("\n", 0, before) + 1
    raise OvssError(f"{kind} {path} cannot be read: line {line}: {reason}. Expected {expected}.")


def read_lines(path: str | Path, kind: str, expected: str = "UTF-8 text") -> list[tuple[int, str]]:
    """The lines of a hand-written file (see `read_text`) as (line number, stripped text), without comments (`#` at the start)
    and trailing empty lines. Byte-order marks are stripped: concatenated files have them in the middle."""
    lines = enumerate((line.strip("\ufeff").strip() for line in re.split(r"\r\n|\r|\n", read_text(path, kind, expected))), 1)
    lines = [(number, line) for number, line in lines if not line.startswith("#")]
    while lines and not lines[-1][1]:
        lines.pop()
    return lines


def read_yaml(path: str | Path, kind: str) -> Any:
    """The dictionaries and lists of a YAML file. Raises OvssError if it cannot be read."""
    try:
        return OmegaConf.to_container(OmegaConf.load(StringIO(read_text(path, kind))))
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        raise OvssError(f"{kind} {path} cannot be read: {error}") from error


def on_disk(name: str) -> str:
    """The file name whose bytes are the name in UTF-8, under every locale."""
    try:
        return os.fsdecode(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as error:
        raise OvssError(f"{name!r} cannot be the name of a file: it contains half a character (a lone surrogate).") from error


def as_text(name: str) -> str:
    """The inverse of `on_disk`."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def inside(name: str) -> str:
    """A relative name without `.` and double slashes. Raises OvssError if it is empty or leads out of its folder."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or NO_NAME.search(name):
        expected = "expected a relative path, not empty, without '..' and control characters"
        raise OvssError(f"{name!r} cannot be the name of a file below its folder: {expected}.")
    return pure.as_posix()


def below(folder: Path, name: str, *, links: bool = False) -> Path:
    """The path `name` below a folder. Use it wherever a file name comes from data (ids, archives). Raises OvssError for a name
    that leads out of the folder, directly or, unless `links` are allowed, through a symbolic link."""
    path = folder / on_disk(inside(name))
    if not links and not path.parent.resolve().is_relative_to(folder.resolve()):
        raise OvssError(f"'{name}' leads out of {folder} through a link. Remove the link, or choose another folder.")
    return path


def make_folder(folder: Path) -> Path:
    """Creates a folder and its parents. Raises OvssError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


def is_clutter(path: str | PurePath) -> bool:
    """Whether a path in a data folder is hidden (.DS_Store, .Trash-0/a.png), or was left by an operating system or tool."""
    return any((part[0] == "." and part != "..") or part.lower() in CLUTTER for part in PurePath(path).parts)


def data_files(folder: Path, pattern: str = "*") -> list[Path]:
    """The paths in a folder that match a pattern, sorted, without clutter (see `is_clutter`)."""
    return sorted(path for path in folder.glob(pattern) if not is_clutter(path.relative_to(folder)))


def write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` on a temporary file beside `path`, then renames it: readers see the old file or the complete new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.stem}.{secrets.token_urlsafe(6)}{path.suffix}")
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        try:
            write(temporary)
            temporary.chmod(mode)  # safetensors replaces the file with one that other users cannot read
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8 under every locale; lone surrogates (from file names) are escaped as in JSON."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))


def cannot_write(path: Path, error: OSError) -> OvssError:
    folders = "another folder (results: output=DIR, cache: the environment variable OVSS_CACHE)"
    return OvssError(
        f"cannot write {path}: {error.strerror or error}. Free space, change its permissions, or choose {folders}."
    )


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises OSError or ValueError, also for content that cannot be written back unchanged:
    numbers beyond 64 bits, NaN, and lone surrogates other than those of undecodable file names."""

    def number(text: str) -> float:
        value = float(text) if not text.lstrip("-").isdigit() or len(text) > 20 else int(text)
        if not abs(value) < 2**63:
            raise ValueError(f"the number {text[:30]} is too large")
        return value

    def refuse(text: str) -> Any:
        raise ValueError(f"{text} is not a JSON number")

    text = Path(path).read_text(encoding="utf-8")
    try:
        content = json.loads(text, parse_float=number, parse_int=number, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if re.search(r"\\u[dD][89a-fA-F]", text):
        json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogateescape")  # UnicodeEncodeError is a ValueError
    return content


def read_array(path: Path, name: str) -> np.ndarray:
    """An array of an npz file, verified by the zip's checksum, which `np.load` does not always do. Raises one of `DAMAGES`."""
    with zipfile.ZipFile(path) as archive:
        return np.lib.format.read_array(BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file, read-only, several times faster than `np.load` for small ones. Raises one of `DAMAGES`."""
    with zipfile.ZipFile(path) as archive:
        return {member.removesuffix(".npy"): _array(archive.read(member)) for member in archive.namelist()}


def _array(content: bytes) -> np.ndarray:
    start = 10 + int.from_bytes(content[8:10], "little")  # offset of the data, in version 1 of the npy format
    shape, fortran, dtype = _npy_header(content[:start])
    return np.frombuffer(content, dtype, offset=start).reshape(shape, order="F" if fortran else "C")


@lru_cache  # many files share a few headers, and parsing one takes longer than reading the array
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    stream = BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("it holds an array in an unknown version of the npy format")
    return np.lib.format.read_array_header_1_0(stream)


def digest(*parts: str | bytes | tuple[int, Iterable[bytes]]) -> str:
    """SHA-256 (hex) of the parts, each preceded by its length, so that different lists of parts have different digests. A large
    part may be a tuple of its length and its pieces."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        length, pieces = data if isinstance(data, tuple) else (len(data), [data])
        total.update(length.to_bytes(8, "little"))
        for piece in pieces:
            total.update(piece)
    return total.hexdigest()


def path_digest(path: str | Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files below a folder. Raises OvssError if it cannot be read."""
    path = Path(path)
    try:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        stats = [file.stat() for file in files]
        return _path_digest(path, tuple(files), tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))
    except OSError as error:
        raise OvssError(f"{error.filename or path} cannot be read: {error.strerror}. Change its permissions.") from error


@lru_cache(maxsize=64)
def _path_digest(path: Path, files: tuple[Path, ...], stamps: tuple) -> str:
    """Cached for the runs of a sweep, until a size or modification time (`stamps`) changes."""
    parts: list[str] = []
    for file in files:
        with file.open("rb") as content:
            parts += [file.relative_to(path).as_posix(), hashlib.file_digest(content, "sha256").hexdigest()]
    return digest(*parts)
