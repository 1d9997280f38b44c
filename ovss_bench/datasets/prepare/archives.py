"""Downloads and unpacks official archives, never outside the data set's folder.

`tarfile.extractall(filter="data")` and `zipfile` neither write files atomically nor detect truncated tar archives or two
members with the same target, so this module checks and writes members itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import re
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO

from ...errors import OvssError
from ...files import below, is_clutter, make_folder, write_atomic
from ...progress import Progress

DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError)
# The temporary files of `write_atomic`, which a killed process leaves behind.
TEMPORARY = re.compile(r"\..*\.[a-z0-9_]{8}(\.[^.]*)?")
CHUNK = 1 << 20
Member = tuple[str, int, Callable[[], IO[bytes]]]  # a regular file in an archive: name, size in bytes, function that opens it


@dataclass(frozen=True)
class Archive:
    """`paths`: files or folders in the archive -> targets below the data set's folder; `url`: only for direct downloads."""

    file: str
    paths: Mapping[str, str]
    url: str | None = None
    md5: str | None = None


def download(archive: Archive, folder: Path, progress: Progress) -> Path:
    """Downloads an archive into `folder`, resuming an earlier attempt. Raises OvssError on failure or a wrong checksum."""
    target = folder / archive.file
    part = target.with_name(target.name + ".part")
    make_folder(part.parent)
    try:
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # filelock would leave a lock file beside the archives
            _fetch(archive, file, progress)
    except BlockingIOError:
        raise OvssError(f"another process is downloading {target}. Wait until it has finished.") from None
    except (OSError, HTTPException, ValueError) as error:
        if part.is_file() and not part.stat().st_size:
            part.unlink()
        advice = f"Rerun the same command to resume, or put the file into {folder} yourself."
        raise OvssError(f"{archive.url} cannot be downloaded: {error}. {advice}") from error
    if not is_official(part, archive):
        part.unlink()
        text = f"{archive.url} does not have the MD5 {archive.md5}: it is damaged or a new version. Rerun the command."
        raise OvssError(text)
    part.replace(target)
    return target


