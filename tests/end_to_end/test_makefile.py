"""What `make` says before and after an installation that cannot succeed, with a Python that installs nothing."""

import shutil
import subprocess
import sys

import pytest

from end_to_end.tools import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")
# Stands for Python: reports the free space of a disk, and makes an environment whose pip fails.
STAND_IN = """#!{python}
import os, shutil, sys
from types import SimpleNamespace
shutil.disk_usage = lambda folder: SimpleNamespace(free={free})
if sys.argv[1] == "-c":
    exec(sys.argv[2])
elif sys.argv[1:3] == ["-m", "venv"]:
    os.makedirs(".venv/bin")
    os.symlink(__file__, ".venv/bin/python")
else:
    sys.exit("ERROR: no space left on device")
"""


@pytest.fixture
def made(tmp_path):
    """`made(free)`: the last line of an installation that ends with an error, on a disk with so many bytes."""

    def make(free):
        python = tmp_path / "python"
        python.write_text(STAND_IN.format(python=sys.executable, free=int(free)))
        python.chmod(0o755)
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, tmp_path)
        words = ["make", "--no-print-directory", ".venv/installed", f"PYTHON={python}"]
        done = subprocess.run(
            words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", check=False
        )
        assert done.returncode != 0
        return [line for line in done.stdout.splitlines() if not line.startswith(("make:", "make["))]

    return make


def test_a_disk_that_is_too_full_is_refused_before_anything_is_installed(made, tmp_path):
    (line,) = made(7.94e9)
    assert line.startswith("7.9 GB are free on the disk of this folder, and the installation takes about 8: make room")
    assert not (tmp_path / ".venv").exists()


def test_an_installation_that_fails_says_how_to_repeat_it(made, tmp_path):
    *_, error, hint = made(8e9)
    assert error == "ERROR: no space left on device"
    assert hint.endswith("remove .venv (rm -r .venv), and run make again")


def test_an_installation_that_is_only_updated_needs_less_room(made, tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "installed").touch()
    *others, error, _ = made(1e9)
    assert error == "ERROR: no space left on device"
    assert not any("GB are free" in line for line in others)
