"""A short run of kills.py, in a separate process because it forks."""

import re
import subprocess
import sys
from pathlib import Path


def test_killed_runs_end_with_identical_counts():
    script = Path(__file__).with_name("kills.py")
    done = subprocess.run([sys.executable, script, "times=3", "seed=1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) of them before", done.stdout)[1]) >= 1
