"""SAM 3 and the methods on it from the command line: the tiny network on a miniature VOC."""

import signal
import subprocess
import time

import numpy as np
import pytest

from end_to_end.tools import command, evaluate, evaluate_here, results, run
from miniatures.voc import write_voc
from ovss_bench.config.recipe import compose_recipe
from ovss_bench.runs.store import IMAGES_PER_SHARD, read_counts

IMAGES = IMAGES_PER_SHARD + 8
METHODS = ["sam3", "segearth_ov3", "active_sam"]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    write_voc(root, images=IMAGES)
    return [f"segmentor=[{','.join(METHODS)}]", "dataset=voc21", f"data_root={root}", "concepts=demo"]


def counts(folder):
    return {path.stem.split("-")[0]: read_counts(path)[:2] for path in folder.rglob("*.npz")}


def test_a_killed_run_goes_on_with_identical_counts_and_is_reported(arguments, tmp_path, monkeypatch):
    killed, quiet = tmp_path / "killed", tmp_path / "quiet"
    started = command("eval.py", "runtime.threads=1", *arguments, f"output={killed}")
    process = subprocess.Popen(started, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(killed.rglob("0*.npz"))) < len(METHODS) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert results(killed) == {}
    assert "resumed, " in evaluate(*arguments, f"output={killed}", cwd=tmp_path).stderr
    monkeypatch.chdir(tmp_path)
    evaluate_here(*arguments, f"output={quiet}")
    found, expected = counts(killed), counts(quiet)
    assert sorted(found) == sorted(expected) == sorted(METHODS)
    for name, (of_images, hashes) in expected.items():
        assert found[name][1] == hashes
        assert len(of_images) == IMAGES
        assert all(np.array_equal(found[name][0][image], count) for image, count in of_images.items())
    report = run("report.py", killed, "partial=true", cwd=tmp_path).stdout
    assert all(name in report for name in METHODS)
    assert "stand-in concepts" in report


def test_a_dry_run_states_every_option_with_its_origin(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    evaluate_here(*arguments, "dry_run=true")
    shown = capsys.readouterr().out.split("recipe of ")[1:]
    assert [text.partition(":")[0] for text in shown] == METHODS
    for name, text in zip(METHODS, shown, strict=True):
        stated = {words[0]: words[1:] for line in text.splitlines() if len(words := line.split()) > 2}
        for option in compose_recipe(name, dataset="voc21").hyperparameters:
            assert len(stated[option]) > 1, option
        assert stated["concepts"] == ["demo", "command", "line"]
        assert stated["early_skip"][:3] == ["True", "default", "of"]
        assert stated["prob_thd"][-1] == "per_dataset.voc21"
