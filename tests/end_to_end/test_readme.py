"""What README and docs say, done."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from end_to_end.tools import ROOT, evaluate, results, run
from miniatures.drawing import encoded, scene, write_files
from pages import blocks


def test_a_new_method_in_25_lines_runs_as_the_pages_have_it(tmp_path):
    (code,) = [block for block in blocks("python") if 'name="valueclip"' in block]
    assert code.count("\n") <= 25
    (tmp_path / "my_clip.py").write_text(code)
    (line,) = [line for block in blocks("bash") for line in block.splitlines() if "segmentor=valueclip" in line]
    arguments = line.split("#")[0].replace("'", "").split("tools/eval.py ")[1].split()
    done = evaluate(*arguments[:-1], "limit=2", cwd=tmp_path)
    assert arguments[-1] == "limit=10"
    (result,) = results(tmp_path).values()
    assert result["segmentor"] in code
    assert result["provenance"]["plugins"]
    assert result["segmentor"] in done.stdout


@pytest.fixture
def my_data(tmp_path):
    """Photos and masks beside the five lines of docs/datasets.md."""
    (code,) = [block for block in blocks("yaml") if block.startswith("images: photos")]
    assert code.count("\n") == 5
    (tmp_path / "my_data.yaml").write_text(code)
    for number in range(3):
        image, label = scene(number, [number, (number + 1) % 3])
        write_files(tmp_path, {f"photos/{number}.jpg": encoded(image, "JPEG")})
        write_files(tmp_path, {f"masks/{number}.png": encoded(label.astype(np.uint8), "PNG")})
    return tmp_path


def test_own_data_in_five_lines_runs_as_the_page_has_it(my_data):
    (line,) = [line for block in blocks("bash") for line in block.splitlines() if "eval.py" in line and "my_data.yaml" in line]
    arguments = line.split("tools/eval.py ")[1].replace("clip=vit_b16", "clip=demo").split()
    evaluate(*arguments, cwd=my_data)
    (result,) = results(my_data).values()
    assert [row["class"] for row in result["per_class"]] == ["road", "tree", "car"]
    assert result["images"] == {"expected": 3, "evaluated": 3, "failed": {}}
    done = run("datasets.py", "check", "my_data.yaml", cwd=my_data)
    assert "my_data" in done.stdout


def test_a_loader_of_ones_own_runs_as_the_page_has_it(my_data):
    (code,) = [block for block in blocks("python") if "DATASETS.register_module" in block]
    (my_data / "inverted.py").write_text(code)
    for path in (my_data / "masks").iterdir():
        path.write_bytes(encoded(np.where(np.array(Image.open(path)) == 1, 0, 255).astype(np.uint8), "PNG"))
    config = (my_data / "my_data.yaml").read_text() + "loader: inverted\n"
    assert "[road, [tree, bush], car]" in config
    (my_data / "my_data.yaml").write_text(config.replace("[road, [tree, bush], car]", "[ground, road]"))
    evaluate("plugins=[inverted.py]", "segmentor=clip", "dataset=my_data.yaml", cwd=my_data)
    (result,) = results(my_data).values()
    assert all(row["true"] > 0 for row in result["per_class"])


@pytest.mark.parametrize("name", ["demo", "demo_full"])
def test_the_table_of_the_demo_is_the_committed_one(name):
    table = (ROOT / "results" / name / "table.md").read_text()
    assert table in (ROOT / "docs/demo.md").read_text()


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
