"""`prepare` under faults: nothing half-written counts as ready, and the next run finishes, equal to an undisturbed one."""

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import ovss_bench as ob
from miniatures.drawing import encoded, scene, write_zip
from ovss_bench.cli.options import run_tool
from ovss_bench.datasets.prepare import archives
from ovss_bench.datasets.prepare.conversion import CONVERTERS, Task, files, read_pixels, write_label
from ovss_bench.datasets.prepare.convert import run_task
from ovss_bench.datasets.prepare.run import prepare

FORK = multiprocessing.get_context("fork")
IMAGES = 12
YAML = """
images: images
labels: labels
image_suffix: .png
label_suffix: .png
classes: [sky, grass, road]
licence: for tests only
link: a test
expected_images: 12
prepare:
  archives:
    - file: toy.zip
      {more}
      paths: {{toy/images: images, toy/masks: raw}}
  converter: toy
  raw: [raw]
"""


@pytest.fixture(autouse=True, scope="module")
def converter():
    @CONVERTERS.register_module(name="toy")
    def toy(folder):
        for path in files(folder / "raw", "*.png"):
            target = folder / "labels" / path.name
            yield Task(lower, (path, target), (target,))

    yield
    CONVERTERS.module_dict.pop("toy")


def lower(source, target):
    write_label(target, read_pixels(source) // 100)


@pytest.fixture(scope="module")
def content():
    members = {"toy/readme.txt": b"not wanted"}
    for number in range(IMAGES):
        image, label = scene(number, [0, 1, 2], (64, 80))
        members[f"toy/images/{number:02d}.png"] = encoded(image, "PNG")
        members[f"toy/masks/{number:02d}.png"] = encoded((100 * label).astype(np.uint8), "PNG")
    return members


@pytest.fixture(scope="module")
def packed(tmp_path_factory, content):
    """The archive."""
    path = tmp_path_factory.mktemp("packed") / "toy.zip"
    write_zip(path, content)
    return path


@pytest.fixture
def toy(tmp_path, packed):
    """The YAML file of a data set of one's own, with its archive beside it."""
    return described(tmp_path / "toy", packed)


def described(folder, packed):
    folder.mkdir()
    shutil.copy(packed, folder)
    (folder / "toy_data.yaml").write_text(YAML.format(more="md5: null"))
    return folder / "toy_data.yaml"


def tree(folder):
    """Every file but the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, packed):
    """What is there after a preparation that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    prepare(described(folder / "toy", packed), quiet=True)
    return tree(folder / "toy")


def is_ready(toy):
    dataset = ob.load_dataset(toy)
    assert len(dataset.samples) == IMAGES
    return {value for sample in dataset.samples for value in np.unique(dataset.label(sample)).tolist()} == {0, 1, 2}


def refused(toy):
    """The command that a data set which is not ready says it needs."""
    with pytest.raises(ob.OvssError, match=r"half prepared: .* is incomplete. Resume with: ") as error:
        ob.load_dataset(toy)
    return str(error.value).rpartition("Resume with: ")[2]


def slow(function, seconds):
    def call(*arguments):
        time.sleep(seconds)
        return function(*arguments)

    return call


class Child:
    """`prepare` in a process group of its own, like a command of a shell; `unpacking` and `converting` take these seconds a
    file, and no file may have more than `limit` bytes."""

    def __init__(self, toy, *, unpacking=0, converting=0, limit=None, **options):
        self.folder, self.errors = toy.parent, toy.parent.parent / "errors"
        self.process = FORK.Process(target=self.run, args=(toy, unpacking, converting, limit, options))
        self.process.start()

    def run(self, toy, unpacking, converting, limit, options):
        os.setpgrp()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stderr = self.errors.open("w", buffering=1)
        os.dup2(sys.stderr.fileno(), 2)
        if unpacking:
            archives._write = slow(archives._write, unpacking)
        if converting:
            globals()["lower"] = slow(lower, converting)
        if limit:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        run_tool(partial(prepare, toy, **{"quiet": True, "workers": 2} | options))

    def when(self, folder, number):
        """Waits until so many files are in a folder."""
        deadline = time.monotonic() + 30
        while len(list((self.folder / folder).glob("[0-9]*.png"))) < number:
            assert time.monotonic() < deadline
            assert self.process.is_alive(), self.errors.read_text()
            time.sleep(0.005)
        return self

    def send(self, kind):
        """A signal as a terminal sends it (Ctrl-C, to all processes), or as `kill` does."""
        (os.killpg if kind == signal.SIGINT else os.kill)(self.process.pid, kind)
        return self.end()

    def end(self):
        self.process.join(60)
        errors = self.errors.read_text()
        assert "Traceback" not in errors
        return self.process.exitcode, errors


STAGES = {"unpacking": "images", "converting": "labels"}
ENDS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: 2}


