"""What long-running commands need: an end that keeps what is done, a folder of their own, all cores."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from .errors import OvssError

SECONDS_TO_END = 1.0  # in which the workers of a process that was killed have noticed it, and hold its lock no longer


@contextmanager
def terminate_cleanly() -> Iterator[None]:
    """Turns SIGTERM into SystemExit, so that what is pending gets written; main thread only, as Python has it."""

    def stop(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def locked(folder: Path, option: str) -> Iterator[None]:
    """Keeps other processes from writing to the same folder; `option` is what chooses another one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("wb")
    except OSError as error:
        raise OvssError(
            f"cannot write {folder}: {error.strerror}. Change its permissions or choose another folder with {option}=DIR."
        ) from error
    with lock:
        deadline = time.monotonic() + SECONDS_TO_END
        while not _has(lock):
            if time.monotonic() > deadline:
                raise OvssError(
                    f"another process is writing to {folder}. Wait for it, or choose another folder with {option}=DIR."
                )
            time.sleep(0.05)
        yield


def in_threads(function: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Iterator[Any]:
    """Yields `function(item)` in the order of the items, from threads that work a little ahead. What ends the items early ends
    this after the results of those before."""
    ended = None
    ahead: deque = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                while len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            ended = error
        while ahead:
            yield ahead.popleft().result()
    if ended:
        raise ended


def _has(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def in_processes(function: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """Yields (item, `function(item)`, or the OvssError that it raised) as they are done, from `workers` forked processes.

    The processes have function and items from the fork, so that both may be anything; only results are pickled.
    """
    items = list(items)
    left = iter(range(len(items)))
    context = multiprocessing.get_context("fork")  # a new interpreter would take seconds to import torch
    try:
        with terminate_cleanly(), ProcessPoolExecutor(workers, context, _begin, (function, items, os.getpid())) as pool:
            running = {pool.submit(_call, number): number for number in islice(left, 4 * workers)}
            try:
                while running:
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        number = running.pop(future)
                        running |= {pool.submit(_call, following): following for following in islice(left, 1)}
                        error = future.exception()
                        if error is not None and not isinstance(error, OvssError):
                            raise error
                        yield items[number], error or future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    except BrokenProcessPool as error:
        raise OvssError("a worker process was killed, perhaps for want of memory. Run it again with workers=1.") from error


def _begin(function: Callable[[Any], Any], items: list[Any], parent: int) -> None:
    """Ctrl-C reaches all processes of a terminal; only the parent shall answer it, after the files in hand are written."""
    global _work
    _work = function, items
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _call(number: int) -> Any:
    function, items = _work
    return function(items[number])


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for work for ever, and keep the lock that it has from the fork."""
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)
