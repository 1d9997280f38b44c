"""What long-running commands need: an end that keeps what is done, a folder of their own, all cores."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import socket
import sys
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

from .errors import KEPT, OvssError

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SECONDS_TO_OBEY = 5.0  # a signal, before the process is ended from outside of the operation that keeps it
SECONDS_TO_END = 1.0  # in which the workers of a process that was killed have noticed it, and hold its lock no longer


def by_signal(error: BaseException) -> bool:
    """Whether this is how `terminate_cleanly` ends the process; a plug-in may call sys.exit(), too."""
    return isinstance(error, SystemExit) and error.code in {128 + number for number in ENDING}


@contextmanager
def terminate_cleanly(save: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into SystemExit, as Python turns SIGINT into KeyboardInterrupt, so that what is pending gets
    written. Main thread only, as Python has it.

    Python handles a signal between two bytecodes, and a single operation on a huge image may take an hour. So a thread watches:
    if the block goes on for SECONDS_TO_OBEY after a signal, it calls `save` and ends the process.
    """

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    listener, waker = socket.socketpair()
    waker.setblocking(False)  # as signal.set_wakeup_fd wants it
    outer, ended = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False), threading.Event()
    threading.Thread(target=_watch, args=(listener, ended, save), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(outer)
        waker.close()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch(listener: socket.socket, ended: threading.Event, save: Callable[[], None]) -> None:
    """Waits for a signal that ends the process (its number is sent to the socket), then for the end of the block."""
    with listener:
        while number := listener.recv(1):  # nothing comes where the other side is closed
            if number[0] in ENDING and not ended.wait(SECONDS_TO_OBEY):
                try:
                    save()
                finally:
                    print(f"error: ended by {signal.Signals(number[0]).name}; {KEPT}", file=sys.stderr, flush=True)
                    os._exit(128 + number[0])


@contextmanager
def locked(folder: Path, option: str) -> Iterator[None]:
    """Keeps other processes from writing to the same folder; `option` is what chooses another one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise OvssError(
            f"cannot write {folder}: {error.strerror}. Change its permissions or choose another folder with {option}=DIR."
        ) from error
    with lock:
        deadline = time.monotonic() + SECONDS_TO_END
        while not _has(lock):
            if time.monotonic() > deadline:
                raise OvssError(
                    f"another process is writing to {folder}{holder_of(lock)}. Wait for it, or choose another folder with "
                    f"{option}=DIR."
                )
            time.sleep(0.05)
        sign(lock)
        yield


def sign(lock: IO[str]) -> None:
    """Writes into a lock's file, open for reading and appending, who holds it."""
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()


def holder_of(lock: IO[str]) -> str:
    """' (process 123 on node7)' of a lock that another process holds; nothing where it has not said so."""
    lock.seek(0)
    text = lock.read(200).strip()
    return f" ({text})" if text.isprintable() and text else ""


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
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)  # it is the parent's
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _call(number: int) -> Any:
    function, items = _work
    return function(items[number])


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for work for ever, and keep the lock that it has from the fork."""
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)
