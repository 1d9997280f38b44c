"""A new method from tools/new_method.py runs at once: as a file, as a package, and in the CI of its own repository."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from end_to_end.tools import ROOT, results, run
from forked import Forked
from ovss_bench.cli.new_method import write_method
from ovss_bench.errors import OvssError

DOCS = ROOT / "docs" / "regression.md"
QUICK = "recipe.resize=none recipe.window=48 recipe.stride=48 limit=12"  # a few windows of a few scenes


def shell(line, cwd, **environment):
    """Runs a command line as a user does, with this Python and, without being installed, this project."""
    words = shlex.split(line.replace("python ", f"{sys.executable} ", 1))
    known = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)} | inherited() | environment
    done = subprocess.run(words, cwd=cwd, env=known, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def forked(line, cwd, status=0, **environment):
    """The same for a tool, without its imports. Returns what it prints."""
    python, tool, *words = shlex.split(line)
    assert python == "python"
    process = Forked(cwd / tool, *words, cwd=cwd, env=dict(os.environ) | environment)
    out, err = process.communicate()
    assert process.returncode == status, out + err
    assert "Traceback" not in err
    return out


def inherited():
    return {key: os.environ[key] for key in ("OVSS_CACHE", "OMP_NUM_THREADS", "HOME") if key in os.environ}


def test_the_files_run_as_the_tool_says(tmp_path):
    done = run("new_method.py", "my_method", cwd=tmp_path)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"my_method.py", "configs/segmentor/my_method.yaml", "test_my_method.py"}
    assert all(f"wrote {name}" in done.stdout for name in written)
    (attempt,) = re.findall(r"Try: +(python .*)", done.stdout)
    (test,) = re.findall(r"Test: +(python .*)", done.stdout)
    shell(attempt.replace("limit=10", "limit=2"), tmp_path)
    (result,) = results(tmp_path / "results").values()
    assert result["segmentor"] == "my_method"
    assert result["recipe"]["sharpness"] == {
        "value": 3.0,
        "origin": f"{tmp_path}/configs/segmentor/my_method.yaml per_clip.demo",
    }
    assert "6 passed" in shell(test, tmp_path).stdout


def test_nothing_is_overwritten(tmp_path):
    write_method("my_method", tmp_path / "there")
    with pytest.raises(OvssError, match=r"my_method\.py already exists"):
        write_method("my_method", tmp_path / "there")


@pytest.mark.parametrize("name", ["sclip", "MyMethod", "my-method", "2x", "", "class", "torch", "json", "a.b", "../up", "_x"])
def test_names_that_cannot_be(name, tmp_path):
    with pytest.raises(OvssError, match=r"is not a valid name|already exists|installed Python module"):
        write_method(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_package_is_regression_checked_as_the_docs_say(tmp_path):
    (setup, *_), (workflow,) = (re.findall(rf"```{kind}\n(.*?)```", DOCS.read_text(), re.DOTALL) for kind in ("bash", "yaml"))
    repository, site = tmp_path / "repository", tmp_path / "site"
    repository.mkdir()
    (repository / "ovss-bench").symlink_to(ROOT)
    (tmp_path / "ovss-bench").symlink_to(ROOT)
    shell(setup.strip(), repository)
    steps = [step["run"] for step in yaml.safe_load(workflow)["jobs"]["regression"]["steps"] if "run" in step]
    install, test, evaluate, compare = steps
    assert install.startswith("python -m pip install")
    assert "1 passed" in shell(f"{test} -k recipe", repository).stdout

    def again(output):
        """Installs the package as it is now, and evaluates it."""
        pip = "python -m pip install -q --no-deps --no-build-isolation --no-index --upgrade --target"
        shell(f"{pip} {site} {repository}", tmp_path)
        line = evaluate.replace("output=current", f"output={output}")
        forked(f"{line} {QUICK}", repository, PYTHONPATH=f"{ROOT}:{site}")

    again("baseline")
    (result,) = results(repository / "baseline").values()
    assert list(result["provenance"]["plugins"]) == [str(site / "my_method")]
    method, recipe = (repository / "my_method" / name for name in ("__init__.py", "configs/segmentor/my_method.yaml"))
    one, other = "self.sharpness * v.shape[-1] ** -0.5", "v.shape[-1] ** -0.5 * self.sharpness"
    assert one in method.read_text()
    method.write_text(method.read_text().replace(one, other))
    again("refactored")
    assert "identical" in forked(compare.replace("current", "refactored"), repository)
    recipe.write_text(recipe.read_text().replace("sharpness: 3.0", "sharpness: -9.0"))
    again("current")
    assert "different" in forked(compare, repository, status=1)  # by far: of so few scenes, less is not conclusive