def _fetch(archive: Archive, file: IO[bytes], progress: Progress) -> None:
    """Appends the missing bytes to `file`, or writes it from the start if the server ignores the range request."""
    existing = file.tell()
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={existing}-"} if existing else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if existing and error.code == 416:  # the file is complete
            return
        raise
    with response:
        if response.status != 206:
            file.truncate(0)
        length, received = int(response.headers.get("Content-Length", 0)), 0
        with progress.start(f"download of {archive.file}", length // CHUNK, "MiB") as task:
            while block := response.read(CHUNK):
                file.write(block)
                received += len(block)
                task.advance()
    if received < length:
        raise OSError(f"the connection ended after {received} of {length} bytes")


def is_official(path: Path, archive: Archive) -> bool:
    """Whether the checksum is the published one; True if none is known, since unpacking detects damage."""
    if archive.md5 is None:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == archive.md5


def extract(path: Path, archive: Archive, folder: Path, progress: Progress, *, overwrite: bool = False) -> None:
    """Unpacks `archive.paths` into `folder`, each file atomically. Keeps existing files of the same size unless `overwrite`.

    Skips hidden files and files of operating systems. Raises OvssError for a damaged or truncated archive and, before it writes
    anything, for names that point outside the folder, for links, and for two members with the same target.
    """
    present = set()
    with opened(path) as members:
        wanted: dict[Path, Member] = {}
        for member in members:
            name = member[0]
            if is_clutter(name):
                continue
            for inside, outside in archive.paths.items():
                if name == inside or inside == "" or name.startswith(inside.rstrip("/") + "/"):
                    present.add(inside)
                    target = below(folder, str(PurePosixPath(outside, name[len(inside) :].strip("/"))), links=True)
                    if target in wanted:
                        raise _collision(path, wanted[target][0], name, target)
                    wanted[target] = member
        if missing := archive.paths.keys() - present:
            raise OvssError(f"{path} holds no {min(missing) or 'files'}. Is it the right archive? Expected: {archive.file}.")
        for target, (name, *_) in wanted.items():
            if above := next((parent for parent in target.parents if parent in wanted), None):
                raise _collision(path, wanted[above][0], name, above)
        sweep(wanted)
        with progress.start(f"unpacking {path.name}", len(wanted), "files") as task:
            for target, (_, size, read) in wanted.items():
                if overwrite or not (target.is_file() and target.stat().st_size == size):
                    _write(target, size, read)
                task.advance()


def _collision(path: Path, one: str, other: str, target: Path) -> OvssError:
    names = f"'{one}' twice" if one == other else f"'{one}' and '{other}'"
    hint = "It is not the official archive, or has been repacked: use the official one, or unpack it by hand."
    return OvssError(f"{path} holds {names}: both would be written to {target}. {hint}")


def sweep(targets: Iterable[Path]) -> None:
    """Removes temporary files left by killed processes from the folders of `targets`, which the caller has locked."""
    for folder in {target.parent for target in targets}:
        for path in folder.glob(".*") if folder.is_dir() else ():
            if TEMPORARY.fullmatch(path.name) and path.is_file():
                path.unlink()


def _write(target: Path, size: int, read: Callable[[], IO[bytes]]) -> None:
    def copy(temporary: Path) -> None:
        try:
            with temporary.open("wb") as out, read() as source:
                shutil.copyfileobj(source, out, CHUNK)
        except OSError as error:
            if error.errno is None:  # damaged gzip or bzip2 data; `write_atomic` would report a disk error
                raise EOFError(str(error)) from error
            raise
        if temporary.stat().st_size != size:
            raise EOFError(f"{target.name} ends early")

    write_atomic(target, copy)


@contextmanager
def opened(path: Path) -> Iterator[list[Member]]:
    """The regular files in a zip or tar archive, with all names checked. Errors while reading them become OvssErrors."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                yield list(_zip_members(path, file))
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as file:
                yield list(_tar_members(path, file))
        else:
            hint = "Delete it and download it again; other kinds of archives must be unpacked by hand."
            raise OvssError(f"{path} is no zip or tar archive, or damaged or truncated ({path.stat().st_size} bytes). {hint}")
    except NotImplementedError as error:
        raise OvssError(f"{path} cannot be unpacked: {error}. Unpack it by hand.") from error
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise OvssError(f"{path} cannot be read: {error.strerror}.") from error
        raise OvssError(f"archive {path} is damaged or truncated: {error}. Delete it and download it again.") from error


def _zip_members(path: Path, file: zipfile.ZipFile) -> Iterator[Member]:
    for info in file.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        name = _checked(path, info.filename, kind not in (0, stat.S_IFREG, stat.S_IFDIR))
        if info.flag_bits & 1:
            raise OvssError(f"{path} is protected by a password. Unpack it by hand.")
        if not info.is_dir():
            yield name, info.file_size, lambda info=info: file.open(info)


def _tar_members(path: Path, file: tarfile.TarFile) -> Iterator[Member]:
    members = file.getmembers()
    file.fileobj.seek(file.offset)
    if file.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile accepts such archives
        raise tarfile.ReadError("it ends early, or the header of a file is damaged")
    while file.fileobj.read(CHUNK):  # reads on to the checksum at the end of a compressed file
        pass
    for member in members:
        name = _checked(path, member.name, not (member.isfile() or member.isdir()))
        if member.isfile():
            yield name, member.size, lambda member=member: file.extractfile(member)


def _checked(path: Path, name: str, special: bool) -> str:
    """A member's name with `/` between folders. Raises OvssError if it points outside, or the member is a link or device."""
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or re.match("[A-Za-z]:", name):
        raise OvssError(f"{path} holds '{name}', which leads outside its folder. It is not the official archive: delete it.")
    if special:
        raise OvssError(f"{path} holds '{name}', a link or a device. No official archive does: delete it.")
    return pure.as_posix()
