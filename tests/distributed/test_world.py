"""How processes agree on errors, on the assignment of images, and on the death of one. They are forks of the test."""

import multiprocessing
import os
import signal
import socket

import pytest
import torch

import ovss_bench as ob
from distributed.started import counted
from miniatures.voc import write_voc
from ovss_bench.runs.evaluate import make_job, run_jobs
from ovss_bench.runs.world import Shard, World, balance, join

FORK = multiprocessing.get_context("fork")
FAST = {"resize": "none", "window": 48, "stride": 48, "pamr_steps": 0}


def in_world(function, size=2):
    """The results of `function(world)`, or the messages of its OvssErrors, in `size` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = FORK.SimpleQueue()

    def work(rank):
        torch.set_num_threads(1)
        values = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        os.environ |= {key: str(value) for key, value in values.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        join.cache_clear()
        world = join()
        try:
            answer = function(world)
        except ob.OvssError as error:
            answer = f"error: {error}"
        answers.put((rank, answer, world.speaks()))
        if rank == 0:  # which keeps the store that the others ask whether they speak
            ended.wait(60)
        os._exit(0)

    ended = FORK.Event()
    processes = [FORK.Process(target=work, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    return processes, answers, ended


def answers_of(function, size=2, expected=None):
    processes, answers, ended = in_world(function, size)
    found = sorted(answers.get() for _ in range(expected or size))
    ended.set()
    for process in processes:
        process.join(30)
    assert sum(speaks for *_, speaks in found) == 1
    return [answer for _, answer, _ in found]


def test_alone_there_is_nobody_to_wait_for():
    world = join()
    assert (world.rank, world.size, world.gather("a")) == (0, 1, ["a"])
    with pytest.raises(ob.OvssError, match="mine"), world.together():
        raise ob.OvssError("mine")
    assert world.speaks()
    assert world.device("cpu") == "cpu"
    for name in ("gpu", "mps", "meta", *(() if torch.cuda.is_available() else ("cuda", "cuda:1"))):
        with pytest.raises(ob.OvssError, match=f"device={name}"):
            world.device(name)


def test_threads_are_shared_out_unless_they_are_named():
    cores = len(os.sched_getaffinity(0))
    assert World().threads(None) == cores
    assert World(size=3, local_size=3).threads(None) == max(1, cores // 3)
    assert World(size=3, local_size=3).threads(5) == 5


def test_processes_gather_what_each_has():
    assert answers_of(lambda world: world.gather(world.rank**2), 3) == [[0, 1, 4]] * 3


def test_an_error_of_one_process_is_the_error_of_all():
    def work(world):
        with world.together():
            if world.rank == 1:
                raise ob.OvssError("number one")
        return "not to be reached"

    assert answers_of(work, 3) == ["error: number one"] * 3


def test_the_end_of_a_process_is_noticed():
    def work(world):
        if world.rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return world.gather(1)

    found = answers_of(work, 3, expected=2)
    assert all("another process of this run has died" in answer for answer in found)


def evaluated(world, root, folder, names=("sclip",), **options):
    dataset, clip = ob.load_dataset("voc21", root), ob.load_clip("demo")
    jobs = [make_job(name, clip, dataset, overrides=FAST) for name in names]
    results = run_jobs(jobs, output=folder, quiet=True, world=world, **options)
    return [result.metrics["mIoU"] for result in results]


def test_images_are_evaluated_once_each_and_only_rank_0_has_results(voc, tmp_path):
    plain = evaluated(None, voc, tmp_path / "one", ("sclip", "naclip"))
    found = answers_of(lambda world: evaluated(world, voc, tmp_path / "three", ("sclip", "naclip")), 3)
    assert found == [plain, [], []]
    assert counted(tmp_path / "three") == counted(tmp_path / "one")
    again = answers_of(lambda world: evaluated(world, voc, tmp_path / "three", ("sclip", "naclip")))
    assert again == [plain, []]


def test_more_processes_than_images(voc, tmp_path):
    plain = evaluated(None, voc, None, limit=1)
    assert answers_of(lambda world: evaluated(world, voc, tmp_path, limit=1), 3) == [plain, [], []]


def test_bad_images_of_any_process_are_told_together(tmp_path):
    write_voc(tmp_path / "VOC", images=5)
    bad = ob.load_dataset("voc21", tmp_path / "VOC").samples[1:4]
    for sample in bad:
        sample.image_path.write_bytes(b"no image")
    first, second = answers_of(lambda world: evaluated(world, tmp_path / "VOC", tmp_path / "runs"))
    assert first == second
    assert "3 of 5 images could not be evaluated" in first
    assert all(sample.id in first for sample in bad)


def test_processes_with_other_data_are_refused(voc, tmp_path):
    write_voc(tmp_path / "other", images=10, seed=3)

    def work(world):
        return evaluated(world, voc if world.rank else tmp_path / "other", tmp_path / "runs")

    first, second = answers_of(work)
    assert first == second
    assert "differ in data, weights or code" in first


def test_a_folder_that_is_not_shared_is_reported(voc, tmp_path, monkeypatch):
    monkeypatch.setattr("ovss_bench.runs.store.SECONDS_TO_APPEAR", 0)
    first, _ = answers_of(lambda world: evaluated(world, voc, tmp_path / str(world.rank)))
    assert "All processes need one output folder" in first


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 20])
def test_a_split_is_balanced_and_complete(parts):
    costs = [(7 * number) % 11 + 1 for number in range(16)]
    chosen = balance(costs, parts)
    assert sorted(number for part in chosen for number in part) == list(range(16))
    assert all(part == sorted(part) for part in chosen)
    loads = [sum(costs[number] for number in part) for part in chosen]
    assert max(loads) - min(loads) <= max(costs)


def test_large_images_count_more():
    assert balance([1, 1, 1, 1, 4], 2) == [[4], [0, 1, 2, 3]]


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/5"])
def test_wrong_shards_are_refused(text):
    with pytest.raises(ob.OvssError, match=f"shard={text}: expected I/N"):
        Shard.of(text)


def test_shards_are_numbered_from_one():
    assert Shard.of("3/16") == Shard(3, 16)
    assert str(Shard(3, 16)) == "3/16"
    assert Shard.of(None) is None
