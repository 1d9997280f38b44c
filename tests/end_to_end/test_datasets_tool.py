"""tools/datasets.py as a user runs it."""

import json
import os
import re
import signal
import time

import numpy as np
import pytest
from PIL import Image

from end_to_end.tools import run
from forked import Forked
from miniatures import MINIATURES
from ovss_bench.cli.main import main
from ovss_bench.datasets import layout
from ovss_bench.datasets.base import load_dataset
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.expected import counts
from ovss_bench.files import config_names

YAML = """
images: images
labels: labels
image_suffix: .png
label_suffix: .png
classes: [sky, grass, road]
prepare: {converter: halved, raw: [raw]}
"""
# A plug-in with a converter that takes its time.
PLUGIN = """
import time

from ovss_bench.datasets.prepare.conversion import CONVERTERS, Task, files, read_pixels, write_label


@CONVERTERS.register_module(name="halved")
def halved(folder):
    for path in files(folder / "raw", "*.png"):
        target = folder / "labels" / path.name
        yield Task(halve, (path, target), (target,))


def halve(source, target):
    time.sleep(SECONDS)
    write_label(target, read_pixels(source) // 2)
"""


@pytest.fixture
def own(tmp_path):
    """The folder of a data set of one's own: nine images, raw labels, mine.yaml and converter.py."""
    rng = np.random.RandomState(0)
    for number in range(9):
        for kind, shape in (("images", (40, 60, 3)), ("raw", (40, 60))):
            (tmp_path / kind).mkdir(exist_ok=True)
            values = rng.randint(0, 3, (4, 6, 3)[: len(shape)]).repeat(10, 0).repeat(10, 1)
            Image.fromarray((2 * values).astype(np.uint8)).save(tmp_path / kind / f"{number}.png")
    (tmp_path / "mine.yaml").write_text(YAML)
    (tmp_path / "converter.py").write_text(PLUGIN.replace("SECONDS", "0"))
    return tmp_path


def run_here(monkeypatch, *words):
    """What the tool does after its start, in this process: its exit status."""
    monkeypatch.delenv("OVSS_DATA", raising=False)
    monkeypatch.setattr("sys.argv", ["datasets.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main("datasets")
    return end.value.code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ["name a command: list, prepare or check"]),
        (["lst"], ["'lst'", "check, list, prepare"]),
        (["list", "voc12"], ["voc12", "Did you mean", "voc21"]),
        (["list", "data_rot=x"], ["data_rot", "data_root"]),
        (["prepare"], ["name a data set", "list"]),
        (["prepare", "citiscapes", "data_root=."], ["citiscapes", "cityscapes"]),
        (["prepare", "voc21"], ["data_root=DIR", "OVSS_DATA"]),
        (["prepare", "voc21", "data_root=.", "yes=perhaps"], ["yes='perhaps'", "true or false"]),
        (["prepare", "voc21", "data_root=.", "workers=0"], ["workers=0"]),
        (["prepare", "voc21", "data_root=new"], ["VOCtrainval_11-May-2012.tar", "Licence", "data_root=new yes=true"]),
        (["prepare", "cityscapes", "data_root=new"], ["gtFine_trainvaltest.zip", "downloaded by hand", "Licence"]),
        (["prepare", "mine.yaml"], ["mine.yaml", "does not exist"]),
        (["check"], ["name a data set"]),
        (["check", "voc21"], ["data_root=DIR", "OVSS_DATA"]),
        (["check", "voc21", "data_root=007"], ["not found in 007", "JPEGImages/<id>.jpg"]),
        (["check", "voc21", "data_root=[a"], ["not found in [a."]),
        (["check", "voc21", "data_root=[a]"], ["not found in [a]"]),
        (["check", "voc21", "voc20", "out=x"], ["out=FILE", "one data set at a time"]),
        (["check", "demo", "against=nowhere.json"], ["nowhere.json", "out=FILE"]),
        (["check", "demo", "plugins=nowhere.py"], ["nowhere.py"]),
    ],
    ids=" ".join,
)
def test_bad_input_gets_a_clear_error_and_status_2(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, *words) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert all(part in message for part in said), message
    assert list(tmp_path.iterdir()) == []


def test_the_list_shows_what_is_here(tmp_path, monkeypatch, capsys):
    MINIATURES["voc21"](tmp_path)
    assert run_here(monkeypatch, "prepare", "voc21", f"data_root={tmp_path}", "workers=1") == 0
    assert run_here(monkeypatch, "list", f"data_root={tmp_path}") == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert set(config_names("dataset")) <= set(rows)
    assert "4 of 1449 images" in rows["voc21"]
    numbers = {name: re.split(r"  +", rows[name])[2] for name in config_names("dataset")}
    known = {name: counts(dataset_config(name)[1]) for name in numbers if not name.startswith("demo")}
    assert {name for name, number in numbers.items() if number == "?"} == {name for name in known if not known[name]}
    assert (numbers["vdd"], numbers["context60"], numbers["demo"]) == ("?", "5104 or 5105", "100")
    assert " no " in rows["cityscapes"]


