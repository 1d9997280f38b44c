"""The environment of a job: what batch systems, containers, notebooks and people leave behind. Tools work there, or end with
one clear error."""

import ast
import os
import re
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import ovss_bench as ob
from end_to_end.tools import ROOT, command, evaluate_here
from miniatures.voc import BASE, write_voc
from ovss_bench.datasets import layout
from ovss_bench.files import PACKAGE, as_text, cache_dir, on_disk, user_path, weights_folders
from ovss_bench.runs.evaluate import make_job, run_jobs

FAST = {"resize": "none", "window": 48, "stride": 48, "pamr_steps": 0}
QUICK = ["segmentor=clip", "limit=1", *(f"recipe.{name}={value}" for name, value in FAST.items())]
VARIABLES = ("OVSS_DATA", "OVSS_CACHE", "OVSS_WEIGHTS", "XDG_CACHE_HOME")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}


def started(tool, *words, cwd, status, **environment):
    """A tool in a separate process, without HOME unless it is given."""
    inherited = {key: value for key, value in os.environ.items() if key not in (*VARIABLES, "HOME")}
    done = subprocess.run(command(tool, *words), cwd=cwd, env=inherited | environment, capture_output=True, check=False)
    told = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert "Traceback" not in told, told
    assert done.returncode == status, told
    return told


def test_a_run_in_a_poor_environment(tmp_path, cache):
    """An ASCII locale, no home that can be written, empty variables; a root with blanks, `=`, `,` and `#`, an id with an accent
    and one in Latin-1; the result is that of the usual environment."""
    root = tmp_path / "my data" / "a=b,c#d"
    ids = write_voc(root)
    latin = os.fsdecode(b"caf\xe9")
    for folder, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):
        (root / BASE / folder / f"{ids[0]}{suffix}").rename(root / BASE / folder / f"größe{suffix}")
        (root / BASE / folder / f"{ids[1]}{suffix}").rename(root / BASE / folder / f"{latin}{suffix}")
    own = root / BASE / "mine.yaml"
    classes = ", ".join(f"thing {number}" for number in range(21))
    lines = "images: JPEGImages, labels: SegmentationClass, image_suffix: .jpg, label_suffix: .png"
    own.write_text(f"{{{lines}, classes: [{classes}]}}")
    words = [*QUICK[:1], *QUICK[2:], f"dataset={own}", "runtime.maps=true", "runtime.threads=1"]
    empty = dict.fromkeys(VARIABLES, "") | {"OVSS_CACHE": cache, "HOME": "/proc/nowhere"}
    told = started("eval.py", *words, f"output={tmp_path}/größe, 1", cwd=tmp_path, status=0, **ASCII, **empty)
    assert "clip" in told
    (path,) = (tmp_path / "größe, 1").rglob("clip-*.json")
    assert {file.stem for file in path.with_suffix(".maps").iterdir()} == {"größe", latin, *ids[2:]}
    dataset = ob.load_dataset(own)
    assert [sample.id for sample in dataset.select(ids=["größe", latin])] == ["größe", latin]
    (here,) = run_jobs([make_job("clip", ob.load_clip("demo"), dataset, overrides=FAST)], quiet=True)
    there = ob.load_results(tmp_path, partial=True).iloc[0]
    assert here.metrics["mIoU"] == there["mIoU"]
    assert here.data["dataset_fingerprint"] == there["dataset_fingerprint"]


def test_tools_that_read_results_in_a_poor_environment(tmp_path):
    """Without a home folder, on an ASCII terminal; the name of the results folder looks like an option."""
    folder = tmp_path / "out=ü"
    run_jobs(
        [make_job("clip", ob.load_clip("demo"), ob.load_dataset("demo"), overrides=FAST)], limit=1, output=folder, quiet=True
    )
    told = started(
        "report.py", str(folder), "partial=true", "published=true", "out=page", "html=true", cwd=tmp_path, status=0, **ASCII
    )
    assert "report.html" in told
    assert (tmp_path / "page/report.html").read_text("utf-8")


