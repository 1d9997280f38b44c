"""Starting tools/eval.py in several processes, as a user does, and reading their results."""

import os
import subprocess
import sys
import time
from pathlib import Path

from ovss_bench.runs.load import result_paths
from ovss_bench.runs.store import read_counts, read_result

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]


def start(*arguments: object, processes: int = 1, cwd: Path, threads: int = 1, **environment: str) -> subprocess.Popen:
    launcher = [sys.executable] if processes == 1 else [*TORCHRUN, str(processes)]
    tool = ["eval.py", f"runtime.threads={threads}", *map(str, arguments)]
    return subprocess.Popen(
        [*launcher, str(ROOT / "tools" / tool[0]), *tool[1:]],
        cwd=cwd, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(*arguments: object, status: int = 0, **options) -> tuple[str, str]:
    """The output of the tool, whose exit status is checked."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=900)
    assert process.returncode == status, out + err
    return out, err


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
