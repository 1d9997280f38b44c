"""The store under faults: locks, damaged shards, clocks, folders that cannot be written, files of older versions."""

import json
import multiprocessing
import os
import time

import numpy as np
import pytest

import ovss_bench as ob
from end_to_end.tools import first_version
from ovss_bench.evaluation.confusion import confusion
from ovss_bench.runs import store as store_module
from ovss_bench.runs.evaluate import make_job, run_jobs
from ovss_bench.runs.load import read_results
from ovss_bench.runs.store import RunStore, read_counts
from ovss_bench.runs.world import Shard

FORK = multiprocessing.get_context("fork")
FINGERPRINT = "0123456789abcdef" * 4
FAST = {"resize": "none", "window": 48, "stride": 48, "pamr_steps": 0}


def store(folder, **options):
    return RunStore(folder, "set", "clip", "method", FINGERPRINT, **options)


def add(run, image):
    truth = np.random.RandomState(image).randint(0, 3, (9, 11))
    run.add(f"image{image}", confusion(truth, truth.T.reshape(9, 11), 3), f"hash{image}")


@pytest.fixture
def shard(tmp_path):
    """The file that an interrupted run left, with the counts of images 0 to 3."""
    with store(tmp_path) as run:
        for image in range(4):
            add(run, image)
    (path,) = tmp_path.rglob("*.npz")
    return path


def evaluate(root, folder, **options):
    (result,) = run_jobs(
        [make_job("sclip", ob.load_clip("demo"), ob.load_dataset("voc21", root), overrides=FAST)], output=folder, **options
    )
    return result


def refused(run):
    """Whether another process cannot take the locks of `run`."""

    def attempt():
        try:
            with run:
                answers.put("had it")
        except ob.OvssError as error:
            answers.put(str(error))

    answers = FORK.SimpleQueue()
    process = FORK.Process(target=attempt)
    process.start()
    answer = answers.get()
    process.join()
    return "another process is writing to" in answer and f"(process {os.getpid()} on " in answer and "output=DIR" in answer


def test_two_runs_never_mix_but_shards_work_side_by_side(tmp_path):
    with store(tmp_path):
        assert refused(store(tmp_path))
        assert refused(store(tmp_path, shard=Shard(1, 2)))
        assert not refused(RunStore(tmp_path, "set", "clip", "method", "f" * 64))
    with store(tmp_path, shard=Shard(1, 2)):
        assert refused(store(tmp_path))
        assert refused(store(tmp_path, shard=Shard(1, 2)))
        assert not refused(store(tmp_path, shard=Shard(2, 2)))
        assert not refused(store(tmp_path, helper=True))
    assert not refused(store(tmp_path))


def test_a_lock_of_a_folder_that_is_gone_is_none(tmp_path, monkeypatch):
    """The other process finishes its run and removes the folder between opening and locking the file."""
    import fcntl

    lock, calls = fcntl.flock, []

    def late(file, kind):
        if not calls:
            file_path = next(tmp_path.rglob("lock"))
            file_path.unlink()
        calls.append(kind)
        lock(file, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    with store(tmp_path):
        assert len(calls) == 2
        monkeypatch.undo()
        assert refused(store(tmp_path))


def test_several_writers_never_take_the_same_name(tmp_path):
    with store(tmp_path) as first, store(tmp_path, helper=True) as second, store(tmp_path, helper=True) as third:
        for number, run in enumerate((first, second, third)):
            add(run, number)
            run.flush()
        first.collect(["image0", "image1", "image2"])
        assert sorted(first.counts) == ["image0", "image1", "image2"]
    assert len(list(tmp_path.rglob("*.npz"))) == 3


def test_storing_writes_few_files(tmp_path, monkeypatch):
    """One file per 16 images keeps storing far below 2 % of a run."""
    written, write = [], store_module.write_atomic
    monkeypatch.setattr(store_module, "write_atomic", lambda path, content: written.append(path) or write(path, content))
    monkeypatch.setattr(store_module, "SECONDS_PER_SHARD", 1e9)
    with store(tmp_path) as run:
        for image in range(40):
            add(run, image)
    assert len(written) == 3
    assert all(path.stat().st_size < 10_000 for path in written)


@pytest.mark.parametrize("flip", [0x01, 0x10, 0x80, 0xFF])
def test_any_flipped_byte_is_noticed_or_harmless(flip, shard):
    whole, hashes, _ = read_counts(shard, FINGERPRINT)
    data = shard.read_bytes()
    noticed = 0
    for position in range(0, len(data), 3):
        shard.write_bytes(data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :])
        try:
            counts, again, _ = read_counts(shard, FINGERPRINT)
        except ob.OvssError:
            noticed += 1
            continue
        assert again == hashes
        assert {name: value.tobytes() for name, value in counts.items()} == {n: v.tobytes() for n, v in whole.items()}
    assert noticed > len(data) / 6


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_truncated_shard_is_told_and_only_its_images_are_lost(length, shard, tmp_path):
    with store(tmp_path) as run:
        add(run, 7)
    shard.write_bytes(shard.read_bytes()[:length])
    with store(tmp_path) as run:
        assert list(run.counts) == ["image7"]
        assert len(run.damaged) == 1
        assert str(shard) in run.damaged[0]
        assert "will be evaluated again" in run.damaged[0]
    assert not shard.exists()


