"""Starting tools/eval.py in several processes, as a user does, and reading their results."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from forked import Forked
from ovss_bench.runs.load import result_paths
from ovss_bench.runs.store import read_counts, read_result

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]


def start(*arguments: object, processes: int = 1, cwd: Path, threads: int = 1, **environment: str) -> subprocess.Popen | Forked:
    tool, env = ["eval.py", f"runtime.threads={threads}", *map(str, arguments)], os.environ | environment
    if processes == 1:
        return Forked(*tool, cwd=cwd, env=env)
    launched = [*TORCHRUN, str(processes), str(ROOT / "tools" / tool[0]), *tool[1:]]
    return subprocess.Popen(launched, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments: object, status: int = 0, **options) -> tuple[str, str]:
    """The output of the tool, whose exit status is checked."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=900)
    assert process.returncode == status, out + err
    return out, err


def run_two(*arguments: object, cwd: Path, status: int = 0) -> str:
    """The errors of the tool in two processes with the variables that torchrun sets, each with this exit status."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    both = [start(*arguments, cwd=cwd, **known, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    errors = [process.communicate(timeout=900)[1] for process in both]
    assert [process.returncode for process in both] == [status, status], errors
    return "".join(errors)


def counted(folder: Path) -> dict[str, dict[str, tuple]]:
    """For each segmentor's result below a folder and each image: the hash of its label map and its counts as bytes."""
    found = {}
    for path in result_paths(folder):
        counts, hashes, _ = read_counts(path.with_suffix(".npz"))
        found[read_result(path)["segmentor"]] = {name: (hashes[name], counts[name].tobytes()) for name in sorted(counts)}
    return found


def rank_of(process: int, rank: int) -> int | None:
    """The process of a rank, started by torchrun."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and f"\0RANK={rank}\0".encode() in (path / "environ").read_bytes():
                return int(path.name)
        except (OSError, ProcessLookupError):
            continue
    return None


def wait_for(condition, seconds: float = 120):
    """The value of the condition once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value
