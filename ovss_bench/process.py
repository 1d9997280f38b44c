"""Tools for long-running commands: clean termination, locks, and work in threads and processes."""

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

TERMINATING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 5.0  # from a signal to the forced exit of a process that has not reacted
RELEASE_SECONDS = 1.0  # until the workers of a killed process have noticed and released its lock


class Ended(SystemExit):
    """The exit of a process that a signal terminated; `code` is 128 + its number, as in a shell."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


@contextmanager
def terminate_cleanly(save: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into `Ended`, as Python turns SIGINT into KeyboardInterrupt, so that pending results are
    written. It has no effect outside the main thread, the only one in which Python handles signals.

    Python handles a signal between two bytecodes, but a single operation on a huge image may take an hour. If the block is
    still running GRACE_SECONDS after a signal, a thread calls `save` and exits the process."""

    def stop(number: int, _: object) -> None:
        raise Ended(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    listener, waker = socket.socketpair()
    waker.setblocking(False)  # signal.set_wakeup_fd requires it
    outer, ended = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False), threading.Event()
    watcher = threading.Thread(target=_watch, args=(listener, ended, save), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(outer)
        waker.shutdown(socket.SHUT_RDWR)  # forked processes may still hold it open
        waker.close()
        watcher.join()  # else it might free the tensors that `save` holds while the interpreter exits, which aborts the process
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch(listener: socket.socket, ended: threading.Event, save: Callable[[], None]) -> None:
    """Waits for a terminating signal, whose number arrives through the socket, and then for the end of the block."""
    with listener:
        while number := listener.recv(1):  # empty once the other side is closed
            if number[0] in TERMINATING and not ended.wait(GRACE_SECONDS):
                try:
                    save()
                finally:
                    print(f"error: ended by {signal.Signals(number[0]).name}; {KEPT}", file=sys.stderr, flush=True)
                    os._exit(128 + number[0])


def locked(folder: Path, option: str) -> IO[str]:
    """Locks a folder to which one process at a time may write. The error message names `option`, which chooses another one."""
    return take_lock(folder / ".lock", option, patience=RELEASE_SECONDS)


def take_lock(path: Path, option: str, *, shared: bool = False, patience: float = 0.0) -> IO[str]:
    """Locks a file until it is closed or its process dies, and writes the holder's process id and host into it. Raises
    OvssError if another process still holds the lock after `patience` seconds. filelock would not do: it keeps shared locks
    in SQLite, which is not safe on NFS, or uses lock files that survive their holder."""
    deadline = time.monotonic() + patience
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("a+", encoding="utf-8")
        except OSError as error:
            hint = f"Change its permissions or choose another folder with {option}=DIR."
            raise OvssError(f"cannot write {path.parent}: {error.strerror}. {hint}") from error
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if _is_at(path, lock):  # else the previous holder has finished and removed the file
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {socket.gethostname()}")
                lock.flush()
                return lock
            lock.close()
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read(200).strip()
            lock.close()
            if time.monotonic() >= deadline:
                named = f" ({holder})" if holder and holder.isprintable() else ""
                hint = f"Wait for it, or choose another folder with {option}=DIR."
                raise OvssError(f"another process is writing to {path.parent}{named}. {hint}") from None
            time.sleep(0.05)
        except OSError as error:
            lock.close()
            hint = f"Choose another file system with {option}=DIR."
            raise OvssError(f"{path.parent} cannot be locked: {error.strerror}. {hint}") from error


def _is_at(path: Path, file: IO[str]) -> bool:
    """Whether an open file is still the one at this path; on NFS, deleted files that are open keep a link."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def in_threads(function: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Iterator[Any]:
    """Yields `function(item)` in the order of the items; threads compute a few results ahead. If iterating over the items
    fails, the results of the earlier items are yielded first; joblib would drop them."""
    failure = None
    ahead: deque = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                while len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            failure = error
        while ahead:
            yield ahead.popleft().result()
    if failure:
        raise failure


def in_processes(function: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """Yields (item, `function(item)` or the OvssError that it raised) as they complete, from `workers` forked processes, which
    inherit function and items: only results are pickled. joblib would pickle everything and import torch in each process."""
    items = list(items)
    left = iter(range(len(items)))
    context = multiprocessing.get_context("fork")
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
        raise OvssError("a worker process was killed, perhaps out of memory. Run it again with workers=1.") from error


def _begin(function: Callable[[Any], Any], items: list[Any], parent: int) -> None:
    """Initialises a worker. Ctrl-C reaches all processes of a terminal; only the parent reacts, once running calls are done."""
    global _work
    _work = function, items
    for number in TERMINATING:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    signal.set_wakeup_fd(-1)  # inherited from the parent
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _call(number: int) -> Any:
    function, items = _work
    return function(items[number])


def _end_with(parent: int) -> None:
    """Exits once the parent is gone; otherwise the worker would wait for work forever and keep the lock that it inherited."""
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)