def test_variables_that_are_set_but_empty(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    assert cache_dir() == tmp_path / ".cache/ovss_bench"
    assert weights_folders() == [PACKAGE / "weights"]
    said = rf"'voc21' was not found in {re.escape(str(layout.DATASET_FACTS))} \(the default"
    with pytest.raises(ob.OvssError, match=said):
        ob.load_dataset("voc21")
    with pytest.raises(ob.OvssError, match=said):
        evaluate_here("dataset=voc21", *QUICK)
    for name, expected in (("OVSS_CACHE", lambda: cache_dir()), ("OVSS_WEIGHTS", lambda: weights_folders()[0])):
        monkeypatch.setenv(name, "~/x")
        assert expected() == tmp_path / "x"


def test_a_home_that_is_unknown_or_not_to_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("OVSS_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "~nobody_of_this_name/cache")
    with pytest.raises(ob.OvssError, match="Set HOME or OVSS_CACHE"):
        cache_dir()
    with pytest.raises(ob.OvssError, match="home folder is unknown"):
        user_path("~nobody_of_this_name/data")
    (tmp_path / "file").touch()
    for place in ("/proc/nowhere", str(tmp_path / "file")):
        monkeypatch.setenv("OVSS_CACHE", place)
        with pytest.raises(ob.OvssError, match=f"cannot write {place}.*OVSS_CACHE"):
            ob.load_dataset("demo")


def test_a_home_for_every_path(monkeypatch, tmp_path, tiny_state_dict):
    """`~` that no shell has expanded, in options and in Python."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_voc(tmp_path / "data")
    torch.save(tiny_state_dict, tmp_path / "w.pt")
    (tmp_path / "method.py").write_text("")
    words = ["clip=~/w.pt", "dataset=voc21", "data_root=~/data", "plugins=[~/method.py]", "output=~/out"]
    assert evaluate_here(*QUICK, *words, "runtime.feature_cache=~/features", "ids=[2007_000033]") == 0
    assert list((tmp_path / "out/voc21").rglob("clip-*.json"))
    assert len(ob.load_results("~/out", partial=True)) == 1
    assert len(ob.load_dataset("voc21", "~/data").samples) == 4
    assert not Path("~").exists()


def test_labels_that_cannot_be_read(tmp_path):
    """A folder instead of a file, a file that cannot be read, a list that is not one, a folder that links to itself."""
    ids = write_voc(tmp_path)
    label = tmp_path / BASE / "SegmentationClass" / f"{ids[1]}.png"
    label.unlink()
    label.mkdir()
    with pytest.raises(ob.OvssError, match=rf"lacks 1 of its files.*\s+{label} \(line 2"):
        _ = ob.load_dataset("voc21", tmp_path).samples
    label.rmdir()
    label.symlink_to("/proc/self/mem")  # a regular file of which even root cannot read the beginning
    with pytest.raises(ob.OvssError, match=rf"{label} cannot be read: "):
        _ = ob.load_dataset("voc21", tmp_path).fingerprint
    names = tmp_path / BASE / "ImageSets/Segmentation/val.txt"
    names.unlink()
    names.symlink_to(names)
    with pytest.raises(ob.OvssError, match="was not found"):
        ob.load_dataset("voc21", tmp_path)


SWITCHES = {
    "default type": [lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_grad_enabled(False)],
    "default device": [lambda: torch.set_default_device("meta"), lambda: torch.use_deterministic_algorithms(True)],
    "precision": [torch.autocast("cpu", torch.bfloat16).__enter__, lambda: torch.set_float32_matmul_precision("medium")],
    "inference mode": [lambda: torch.inference_mode().__enter__()],
}


def counts_of(image):
    """The steps of a notebook, from loading to numbers."""
    clip, data = ob.load_clip("demo"), ob.load_dataset("demo")
    segmentor = ob.build_segmentor("proxyclip", clip=clip, vocabulary=data.vocabulary(None, "photo"), vfm="demo", **FAST)
    return ob.evaluate(segmentor, data, limit=1).metrics, ob.segment(segmentor, image).scores.clone()


def test_global_switches_of_torch_change_nothing():
    """Each in its own thread, as in a server, where signals cannot be handled either."""
    image = np.random.RandomState(0).randint(0, 256, (60, 80, 3), np.uint8)
    metrics, scores = counts_of(image)
    before = torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    outcome = {}

    def attempt(name):
        try:
            for switch in SWITCHES[name]:
                switch()
            state = torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu")
            outcome[name] = counts_of(image)
            assert state == (torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu"))
        except BaseException as error:
            outcome[name] = error

    for name in SWITCHES:
        try:
            thread = threading.Thread(target=attempt, args=(name,))
            thread.start()
            thread.join()
        finally:
            torch.set_default_dtype(before[0])
            torch.set_float32_matmul_precision(before[1])
            torch.use_deterministic_algorithms(before[2])
        assert isinstance(outcome[name], tuple), (name, outcome[name])
        assert outcome[name][0] == metrics, name
        assert torch.equal(outcome[name][1], scores), name


def test_names_of_files_are_texts_that_no_locale_changes():
    for raw in (b"a", "größe".encode(), b"caf\xe9", "名".encode()):
        assert os.fsencode(on_disk(as_text(os.fsdecode(raw)))) == raw
    with pytest.raises(ob.OvssError, match="half a character"):
        on_disk("\ud800")


def test_texts_are_read_and_written_in_utf_8():
    """Whatever the locale: no file is opened as text without an encoding, and no variable is read but where empty ones count as
    none."""
    found = []
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            call = node.func if isinstance(node, ast.Call) else None
            name = getattr(call, "attr", getattr(call, "id", ""))
            if not name:
                continue
            known = [key.arg for key in node.keywords]
            values = [value.value for value in node.args if isinstance(value, ast.Constant) and isinstance(value.value, str)]
            texts = {"read_text": 0, "write_text": 1}
            owner = ast.unparse(call.value) if isinstance(call, ast.Attribute) else ""
            if name in texts and owner and "encoding" not in known and len(node.args) <= texts[name]:
                found.append((path.name, node.lineno, name))
            others = ("Image", "tarfile", "zipfile", "os", "self", "member", "file", "archive")
            text = "encoding" not in known and not any("b" in value for value in values)
            if name == "open" and owner not in others and text:
                found.append((path.name, node.lineno, name))
            if name == "get" and owner == "os.environ" and any(value in VARIABLES for value in values):
                found.append((path.name, node.lineno, "environ"))
            if name == "expanduser" and path.name != "files.py":
                found.append((path.name, node.lineno, name))
    assert not found
