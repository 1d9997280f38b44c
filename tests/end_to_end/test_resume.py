"""Runs that are killed, collide, or find the disk full: what was finished is kept, and the counts stay the same."""

import os
import signal
import subprocess
import time

import numpy as np
import pytest

from end_to_end.test_eval import FAST
from end_to_end.tools import command, evaluate, evaluate_here, results
from forked import Forked
from ovss_bench.runs.store import read_counts

TWO = ["segmentor=[sclip,gem]", "limit=48", "runtime.batch=8", *FAST]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("quiet")
    evaluate(*TWO, cwd=folder)
    return {path.stem.split("-")[0]: read_counts(path) for path in sorted(folder.rglob("*.npz"))}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_goes_on_and_ends_with_identical_counts(how, undisturbed, tmp_path):
    process = Forked("eval.py", "runtime.threads=1", *TWO, cwd=tmp_path)
    while len(list(tmp_path.rglob("0*.npz"))) < 2 and process.poll() is None:  # both segmentors have written
        time.sleep(0.01)
    process.send_signal(how)
    _, errors = process.communicate()
    assert process.returncode == (143 if how == signal.SIGTERM else -9)
    assert "Traceback" not in errors
    assert results(tmp_path) == {}
    again = evaluate(*TWO, cwd=tmp_path)
    assert "resumed, " in again.stderr
    for path in sorted(tmp_path.rglob("*.npz")):
        counts, hashes, _ = read_counts(path)
        known, known_hashes, _ = undisturbed[path.stem.split("-")[0]]
        assert hashes == known_hashes
        assert all(np.array_equal(counts[image], known[image]) for image in known)
    assert not list(tmp_path.rglob("*.shards"))


def test_a_damaged_shard_is_evaluated_again(tmp_path):
    process = Forked("eval.py", "segmentor=sclip", "limit=24", *FAST, cwd=tmp_path)
    while not list(tmp_path.rglob("0*.npz")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    for path in tmp_path.rglob("0*.npz"):
        path.write_bytes(path.read_bytes()[:-30])
    evaluate("segmentor=sclip", "limit=24", *FAST, cwd=tmp_path)
    (result,) = results(tmp_path).values()
    assert result["images"]["evaluated"] == 24


def test_two_runs_never_share_a_folder_at_once(tmp_path):
    process = Forked("eval.py", "segmentor=sclip", *FAST, cwd=tmp_path)
    while not list(tmp_path.rglob("lock")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    done = evaluate("segmentor=sclip", *FAST, cwd=tmp_path, status=2)
    process.kill()
    process.wait()
    assert "another process" in done.stderr


def test_a_full_disk_ends_in_one_error_and_keeps_what_is_done(tmp_path):
    """The limit on the size of a file stands in for a full disk: the write fails in the same place."""
    evaluate_here("segmentor=sclip", "limit=1", *FAST, f"output={tmp_path}/before")  # fills the cache
    limited = f"ulimit -f 2; exec {' '.join(command('eval.py', 'segmentor=sclip', 'limit=24', *FAST))}"
    done = subprocess.run(["bash", "-c", limited], cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    evaluate("segmentor=sclip", "limit=24", *FAST, cwd=tmp_path)