@pytest.mark.parametrize("name", config_names("dataset"))
def test_everything_about_one(name, monkeypatch, capsys):
    monkeypatch.delenv("OVSS_DATA", raising=False)
    for words in ([], ["data_root=nowhere"]):
        assert run_here(monkeypatch, "list", name, *words) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{name}: ")
        assert "licence" in out
        assert max(map(len, out.splitlines())) <= 80
        if dataset_config(name)[1].get("loader") != "demo":
            assert re.search(
                r"^missing\s+nowhere/" if words else rf"^missing\s+{re.escape(str(layout.DATASET_FACTS))}/", out, re.MULTILINE
            )


def test_what_is_missing_of_one_is_said(tmp_path, monkeypatch, capsys):
    MINIATURES["voc21"](tmp_path)
    assert run_here(monkeypatch, "prepare", "voc21", f"data_root={tmp_path}", "workers=1") == 0
    labels = tmp_path / "VOCdevkit/VOC2012/SegmentationClass"
    monkeypatch.chdir(tmp_path)
    load_dataset("voc21", tmp_path).samples[0].label_path.unlink()
    for expected in ("lacks 1 of its files", "VOCdevkit/VOC2012/SegmentationClass"):
        assert run_here(monkeypatch, "list", "voc21", "data_root=.") == 0
        assert expected in " ".join(capsys.readouterr().out.partition("missing")[2].partition("licence")[0].split())
        labels.rename(tmp_path / "away") if labels.exists() else None


def test_one_s_own_data_are_listed_too(own, monkeypatch, capsys):
    assert run_here(monkeypatch, "list", own / "mine.yaml") == 0
    out = capsys.readouterr().out
    assert out.startswith("mine: ")
    assert f"prepare {own / 'mine.yaml'} data_root=DIR" in out


def test_from_archives_to_a_manifest(tmp_path):
    MINIATURES["voc21"](tmp_path / "downloads")
    words = [f"data_root={tmp_path / 'data'}", "workers=2"]
    done = run("datasets.py", "prepare", "voc21", *words, "source=downloads", cwd=tmp_path)
    assert "voc21 is ready: 4 images in" in done.stderr
    assert "note: 4 images are listed, 1449 are expected; results are marked as partial" in done.stderr
    checked = run("datasets.py", "check", "voc21", *words, "out=mine.json", cwd=tmp_path, status=1)
    assert "number of images: 1" in checked.stdout
    assert "4 images are listed, 1449 are expected" in checked.stdout
    assert "findings: 1" in checked.stdout
    assert "tvmonitor" in checked.stdout
    path = tmp_path / "data/VOCdevkit/VOC2012/SegmentationClass/2007_000033.png"
    Image.open(path).convert("RGB").save(path)
    checked = run("datasets.py", "check", "voc21", *words, "against=mine.json", cwd=tmp_path, status=1)
    assert f"  {path}: " in checked.stdout
    assert "colours instead of class numbers: 1" in checked.stdout
    assert "by_colour" in checked.stdout
    assert "other labels than in the manifest: 1" in checked.stdout
    assert json.loads((tmp_path / "mine.json").read_text())["images"] == 4


def test_a_preparation_that_is_interrupted_goes_on(own):
    words = ["prepare", "mine.yaml", "plugins=converter.py", "workers=2"]
    (own / "converter.py").write_text(PLUGIN.replace("SECONDS", "1"))
    environment = {key: value for key, value in os.environ.items() if key != "OVSS_DATA"}
    process = Forked("datasets.py", *words, cwd=own, env=environment)
    deadline = time.monotonic() + 120
    while not list((own / "labels").glob("[0-9]*.png")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    assert process.returncode == 2, errors
    assert errors.splitlines()[-1] == "error: interrupted; what was finished is kept; rerun the same command to resume"
    made = list((own / "labels").glob("[0-9]*.png"))
    assert 1 <= len(made) < 9
    checked = run("datasets.py", "check", "mine.yaml", cwd=own, status=2)
    assert "half prepared" in checked.stderr
    assert "python tools/datasets.py prepare mine.yaml" in checked.stderr
    (own / "converter.py").write_text(PLUGIN.replace("SECONDS", "0"))
    done = run("datasets.py", *words, cwd=own)
    assert f"{len(made)} of 9 files are already converted" in done.stderr
    checked = run("datasets.py", "check", "mine.yaml", cwd=own)
    assert "nothing is wrong" in checked.stdout
