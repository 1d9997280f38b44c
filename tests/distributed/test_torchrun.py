"""torchrun: the same counts from any number of processes, and the end of a run in which one process dies."""

import os
import signal

import pytest

from distributed.started import counted, rank_of, run, run_two, start, wait_for
from end_to_end.tools import run as run_tool
from ovss_bench.runs.load import result_paths
from ovss_bench.runs.store import read_result

WORDS = ["output=runs", "limit=80", "segmentor=sclip", "recipe.resize=none", "recipe.pamr_steps=0"]
thorough = pytest.mark.skipif("OVSS_THOROUGH" not in os.environ, reason="starts many processes; set OVSS_THOROUGH=1")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    out, _ = run(*WORDS, cwd=folder)
    return folder / "runs", out


def killed(rank, folder):
    """A run of two processes, one of which is killed after the first shard: the other's output, and the shards."""
    process = start(*WORDS, cwd=folder, processes=2)
    shards = wait_for(lambda: list(folder.rglob("*.shards/[0-9]*.npz")))
    os.kill(rank_of(process.pid, rank), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode
    (told,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "has died" in told
    assert "what was finished is kept; rerun the same command to resume" in told
    assert all(path.exists() for path in shards)


def test_when_a_process_dies_the_others_say_so_and_three_go_on_to_the_same_counts(alone, tmp_path):
    expected, printed = alone
    killed(1, tmp_path)
    out, err = run(*WORDS, cwd=tmp_path, processes=3, OMP_NUM_THREADS="4")
    assert counted(tmp_path / "runs") == counted(expected)
    (result,) = [read_result(path) for path in result_paths(tmp_path / "runs")]
    assert result["provenance"]["world_size"] == 3
    assert result["provenance"]["threads"] == 1  # as eval.py was told
    assert 0 < result["timing"]["images"] < 80
    assert not list(tmp_path.rglob("*.shards"))
    assert out.splitlines()[:-1] == printed.splitlines()[:-1]
    assert "Again: torchrun --nproc-per-node 3 " in out.splitlines()[-1]
    ours = [line for line in err.splitlines() if line.startswith("sclip on demo")]
    assert "resumed, " in ours[0]
    assert all("process 1 of 3" in line for line in ours[1:])


@pytest.fixture(scope="module")
def all_alone(tmp_path_factory):
    """The counts of all methods with their own recipes, from one process."""
    folder = tmp_path_factory.mktemp("all")
    run("limit=6", "output=runs", cwd=folder)
    return counted(folder / "runs")


@thorough
@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_counts(processes, all_alone, tmp_path):
    run("limit=6", "output=runs", cwd=tmp_path, processes=processes)
    assert counted(tmp_path / "runs") == all_alone
    assert len(all_alone) == 14


@thorough
@pytest.mark.parametrize("count", [2, 5])
def test_any_number_of_shards_gives_the_same_counts(count, all_alone, tmp_path):
    for number in range(1, count + 1):
        run("limit=6", "output=runs", f"shard={number}/{count}", cwd=tmp_path)
    run_tool("merge.py", "runs", cwd=tmp_path)
    assert counted(tmp_path / "runs") == all_alone


@thorough
def test_the_first_process_may_die_too(alone, tmp_path):
    killed(0, tmp_path)
    _, err = run(*WORDS, cwd=tmp_path)
    assert "resumed, " in err
    assert counted(tmp_path / "runs") == counted(alone[0])


@thorough
def test_a_mistake_is_told_once(tmp_path):
    _, err = run("segmentor=sclipp", "limit=1", cwd=tmp_path, processes=2, status=1)  # torchrun knows no other status
    assert err.count("error: unknown segmentor 'sclipp'") == 1


def test_label_maps_saved_and_scored_by_several_processes(tmp_path):
    """The saved maps of two processes are complete, and two processes score them as they were counted."""
    words = ["limit=6", "segmentor=clip", f"save_label_maps={tmp_path / 'maps'}", f"output={tmp_path / 'one'}"]
    run_two(*words, cwd=tmp_path)
    folder = next((tmp_path / "maps").rglob("manifest.json")).parent
    run_two("limit=6", "segmentor=labels", f"path={folder}", f"output={tmp_path / 'two'}", cwd=tmp_path)
    assert counted(tmp_path / "one")["clip"] == counted(tmp_path / "two")["labels"]
    next(folder.glob("*.png")).unlink()
    error = run_two("segmentor=labels", f"path={folder}", "output=three", cwd=tmp_path, status=2)
    assert "of 100 images" in error
    assert "95 lack a file" in error
