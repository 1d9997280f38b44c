"""`prepare` under faults: nothing half-written counts as ready, and the next run finishes, equal to an undisturbed one."""

import os
import resource
import signal
import sys
import time
from functools import partial

import pytest

import ovss_bench as ob
from miniatures.drawing import write_zip
from ovss_bench.cli.run import run_tool
from ovss_bench.datasets.prepare import archives
from ovss_bench.datasets.prepare.run import prepare

from . import common
from .common import FORK, IMAGES, at, is_ready, refused, tree


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
            common.lower = slow(common.lower, converting)
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
    assert f"note: {toy.parent / 'toy.zip'} does not exist; the files unpacked from it are kept" in capsys.readouterr().err


def test_two_at_once(toy, undisturbed):
    child = Child(toy, converting=0.5).when("labels", 1)
    with pytest.raises(
        ob.OvssError, match=rf"another process is writing to {toy.parent} \(process \d+ on .+\)\. Wait .* data_root=DIR"
    ):
        prepare(toy, quiet=True)
    assert child.end() == (0, "")
    assert tree(toy.parent) == undisturbed


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
