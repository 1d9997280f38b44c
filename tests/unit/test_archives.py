"""Archives that are damaged, hostile or wrong, and downloads that end early, from a real server."""

import fcntl
import gzip
import io
import lzma
import re
import stat
import tarfile
import threading
import zipfile
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import ovss_bench as ob
from ovss_bench.datasets.prepare.archives import Archive, download, extract
from ovss_bench.progress import Progress

QUIET = Progress(quiet=True)
# Bytes that do not compress, so that cutting an archive cuts a file.
FILES = {f"top/images/{name}.jpg": np.random.RandomState(number).bytes(3000) for number, name in enumerate("abc")}
FILES |= {"top/val.txt": b"a\nb\nc\n", "top/train.txt": b"d\n", "other/images/d.jpg": b"not wanted"}
WANTED = {"top/images": "images", "top/val.txt": "lists/val.txt"}
KINDS = ("zip", "tar", "tar.gz", "tar.xz")


def write(path, files=FILES, extra=()):
    """An archive of the kind that its name says; `extra` are members with all their attributes."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
            for info in extra:
                archive.writestr(info, b"/etc/passwd")
    else:
        mode = {".gz": "w:gz", ".xz": "w:xz"}.get(path.suffix, "w")
        with tarfile.open(path, mode) as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            for info in extra:
                archive.addfile(info)
    return path


def unpack(path, folder, paths=WANTED, **options):
    extract(path, Archive(path.name, paths), folder, QUIET, **options)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WHOLE = {f"images/{name}.jpg": FILES[f"top/images/{name}.jpg"] for name in "abc"} | {"lists/val.txt": FILES["top/val.txt"]}


@pytest.fixture(params=KINDS)
def archive(request, tmp_path):
    return write(tmp_path / f"archive.{request.param}")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data" / "set"


def test_what_is_wanted_is_unpacked(archive, folder):
    unpack(archive, folder)
    assert content(folder) == WHOLE
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o444 for path in folder.rglob("*.jpg"))


def test_all_of_an_archive_may_be_wanted(archive, folder):
    unpack(archive, folder, {"": "raw"})
    assert content(folder) == {f"raw/{name}": data for name, data in FILES.items()}


def test_names_may_begin_with_a_dot(folder, tmp_path):
    path = write(tmp_path / "dots.tar", {f"./{name}": data for name, data in FILES.items()})
    unpack(path, folder)
    assert content(folder) == WHOLE


def test_files_that_are_there_are_kept_unless_overwritten(archive, folder):
    unpack(archive, folder)
    (folder / "images/a.jpg").write_bytes(b"\0" * 3000)
    (folder / "images/b.jpg").write_bytes(b"short")
    kept = (folder / "images/c.jpg").stat().st_mtime_ns
    unpack(archive, folder)
    assert content(folder) == WHOLE | {"images/a.jpg": b"\0" * 3000}
    assert (folder / "images/c.jpg").stat().st_mtime_ns == kept
    unpack(archive, folder, overwrite=True)
    assert content(folder) == WHOLE


def test_what_a_killed_process_left_is_removed(archive, folder):
    (folder / "images").mkdir(parents=True)
    for name in (".a.x7_k2mno.jpg", ".hidden", ".b.jpg", "a.x7_k2mno.jpg"):
        (folder / "images" / name).write_bytes(b"half")
    unpack(archive, folder)
    assert set(content(folder)) == {*WHOLE, "images/.hidden", "images/.b.jpg", "images/a.x7_k2mno.jpg"}


def part_is_sound(folder):
    """Whether every file that was written is whole."""
    assert content(folder).items() <= WHOLE.items()


@pytest.mark.parametrize("keep", [0, 0.1, 0.5, 0.9, 0.98, -1])
def test_a_truncated_archive_is_refused(keep, archive, folder):
    data = archive.read_bytes()
    needed = boundaries(archive)[-1] + tarfile.BLOCKSIZE if archive.suffix == ".tar" else len(data)
    archive.write_bytes(data[: int(len(data) * keep)] if keep >= 0 else data[:keep])
    if archive.stat().st_size >= needed:  # the end of a tar is nothing but zeros
        unpack(archive, folder)
        assert content(folder) == WHOLE
        return
    with pytest.raises(ob.OvssError, match=rf"{re.escape(str(archive))} .*(truncated|damaged).*elete it and download it again"):
        unpack(archive, folder)
    part_is_sound(folder)


def boundaries(path):
    with tarfile.open(path) as archive:
        return [*(member.offset for member in archive.getmembers()[1:]), archive.offset]


@pytest.mark.parametrize("number", range(len(FILES)))
@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_tar_that_ends_between_two_files_is_refused(number, kind, folder, tmp_path):
    whole = write(tmp_path / "whole.tar")
    data = whole.read_bytes()[: boundaries(whole)[number]]
    path = tmp_path / f"cut.{kind}"
    if kind == "tar.gz":
        data = gzip.compress(data)
    path.write_bytes(data)
    with pytest.raises(ob.OvssError, match=r"cut\.tar.* is damaged or truncated: it ends early"):
        unpack(path, folder)
    assert content(folder) == {}


def test_a_damaged_header_in_the_middle_of_a_tar_is_no_end(folder, tmp_path):
    path = write(tmp_path / "damaged.tar")
    data = bytearray(path.read_bytes())
    data[boundaries(path)[1] + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ob.OvssError, match=r"damaged\.tar is damaged or truncated"):
        unpack(path, folder)
    assert content(folder) == {}


@pytest.mark.parametrize("archive", [kind for kind in KINDS if kind != "tar"], indirect=True)  # it has no checksums of files
def test_a_damaged_byte_is_noticed(archive, folder):
    data = bytearray(archive.read_bytes())
    data[2000 if archive.suffix == ".zip" else len(data) // 2] ^= 16
    archive.write_bytes(data)
    with pytest.raises(ob.OvssError, match=rf"{re.escape(str(archive))} .*damaged or truncated"):
        unpack(archive, folder)
    part_is_sound(folder)


@pytest.mark.parametrize("damage", [b"", b"<html>sign in</html>", lzma.compress(b"no tar"), b"PK\x03\x04 and no more"])
def test_what_is_no_archive_is_refused(damage, folder, tmp_path):
    path = tmp_path / "archive.zip"
    path.write_bytes(damage)
    with pytest.raises(ob.OvssError, match=rf"no zip or tar archive, or damaged or truncated \({len(damage)} bytes\)"):
        unpack(path, folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["../evil.jpg", "top/images/../../../evil.jpg", "/tmp/evil.jpg", "top/images/..", "C:\\evil.jpg", "..\\evil.jpg"]
)
def test_names_that_lead_outside_are_refused_before_anything_is_written(name, kind, folder, tmp_path):
    path = write(tmp_path / f"evil.{kind}", FILES | {name: b"evil"})
    before = content(tmp_path)
    with pytest.raises(ob.OvssError, match=rf"evil\.{kind} holds '.*', which leads outside its folder"):
        unpack(path, folder)
    assert content(tmp_path) == before


@pytest.mark.parametrize("type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_links_and_devices_in_a_tar_are_refused_before_anything_is_written(type, kind, folder, tmp_path):
    info = tarfile.TarInfo("top/images/z.jpg")
    info.type, info.linkname = type, "/etc/passwd"
    path = write(tmp_path / f"evil.{kind}", extra=[info])
    with pytest.raises(ob.OvssError, match=rf"evil\.{kind} holds 'top/images/z.jpg', a link or a device"):
        unpack(path, folder)
    assert content(folder) == {}


@pytest.mark.parametrize("type", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_are_refused_before_anything_is_written(type, folder, tmp_path):
    info = zipfile.ZipInfo("top/images/z.jpg")
    info.external_attr = (type | 0o777) << 16
    path = write(tmp_path / "evil.zip", extra=[info])
    with pytest.raises(ob.OvssError, match=r"evil\.zip holds 'top/images/z.jpg', a link or a device"):
        unpack(path, folder)
    assert content(folder) == {}


# What two members are called of which each would become one file, below the folder of the data set.
COLLISIONS = {
    "the same name": (("top/images/a.jpg", "top/images/a.jpg"), WANTED, "images/a.jpg"),
    "a dot in front": (("top/images/a.jpg", "./top/images/a.jpg"), WANTED, "images/a.jpg"),
    "two slashes": (("top/images/a.jpg", "top//images/a.jpg"), WANTED, "images/a.jpg"),
    "backslashes": (("top/images/a.jpg", "top\\images\\a.jpg"), WANTED, "images/a.jpg"),
    "two folders into one": (("urban/1.png", "rural/1.png"), {"urban": "images", "rural": "images"}, "images/1.png"),
    "a file and a list": (("top/images/val.txt", "top/val.txt"), WANTED | {"top/images": "lists"}, "lists/val.txt"),
    "a file that is a folder": (("top/images/a", "top/images/a/b"), WANTED, "images/a"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", COLLISIONS)
def test_two_members_that_become_one_file_are_named_before_anything_is_written(case, kind, folder, tmp_path):
    names, paths, target = COLLISIONS[case]
    path = tmp_path / f"twice.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for number, name in enumerate(names):
                archive.writestr(name, b"ab"[: number + 1])
    else:
        with tarfile.open(path, {"tar.gz": "w:gz", "tar.xz": "w:xz"}.get(kind, "w")) as archive:
            for number, name in enumerate(names):
                info = tarfile.TarInfo(name)
                info.size = number + 1
                archive.addfile(info, io.BytesIO(b"ab"))
    with pytest.raises(ob.OvssError, match=r"twice\.\S+ holds ") as error:
        unpack(path, folder, {inside: outside for inside, outside in paths.items() if any(inside in name for name in names)})
    assert str(folder / target) in str(error.value)
    assert names[0] in str(error.value)
    assert names[1].replace("\\", "/").removeprefix("./").replace("//", "/") in str(error.value)
    assert content(folder) == {}


CLUTTERED = [".DS_Store", "._a.jpg", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/a.jpg", "@eaDir/a.jpg", "__MACOSX/a.jpg"]


def test_what_systems_and_tools_leave_is_not_unpacked(archive, folder):
    names = [*(f"top/images/{name}" for name in CLUTTERED), "__MACOSX/top/images/a.jpg", "__MACOSX/top/images/._a.jpg"]
    unpack(write(archive, FILES | dict.fromkeys(names, b"no image")), folder)
    assert content(folder) == WHOLE
    unpack(archive, folder / "all", {"": "raw"})
    assert content(folder / "all") == {f"raw/{name}": data for name, data in FILES.items()}


def test_a_link_that_is_there_already_is_replaced_and_not_followed(folder, tmp_path):
    path, victim = write(tmp_path / "archive.zip"), tmp_path / "victim"
    victim.write_bytes(b"precious")
    (folder / "images").mkdir(parents=True)
    (folder / "images/a.jpg").symlink_to(victim)
    unpack(path, folder)
    assert victim.read_bytes() == b"precious"
    assert content(folder) == WHOLE


def flagged(path, offset, value):
    """Sets a 16-bit field of every header of a zip, in both directories."""
    data = bytearray(path.read_bytes())
    for mark, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        start = data.find(mark)
        while start >= 0:
            data[start + offset + shift : start + offset + shift + 2] = value.to_bytes(2, "little")
            start = data.find(mark, start + 4)
    path.write_bytes(data)


def test_a_password_is_said(folder, tmp_path):
    path = write(tmp_path / "secret.zip")
    flagged(path, 6, 1)
    with pytest.raises(ob.OvssError, match=r"secret\.zip is protected by a password. Unpack it by hand"):
        unpack(path, folder)
    assert content(folder) == {}


def test_an_unknown_compression_is_said(folder, tmp_path):
    path = write(tmp_path / "new.zip")
    flagged(path, 8, 97)
    with pytest.raises(ob.OvssError, match=r"new\.zip cannot be unpacked: .*compression.*by hand"):
        unpack(path, folder)
    assert content(folder) == {}


def test_a_zip_of_a_later_version_is_said(folder, tmp_path):
    """Python refuses it while reading the list of members, before any of them."""
    path = write(tmp_path / "new.zip")
    flagged(path, 4, 99)
    with pytest.raises(ob.OvssError, match=r"new\.zip cannot be unpacked: zip file version 9\.9\. Unpack it by hand"):
        unpack(path, folder)


def test_another_archive_is_told_by_what_it_lacks(archive, folder):
    with pytest.raises(ob.OvssError, match=r"holds no top/labels. Is it the right archive\? Expected: archive"):
        unpack(archive, folder, WANTED | {"top/labels": "labels"})
    assert content(folder) == {}


BODY = np.random.RandomState(5).bytes(3_500_000)


class Handler(BaseHTTPRequestHandler):
    """GET of /file, as the server's `manner` says."""

    def do_GET(self):
        self.server.asked.append(self.headers.get("Range"))
        body, manner = BODY, self.server.manner
        if self.path != "/file":
            return self.send_error(404)
        start = int(self.headers["Range"][6:-1]) if "Range" in self.headers and manner != "no ranges" else None
        if start is not None and start >= len(body):
            return self.send_error(416)
        self.send_response(200 if start is None else 206)
        if manner != "no length":
            self.send_header("Content-Length", str(len(body) - (start or 0)))
        self.end_headers()
        body = body[start or 0 :]
        self.wfile.write(body[: len(body) // 2] if manner == "cut" else body)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server on this machine: `manner` says how it answers, `asked` holds the ranges that were wanted."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.manner, server.asked = "", []
        server.url = f"http://127.0.0.1:{server.server_port}/file"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def offered(server, **options):
    return Archive("file.zip", {}, server.url, **{"md5": md5(BODY).hexdigest(), **options})


@pytest.mark.parametrize("manner", ["", "no ranges", "no length"])
def test_a_download_is_complete(manner, server, tmp_path):
    server.manner = manner
    assert download(offered(server), tmp_path / "new", QUIET) == tmp_path / "new/file.zip"
    assert content(tmp_path) == {"new/file.zip": BODY}
    assert server.asked == [None]


@pytest.mark.parametrize("manner", ["", "no ranges"])
def test_a_download_that_was_interrupted_goes_on(manner, server, tmp_path):
    server.manner = "cut"
    with pytest.raises(ob.OvssError, match=r"cannot be downloaded: the connection ended .* Rerun the same command to resume"):
        download(offered(server), tmp_path, QUIET)
    assert content(tmp_path) == {"file.zip.part": BODY[: len(BODY) // 2]}
    server.manner = manner
    download(offered(server), tmp_path, QUIET)
    assert content(tmp_path) == {"file.zip": BODY}
    assert server.asked == [None, f"bytes={len(BODY) // 2}-"]


def test_a_download_that_was_complete_but_not_renamed_is_taken(server, tmp_path):
    (tmp_path / "file.zip.part").write_bytes(BODY)
    download(offered(server), tmp_path, QUIET)
    assert content(tmp_path) == {"file.zip": BODY}


def test_another_checksum_is_refused(server, tmp_path):
    with pytest.raises(ob.OvssError, match=rf"does not have the MD5 {'0' * 32}"):
        download(offered(server, md5="0" * 32), tmp_path, QUIET)
    assert content(tmp_path) == {}


def test_a_part_of_another_file_ends_with_another_checksum(server, tmp_path):
    (tmp_path / "file.zip.part").write_bytes(b"older")
    with pytest.raises(ob.OvssError, match="does not have the MD5"):
        download(offered(server), tmp_path, QUIET)
    download(offered(server), tmp_path, QUIET)
    assert content(tmp_path) == {"file.zip": BODY}


@pytest.mark.parametrize(("url", "words"), [("/nothing", "404"), (None, "refused"), ("nonsense", "unknown url type")])
def test_what_cannot_be_fetched_leaves_nothing(url, words, server, tmp_path):
    address = "http://127.0.0.1:9/file" if url is None else server.url.replace("/file", url) if url[0] == "/" else url
    with pytest.raises(ob.OvssError, match=rf"{re.escape(address)} cannot be downloaded: .*{words}.*put the file into"):
        download(Archive("file.zip", {}, address), tmp_path, QUIET)
    assert content(tmp_path) == {}


def test_two_downloads_of_one_file_do_not_mix(server, tmp_path):
    with (tmp_path / "file.zip.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ob.OvssError, match=r"another process is downloading .*file\.zip"):
            download(offered(server), tmp_path, QUIET)
    assert server.asked == []