def test_damaged_counts_of_a_finished_run_are_reported(voc, tmp_path):
    path = evaluate(voc, tmp_path).path.with_suffix(".npz")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ob.OvssError, match=f"{path.name} is damaged: .* Delete it; its images will be evaluated again"):
        evaluate(voc, tmp_path)
    path.unlink()
    evaluate(voc, tmp_path)
    assert path.is_file()


def test_a_damaged_shard_is_told_and_computed_again(voc, tmp_path, capsys):
    expected = evaluate(voc, tmp_path / "undisturbed", quiet=True)
    output = tmp_path / "runs"
    path = expected.path.relative_to(tmp_path / "undisturbed").with_suffix(".npz")
    counts, hashes, _ = read_counts(expected.path.with_suffix(".npz"))
    with RunStore(output, *path.parts[:2], "sclip", expected.data["fingerprint"]) as run:
        for image in list(counts)[:8]:
            run.add(image, counts[image], hashes[image])
            run.flush()
    shards = sorted(output.rglob("*.npz"))
    shards[0].write_bytes(b"nothing")
    flipped = bytearray(shards[1].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    shards[1].write_bytes(flipped)
    result = evaluate(voc, output)
    told = capsys.readouterr().err
    assert told.count("is damaged") == 2
    assert "resumed, 6 of 10 images are done" in told
    assert result.metrics == expected.metrics
    again, hashes_again, _ = read_counts(result.path.with_suffix(".npz"))
    assert hashes_again == hashes
    assert all((again[image] == counts[image]).all() for image in counts)


def test_clocks_may_go_anywhere(shard, tmp_path, monkeypatch):
    for moment in (0, time.time() + 1e8):
        os.utime(shard, (moment, moment))
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        with store(tmp_path) as run:
            assert {"image0", "image3"} < set(run.counts)
            add(run, 5)
    with store(tmp_path) as run:
        assert sorted(run.counts) == [f"image{number}" for number in (0, 1, 2, 3, 5)]


def test_a_shard_of_a_version_without_checksums_is_read(shard, tmp_path):
    with np.load(shard) as file:
        content = {name: value for name, value in file.items() if name != "checksum"}
    np.savez_compressed(shard, **content)
    with store(tmp_path) as run:
        assert len(run.counts) == 4
        assert run.damaged == []


def test_results_of_an_older_version_stay_beside_new_ones(voc, tmp_path):
    new = evaluate(voc, tmp_path, quiet=True)
    data = json.loads(new.path.read_text())
    old = first_version(data)
    path = new.path.with_name("sclip-0123456789ab.json")
    path.write_text(json.dumps(old))
    before = path.read_bytes()
    evaluate(voc, tmp_path, quiet=True, rerun=True)
    assert path.read_bytes() == before
    found, damaged = read_results(tmp_path)
    assert len(found) == 2
    assert damaged == []


def test_what_a_killed_process_left_half_written_is_cleared_away(shard, tmp_path):
    left = [shard.with_name(".aaa.x.npz"), shard.parent.parent / f".method-{FINGERPRINT[:12]}.abc.json"]
    for path in left:
        path.write_bytes(b"half")
    other = shard.parent.parent / ".method-ffffffffffff.abc.json"
    other.write_bytes(b"half")
    with store(tmp_path) as run:
        assert len(run.counts) == 4
    assert not left[1].exists()
    assert other.exists()


def test_a_folder_that_cannot_be_written_is_reported():
    with pytest.raises(ob.OvssError, match=r"cannot write /proc/runs.*output=DIR"), store("/proc/runs"):
        pass


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch):
    import errno
    import fcntl

    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(ob.OvssError, match=r"cannot be locked: No locks available.*output=DIR"), store(tmp_path):
        pass


def test_rerun_waits_for_nobody_and_destroys_nothing_of_a_run_that_goes_on(voc, tmp_path):
    result = evaluate(voc, tmp_path / "first", quiet=True)
    base = result.path.relative_to(tmp_path / "first")
    with RunStore(tmp_path / "runs", *base.parts[:2], "sclip", result.data["fingerprint"]) as run:
        add(run, 1)
        run.flush()

        def again():
            try:
                evaluate(voc, tmp_path / "runs", quiet=True, rerun=True)
            except ob.OvssError as error:
                answers.put(str(error))

        answers = FORK.SimpleQueue()
        process = FORK.Process(target=again)
        process.start()
        assert "another process is writing to" in answers.get()
        process.join()
        assert len(list((tmp_path / "runs").rglob("*.npz"))) == 1
