"""Tools in processes that start in milliseconds: each is forked from a server that has imported the libraries.

A process has an environment, a working directory, streams, signals and an exit status of its own, as after a user's start; only
its imports are those of the server. Real starts are tested by test_startup.py, test_cli.py, test_environment.py and others.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent
TOOLS = TESTS.parent / "tools"
OURS = ["cli.startup", "cli.main", "cli.eval", "cli.evaluation", "cli.segment", "cli.bench", "cli.datasets", "cli.regions"]
THEIRS = ["hydra.main", "hydra._internal.hydra", "open_clip", "pandas"]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([*(f"ovss_bench.{name}" for name in OURS), *THEIRS])


class Forked:
    """A running tool, with what tests use of subprocess.Popen; its streams are kept and read as texts."""

    def __init__(self, tool: str, *arguments: object, cwd: Path, env: dict[str, str] | None = None) -> None:
        self.args, self.returncode = [str(TOOLS / tool), *map(str, arguments)], None
        self.streams = [tempfile.TemporaryFile("w+", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
        places = [f"/proc/{os.getpid()}/fd/{stream.fileno()}" for stream in self.streams]
        environment = dict(os.environ) if env is None else env
        self.process = SERVER.Process(target=_run, args=(self.args, str(cwd), environment, places))
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        self.returncode = self.process.exitcode
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        texts = []
        for stream in self.streams:
            with stream:
                stream.seek(0)
                texts.append(stream.read())
        return texts[0], texts[1]


def _run(words: list[str], cwd: str, environment: dict[str, str], places: list[str]) -> None:
    """What the new process does; it leads a session, whose processes a terminal would signal together."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    for number, place in enumerate(places, 1):
        os.dup2(os.open(place, os.O_WRONLY), number)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.stderr.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    given = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    own = (path for path in sys.path if not Path(path).resolve().is_relative_to(TESTS))
    sys.path[:] = dict.fromkeys([str(Path(words[0]).parent), *given, *own])
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
