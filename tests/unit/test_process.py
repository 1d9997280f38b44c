"""Work in several processes, signals, and locks, also when a process is killed."""

import hashlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

import ovss_bench as ob
from ovss_bench import process
from ovss_bench.cli.run import run_tool
from ovss_bench.process import in_processes, locked, terminate_cleanly

FORK = multiprocessing.get_context("fork")


def started(function, *arguments):
    child = FORK.Process(target=function, args=arguments)
    child.start()
    return child


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def square(number):
    if number == 7:
        raise ob.OvssError("seven")
    return number**2


@pytest.mark.parametrize("workers", [1, 3])
def test_every_item_comes_back_with_its_result_or_its_error(workers):
    outcomes = dict(in_processes(square, range(50), workers))
    assert str(outcomes.pop(7)) == "seven"
    assert outcomes == {number: number**2 for number in range(50) if number != 7}


def test_nothing_to_do_ends_at_once():
    assert list(in_processes(square, [], 2)) == []


class Unpicklable:
    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        raise AssertionError("pickled")

    def __call__(self, other):
        return self.value + other.value


def test_functions_and_items_may_be_anything():
    items = [Unpicklable(number) for number in range(5)]
    outcomes = {item.value: outcome for item, outcome in in_processes(Unpicklable(1), items, 2)}
    assert outcomes == {number: number + 1 for number in range(5)}


def test_a_result_that_cannot_be_sent_is_an_error_and_not_the_end_of_time():
    with pytest.raises(AssertionError, match="pickled"):
        list(in_processes(Unpicklable, range(20), 2))


def test_a_caller_may_stop_early():
    results = in_processes(square, range(1000), 2)
    next(results)
    results.close()


def test_other_errors_are_raised():
    with pytest.raises(ZeroDivisionError):
        list(in_processes(lambda number: 1 // number, [1, 0, 2], 1))


def test_a_killed_worker_is_reported():
    with pytest.raises(ob.OvssError, match=r"a worker process was killed.*workers=1"):
        list(in_processes(lambda _: os.kill(os.getpid(), signal.SIGKILL), [1, 2, 3], 1))


def is_running(number):
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def work_with_lock(folder):
    def write(number):
        (folder / f"{os.getpid()}").touch()
        time.sleep(60)

    os.setpgrp()
    with locked(folder, "out"):
        list(in_processes(write, range(2), 2))


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent_and_give_its_lock_back(kind, tmp_path):
    parent = started(work_with_lock, tmp_path)

    def workers():
        return [int(path.name) for path in tmp_path.glob("[0-9]*")]

    wait_for(lambda: len(workers()) == 2)
    if kind == signal.SIGTERM:  # it waits for what its workers have in hand; who does not want that kills it
        os.kill(parent.pid, kind)
        time.sleep(0.1)
    os.kill(parent.pid, signal.SIGKILL)
    with locked(tmp_path, "out"):
        pass
    wait_for(lambda: not any(map(is_running, workers())), 2)
    parent.join()


def hold(folder, ready, done):
    with locked(folder, "out"):
        ready.set()
        done.wait()


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path):
    ready, done = FORK.Event(), FORK.Event()
    other = started(hold, tmp_path / "new", ready, done)
    ready.wait(20)
    held_by = rf"process {other.pid} on {socket.gethostname()}"
    message = rf"another process is writing to .*new \({held_by}\)\. Wait.*out=DIR"
    with pytest.raises(ob.OvssError, match=message), locked(tmp_path / "new", "out"):
        pass
    done.set()
    other.join()
    with locked(tmp_path / "new", "out"):
        pass


def test_a_folder_that_cannot_be_written_is_reported():
    with pytest.raises(ob.OvssError, match=r"cannot write /proc/new.*data_root=DIR"), locked(Path("/proc/new"), "data_root"):
        pass


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_becomes_an_ordinary_end(kind):
    before = signal.getsignal(kind)
    with pytest.raises(SystemExit) as end, terminate_cleanly():
        signal.raise_signal(kind)
    assert end.value.code == 128 + kind
    assert signal.getsignal(kind) == before


@pytest.mark.parametrize("kind", process.TERMINATING)
@pytest.mark.parametrize("nested", [False, True])
def test_a_signal_ends_a_single_operation_that_takes_for_ever(kind, nested, tmp_path):
    process.GRACE_SECONDS, before = 0.1, process.GRACE_SECONDS
    began = FORK.Event()

    def work():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(tmp_path / "errors", os.O_WRONLY | os.O_CREAT), 2)
        sys.stderr = os.fdopen(2, "w")
        with terminate_cleanly() if nested else nullcontext(), terminate_cleanly((tmp_path / "saved").touch):
            began.set()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # half an hour, in which Python answers no signal

    child = started(work)
    process.GRACE_SECONDS = before
    assert began.wait(20)
    time.sleep(0.1)
    os.kill(child.pid, kind)
    child.join(20)
    assert child.exitcode == 128 + kind
    assert (tmp_path / "saved").exists()
    assert f"error: ended by {kind.name}; what was finished is kept" in (tmp_path / "errors").read_text()


def test_a_block_that_ends_in_time_is_left_alone():
    process.GRACE_SECONDS, before = 0.05, process.GRACE_SECONDS
    with pytest.raises(SystemExit), terminate_cleanly():
        signal.raise_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.GRACE_SECONDS = before


def test_a_tool_says_what_has_ended_it(capsys):
    for kind in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        with pytest.raises(SystemExit) as end:
            run_tool(lambda kind=kind: [os.kill(os.getpid(), kind), time.sleep(20)])
        assert end.value.code == (2 if kind == signal.SIGINT else 128 + kind)
        said = capsys.readouterr().err
        assert said.startswith("error: interrupted; " if kind == signal.SIGINT else f"error: ended by {kind.name}; ")
        assert said.count("\n") == 1


def test_no_thread_outlives_the_block():
    """At the exit of the interpreter such a thread would free what `save` holds, and tensors abort the process then."""
    before = threading.enumerate()
    with terminate_cleanly():
        assert len(threading.enumerate()) > len(before)
        child = started(time.sleep, 60)  # holds the sockets of this block
    assert child.is_alive()
    child.kill()
    child.join()
    assert threading.enumerate() == before