def test_an_undisturbed_run_gives_what_was_drawn(toy, undisturbed, content):
    prepare(toy, quiet=True)
    assert is_ready(toy)
    assert tree(toy.parent) == undisturbed
    assert len(undisturbed) == 2 + 3 * IMAGES
    assert undisturbed["images/03.png"] == content["toy/images/03.png"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ENDS, ids=lambda kind: kind.name)
def test_a_run_that_was_stopped_goes_on(stage, kind, toy, undisturbed):
    child = Child(toy, **{stage: 0.05}).when(STAGES[stage], 3)
    status, errors = child.send(kind)
    assert status == ENDS[kind], errors
    if kind == signal.SIGINT:
        assert errors.strip() == "error: interrupted; what was finished is kept; rerun the same command to resume"
    assert refused(toy) == f"python tools/datasets.py prepare {toy} data_root={toy.parent}"
    made = {path: path.stat().st_mtime_ns for path in (toy.parent / STAGES[stage]).glob("[0-9]*.png")}
    assert 3 <= len(made) < IMAGES
    if kind != signal.SIGKILL:
        assert not [path for path in tree(toy.parent) if "/." in path and ".unfinished" not in path]
    prepare(toy, quiet=True)
    assert is_ready(toy)
    assert tree(toy.parent) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_what_a_killed_run_left_of_a_file_is_removed(toy, undisturbed):
    for folder in ("images", "raw", "labels"):
        (toy.parent / folder).mkdir()
        (toy.parent / folder / ".05.abcd1_23.png").write_bytes(b"half")
        (toy.parent / folder / f".unfinished-{'toy' if folder == 'labels' else 'archive'}").write_text("it")
    prepare(toy, quiet=True)
    assert tree(toy.parent) == undisturbed


def test_without_its_archive_a_rerun_says_what_it_leaves(toy, capsys):
    prepare(toy, quiet=True)
    (toy.parent / "toy.zip").unlink()
    prepare(toy, rerun=True)
    assert (
        f"note: {toy.parent / 'toy.zip'} does not exist; files that were unpacked from it are kept" in capsys.readouterr().err
    )


def test_two_at_once(toy, undisturbed):
    child = Child(toy, converting=0.5).when("labels", 1)
    with pytest.raises(
        ob.OvssError, match=rf"another process is writing to {toy.parent} \(process \d+ on .+\)\. Wait .* data_root=DIR"
    ):
        prepare(toy, quiet=True)
    assert child.end() == (0, "")
    assert tree(toy.parent) == undisturbed


