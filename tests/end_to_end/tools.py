"""Running the tools as a user does: in a process of their own, in a folder of their own; or, to save the start, in this one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hydra

from forked import Forked
from ovss_bench.cli.evaluation import main
from ovss_bench.cli.overrides import checked
from ovss_bench.files import CONFIGS

ROOT = Path(__file__).resolve().parents[2]
KEPT = {"OVSS_DATA": ""}


def command(tool: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / tool), *map(str, arguments)]


def run(tool: str, *arguments: object, cwd: Path, status: int = 0) -> subprocess.CompletedProcess:
    """Runs a tool in a process of its own and checks its exit status; whatever happens there is no traceback."""
    environment = {key: value for key, value in os.environ.items() if key not in KEPT}
    process = Forked(tool, *arguments, cwd=cwd, env=environment)
    out, err = process.communicate()
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def evaluate(*arguments: object, cwd: Path, status: int = 0) -> subprocess.CompletedProcess:
    return run("eval.py", "runtime.threads=1", *arguments, cwd=cwd, status=status)


def evaluate_here(*arguments: object) -> int:
    """What tools/eval.py does after its start, with the same check and composition of its arguments, in this process."""
    overrides = checked(["runtime.threads=1", *map(str, arguments)])
    with hydra.initialize_config_dir(str(CONFIGS / "tools"), version_base="1.3"):
        return main(hydra.compose("eval", overrides=overrides))


def results(folder: Path) -> dict[str, dict]:
    """The result files below a folder by segmentor and data set."""
    found = [json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))]
    return {f"{result['segmentor']}/{result['dataset']}": result for result in found}


def first_version(result: dict) -> dict:
    """A result as the first version of their schema had it."""
    old = {key: value for key, value in result.items() if key not in ("published", "sources", "fairness")}
    timing = {key: value for key, value in result["timing"].items() if key != "stages"}
    provenance = {key: value for key, value in result["provenance"].items() if key not in ("code", "recipe")}
    return old | {"timing": timing, "provenance": provenance, "schema_version": 1}
