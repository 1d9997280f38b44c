"""Tools started with a Python that has no libraries: one line says which Python it is, and what to do."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import lazy_loader
import pytest

from end_to_end.tools import ROOT

TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what a tool reads before it imports a library."""
    folder = tmp_path_factory.mktemp("a checkout")
    for part in ("ovss_bench", "tools"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "results").symlink_to(ROOT / "results")
    (folder / "datasets").mkdir()
    return folder


def bare(*words, cwd, libraries=None, python=(sys.executable, "-S")):
    """Runs this Python without its installed packages, or another, and checks that it prints one line."""
    paths = {"PYTHONPATH": str(libraries)} if libraries else {}
    done = subprocess.run([*python, *words], cwd=cwd, env=paths, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    (line,) = (done.stdout + done.stderr).splitlines()
    assert line.startswith(f"error: {python[0]} (Python 3.")
    return line


@pytest.mark.parametrize("tool", TOOLS)
def test_a_python_without_libraries_is_told_how_to_install_them(tool, checkout, tmp_path):
    line = bare(str(checkout / "tools" / tool), "a=b c", cwd=tmp_path)
    assert "no module 'lazy_loader'. Install them" in line
    assert f"cd '{checkout}' && python3 -m venv .venv && .venv/bin/pip install" in line


@pytest.mark.parametrize("tool", TOOLS)
def test_the_environment_of_the_checkout_is_named(tool, checkout):
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    try:
        line = bare(f"tools/{tool}", "a=b c", cwd=checkout)
    finally:
        shutil.rmtree(checkout / ".venv")
    assert line.endswith(f"Use the environment of this checkout: .venv/bin/python tools/{tool} 'a=b c'")


def test_an_environment_of_the_checkout_that_was_not_finished_is_made_again(checkout):
    venv.create(checkout / ".venv", symlinks=True)
    try:
        line = bare("tools/eval.py", cwd=checkout, python=[checkout / ".venv" / "bin" / "python"])
    finally:
        shutil.rmtree(checkout / ".venv")
    assert line.endswith(f"its installation was not finished. Repeat it: cd '{checkout}' && rm -r .venv && make demo")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_part_of_the_libraries_is_not_enough(tool, checkout, tmp_path):
    (tmp_path / "lazy_loader").symlink_to(Path(lazy_loader.__file__).parent)
    line = bare(str(checkout / "tools" / tool), cwd=tmp_path, libraries=tmp_path)
    assert "lazy_loader" not in line
    assert "Install them" in line


def test_a_program_may_catch_the_error(checkout):
    code = "try:\n    import ovss_bench\nexcept ImportError as error:\n    raise SystemExit(f'error: {error}')"
    assert "no module 'lazy_loader'" in bare("-c", code, cwd=checkout)