@pytest.fixture
def disk(tmp_path):
    """`disk(options)`: a small file system, mounted (again) with these options; only root may do that."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a small disk needs root")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], check=False, capture_output=True)


def at(toy, folder):
    """The YAML file alone, in another folder."""
    (folder / toy.name).write_text(toy.read_text())
    return folder / toy.name


@pytest.mark.parametrize("stage", ["images", "raw", "labels"])
def test_a_full_disk(stage, toy, disk, undisturbed):
    """Full after half the files of a folder."""
    order = [name for folder in ("images", "raw", "labels") for name in sorted(undisturbed) if name.startswith(f"{folder}/")]
    pages = {name: -(-len(undisturbed[name]) // 4096) for name in order}
    fitting = order[: order.index(f"{stage}/00.png") + IMAGES // 2]
    own = at(toy, disk(f"size={4 * sum(pages[name] for name in fitting) + 16}k"))
    with pytest.raises(ob.OvssError, match=r"cannot write .*: No space left on device"):
        prepare(own, source=toy.parent, quiet=True)
    assert refused(own) == f"python tools/datasets.py prepare {own} data_root={own.parent} source={toy.parent}"
    disk("remount,size=4m")
    prepare(own, source=toy.parent, quiet=True)
    assert is_ready(own)
    assert tree(own.parent) == {name: data for name, data in undisturbed.items() if name != "toy.zip"}


def test_a_file_that_becomes_too_large(toy, undisturbed):
    status, errors = Child(toy, limit=4096).end()
    assert status == 2
    assert errors.startswith(f"error: cannot write {toy.parent}/images/")
    assert "File too large" in errors
    refused(toy)
    prepare(toy, quiet=True)
    assert tree(toy.parent) == undisturbed


def test_a_folder_that_cannot_be_written(toy, disk):
    folder = disk("size=4m")
    own = at(toy, folder)
    disk("remount,ro")
    with pytest.raises(ob.OvssError, match=rf"cannot write {folder}.*Read-only file system.*data_root=DIR"):
        prepare(own, source=toy.parent, quiet=True)
    disk("remount,rw")
    assert set(tree(folder)) == {toy.name}


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_archive_does_not_count(keep, toy, undisturbed):
    archive = toy.parent / "toy.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ob.OvssError, match=r"toy\.zip .*truncated.*elete it and download it again"):
        prepare(toy, quiet=True)
    refused(toy)
    archive.write_bytes(whole)
    prepare(toy, quiet=True)
    assert tree(toy.parent) == undisturbed


def test_a_damaged_archive_does_not_count(toy, undisturbed):
    archive = toy.parent / "toy.zip"
    whole = bytearray(archive.read_bytes())
    whole[len(whole) // 2] ^= 1
    archive.write_bytes(whole)
    with pytest.raises(ob.OvssError, match=r"toy\.zip is damaged"):
        prepare(toy, quiet=True)
    refused(toy)
    whole[len(whole) // 2] ^= 1
    archive.write_bytes(whole)
    prepare(toy, quiet=True)
    assert tree(toy.parent) == undisturbed


def test_another_archive_under_the_name_does_not_count(toy, content):
    write_zip(toy.parent / "toy.zip", {name.replace("toy/", "toys/"): data for name, data in content.items()})
    with pytest.raises(ob.OvssError, match=r"toy\.zip holds no toy/images. Is it the right archive"):
        prepare(toy, quiet=True)
    refused(toy)


def test_a_damaged_raw_file_does_not_keep_the_others(toy, content, undisturbed):
    write_zip(toy.parent / "toy.zip", content | {"toy/masks/04.png": b"no mask"})
    with pytest.raises(ob.OvssError, match=r"(?s)1 of 12 files could not be converted; the others are kept:.*raw/04\.png"):
        prepare(toy, quiet=True)
    assert len(list((toy.parent / "labels").glob("[0-9]*.png"))) == IMAGES - 1
    refused(toy)
    write_zip(toy.parent / "toy.zip", content)
    prepare(toy, rerun=True, quiet=True)
    assert is_ready(toy)
    assert {name: data for name, data in tree(toy.parent).items() if name != "toy.zip"} == {
        name: data for name, data in undisturbed.items() if name != "toy.zip"
    }


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
    for words in ("toy.zip", str(toy.parent / "images"), "toy/masks", "for tests only", "Where: a test", "fetched by hand"):
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


def test_a_download_with_another_checksum_does_not_count(offered):
    own, server = offered
    own.write_text(own.read_text().replace("/toy.zip", f"/toy.zip\n      md5: {'0' * 32}"))
    with pytest.raises(ob.OvssError, match="another MD5"):
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
