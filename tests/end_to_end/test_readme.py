"""What the README says, done."""

import re
import subprocess
import sys

import pytest

from end_to_end.tools import ROOT, evaluate, results

README = ROOT / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_a_new_method_in_25_lines_runs_as_the_readme_has_it(tmp_path):
    (code,) = [block for block in blocks("python") if "register_module" in block]
    assert code.count("\n") <= 25
    (tmp_path / "my_method.py").write_text(code)
    (line,) = [line for block in blocks("bash") for line in block.splitlines() if "plugins=" in line]
    arguments = line.split("#")[0].replace("'", "").split("tools/eval.py ")[1].split()
    done = evaluate(*arguments, "limit=2", cwd=tmp_path)
    (result,) = results(tmp_path).values()
    assert result["segmentor"] in code
    assert result["provenance"]["plugins"]
    assert result["segmentor"] in done.stdout


def test_the_python_example_runs(tmp_path):
    (code,) = [block for block in blocks("python") if "load_clip" in block]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_its_table_is_the_committed_one():
    table = (ROOT / "results/demo/table.md").read_text()
    assert table in README.read_text()


def test_the_wheel_works_from_an_empty_folder(tmp_path):
    """It carries configurations, recipes and the demo weights."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path / "wheel"), str(ROOT)]
    subprocess.run(wheel, check=True, capture_output=True)
    (file,) = (tmp_path / "wheel").glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(file)], check=True, capture_output=True
    )
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
import ovss_bench as ob
assert {str(tmp_path)!r} in ob.__file__
data, clip = ob.load_dataset("demo"), ob.load_clip("demo")
segmentor = ob.build_segmentor("sclip", clip=clip, vocabulary=data.vocabulary("demo", "notebook7"))
print(ob.evaluate(segmentor, data, limit=1))
"""
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=empty, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "sclip on demo" in done.stdout


@pytest.mark.parametrize(
    "file", ["CITATION.cff", "LICENSE", "CONTRIBUTING.md", "constraints.txt", "ovss_bench/weights/README.md"]
)
def test_what_a_project_needs_is_there(file):
    assert (ROOT / file).read_text().strip()
