"""Options of `prepare`, downloads, and errors about missing files."""

import shutil
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

import ovss_bench as ob
from ovss_bench.datasets.prepare.archives import Archive, extract
from ovss_bench.datasets.prepare.conversion import Task
from ovss_bench.datasets.prepare.run import prepare
from ovss_bench.datasets.prepare.run_tasks import run_task
from ovss_bench.progress import Progress

from .common import YAML, described, is_ready, tree


def test_a_second_run_changes_nothing_and_rerun_makes_all_again(toy, undisturbed):
    prepare(toy, quiet=True)
    before = {path: path.stat().st_mtime_ns for path in toy.parent.rglob("*.png")}
    (toy.parent / "toy.zip").rename(toy.parent / "elsewhere.zip")  # not needed any more
    prepare(toy, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (toy.parent / "elsewhere.zip").rename(toy.parent / "toy.zip")
    (toy.parent / "images/01.png").write_bytes(b"damaged by its user")
    (toy.parent / "labels/01.png").write_bytes(b"damaged by its user")
    prepare(toy, rerun=True, quiet=True)
    assert tree(toy.parent) == undisturbed
    assert all(path.stat().st_mtime_ns > time for path, time in before.items())


def test_archives_may_be_elsewhere_and_so_may_the_data(toy, tmp_path, undisturbed):
    prepare(toy, tmp_path / "data", source=toy.parent, quiet=True)
    mine = {name: data for name, data in undisturbed.items() if "/" in name}
    assert tree(tmp_path / "data") == mine


def test_a_missing_archive_is_asked_for(toy):
    (toy.parent / "toy.zip").unlink()
    with pytest.raises(ob.OvssError) as error:
        prepare(toy, quiet=True)
    for words in (
        "toy.zip",
        str(toy.parent / "images"),
        "toy/masks",
        "for tests only",
        "Where: a test",
        "downloaded by hand",
    ):
        assert words in str(error.value)
    assert str(error.value).endswith(f"python tools/datasets.py prepare {toy} data_root={toy.parent}")
    assert set(tree(toy.parent)) == {toy.name}


def test_spaces_in_names_are_quoted(tmp_path, packed):
    toy = described(tmp_path / "my toys", packed)
    (toy.parent / "toy.zip").unlink()
    with pytest.raises(ob.OvssError, match=rf"prepare '{toy}' 'data_root={toy.parent}'"):
        prepare(toy, quiet=True)


def test_data_without_a_preparation(toy, tmp_path):
    prepare(toy, quiet=True)
    mine = toy.with_name("mine.yaml")
    mine.write_text(toy.read_text().partition("licence")[0])
    prepare(mine, quiet=True)
    prepare("demo", quiet=True)
    with pytest.raises(ob.OvssError, match=r"data_root=DIR"):
        prepare("voc21", quiet=True)


class Handler(SimpleHTTPRequestHandler):
    """Files, without ranges, and the second half of none if the server cuts."""

    def copyfile(self, source, outputfile):
        data = source.read()
        self.server.asked.append(self.path)
        outputfile.write(data[: len(data) // 2] if self.server.cut else data)

    def log_message(self, *_):
        pass


@pytest.fixture
def offered(tmp_path, toy):
    """The YAML file of a data set whose archive is on a server (`server.cut`: which ends early), not beside it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=toy.parent)) as server:
        server.cut, server.asked = False, []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        folder = tmp_path / "other"
        folder.mkdir()
        own = folder / toy.name
        own.write_text(YAML.format(more=f"url: http://127.0.0.1:{server.server_port}/toy.zip"))
        yield own, server
        server.shutdown()


def test_nothing_is_fetched_without_yes(offered):
    own, server = offered
    with pytest.raises(ob.OvssError) as error:
        prepare(own, quiet=True)
    assert "Licence: for tests only" in str(error.value)
    assert str(error.value).endswith(f"python tools/datasets.py prepare {own} data_root={own.parent} yes=true")
    assert (server.asked, set(tree(own.parent))) == ([], {own.name})


def test_an_archive_is_fetched_once_and_unpacked(offered, undisturbed):
    own, server = offered
    server.cut = True
    with pytest.raises(ob.OvssError, match="the connection ended"):
        prepare(own, yes=True, quiet=True)
    server.cut = False
    prepare(own, yes=True, quiet=True)
    assert is_ready(own)
    assert {n: d for n, d in tree(own.parent).items() if n != own.name} == {
        n: d for n, d in undisturbed.items() if n != own.name
    }
    prepare(own, quiet=True)
    assert server.asked == ["/toy.zip"] * 2


def test_an_empty_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(ob.OvssError, match=r"empty\.zip holds no files\. Is it the right archive\?"):
        extract(tmp_path / "empty.zip", Archive("empty.zip", {"": "raw"}), tmp_path, Progress(quiet=True))


def test_a_download_that_cannot_be_written_is_an_error(offered):
    own, _ = offered
    (own.parent / "toy.zip.part").mkdir()
    with pytest.raises(ob.OvssError, match=r"cannot be downloaded: .*Is a directory.*put the file into"):
        prepare(own, yes=True)


def test_a_download_with_another_checksum_does_not_count(offered):
    own, server = offered
    own.write_text(own.read_text().replace("/toy.zip", f"/toy.zip\n      md5: {'0' * 32}"))
    with pytest.raises(ob.OvssError, match="does not have the MD5"):
        prepare(own, yes=True, quiet=True)
    assert set(tree(own.parent)) == {own.name}
    assert server.asked == ["/toy.zip"]


def test_what_is_complete_needs_neither_archives_nor_raw_files(toy):
    prepare(toy, quiet=True)
    (toy.parent / "toy.zip").unlink()
    shutil.rmtree(toy.parent / "raw")
    prepare(toy, quiet=True)
    is_ready(toy)
    (toy.parent / "labels/03.png").unlink()
    with pytest.raises(ob.OvssError, match=r"toy\.zip"):
        prepare(toy, quiet=True)


def test_missing_raw_files_say_where_they_come_from(toy):
    text = toy.read_text()
    toy.write_text(text[: text.index("  archives:")] + "  note: Ask for the masks.\n" + text[text.index("  converter:") :])
    with pytest.raises(ob.OvssError, match=r"(?s)raw.*Licence: for tests only.*Where: a test.*Ask for the masks"):
        prepare(toy, quiet=True)


@pytest.mark.parametrize(
    "error", [IndexError("i"), KeyError("k"), MemoryError(), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")]
)
def test_whatever_a_parser_raises_names_the_file(tmp_path, error):
    """In a worker's task; what only a mistake in the code raises stays what it is."""

    def make(path, error):
        raise error

    raw = tmp_path / "raw.dat"
    raw.touch()
    with pytest.raises(ob.OvssError, match=r"raw\.dat cannot be read: .+unpack"):
        run_task(Task(make, (raw, error), ()))
    with pytest.raises(NameError):
        run_task(Task(make, (raw, NameError("x")), ()))
