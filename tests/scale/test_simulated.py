"""A small run of simulated.py, in a separate process because it forks."""

import json
import subprocess
import sys
from pathlib import Path


def test_a_killed_run_over_labels_of_16_bits_is_resumed_to_the_same_counts():
    script = Path(__file__).with_name("simulated.py")
    words = ["images=40", "height=48", "width=64", "classes=260", "queries=280"]
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert facts["images"] == 40
    assert facts["files"] == 2
    assert {"read", "encode", "compose", "count", "store"} <= facts["stages_ms"].keys()
