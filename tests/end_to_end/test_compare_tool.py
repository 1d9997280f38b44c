"""tools/compare.py as a user and as CI run it: real runs, exit statuses, what is printed and written."""

import json
import shlex
import shutil
import subprocess

import pytest

from end_to_end.tools import command, evaluate_here, run
from ovss_bench.cli.main import main
from ovss_bench.config.recipe import compose_recipe
from ovss_bench.evaluation.confusion import total
from ovss_bench.evaluation.metrics import areas, class_metrics, metrics
from ovss_bench.runs.load import result_paths
from ovss_bench.runs.store import RunStore
from unit.test_bootstrap import by_id, drawn

FAST = ["limit=30", "recipe.resize=none", "recipe.window=48", "recipe.stride=48"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`before` and `after` a change of the code that changes no number, and `warm`: at another temperature."""
    folder = tmp_path_factory.mktemp("runs")
    common = ["segmentor=[clip,sclip]", *FAST, "recipe.threshold=0.2"]
    with pytest.MonkeyPatch.context() as patch:
        assert evaluate_here(*common, f"output={folder}/before") == 0
        assert evaluate_here(*common, f"output={folder}/warm", "recipe.logit_scale=8") == 0
        for name in ("ovss_bench.runs.jobs.source_digest", "ovss_bench.runs.provenance.source_digest"):
            patch.setattr(name, lambda *_: "0" * 64)
        assert evaluate_here(*common, f"output={folder}/after") == 0
    return folder


@pytest.fixture
def compare(folder, capsys, monkeypatch):
    """What tools/compare.py does after its start, in this process: its exit status, and what it prints."""
    monkeypatch.chdir(folder)

    def run_here(*arguments):
        monkeypatch.setattr("sys.argv", ["compare.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main("compare")
        printed = capsys.readouterr()
        return end.value.code, printed.out + printed.err

    return run_here


def test_a_pure_refactoring_is_found_to_change_nothing(folder):
    assert {path.name for path in result_paths(folder / "before")}.isdisjoint(
        path.name for path in result_paths(folder / "after")
    )
    done = run("compare.py", "before", "after", cwd=folder)
    assert done.stdout.count(": identical (label maps and counts of 30 images)") == 2
    assert "2 comparisons: 2 identical" in done.stdout
    assert "    source_digest: " in done.stdout
    assert "recipe." not in done.stdout


def test_another_temperature_is_found(compare, tmp_path):
    status, text = compare("before", "warm", f"out={tmp_path}/found.json")
    assert status == 1
    assert "recipe.logit_scale: 40 -> 8" in text
    assert "images that contribute most" in text
    written = (tmp_path / "found.json").read_bytes()
    found = json.loads(written)
    assert found["status"] == 1
    assert "different" in {entry["level"] for entry in found["comparisons"]}
    assert compare("before", "warm", f"out={tmp_path}/found.json") == (status, text)
    assert (tmp_path / "found.json").read_bytes() == written


def test_a_pipe_that_is_closed_gives_no_traceback(folder):
    words = shlex.join(command("compare.py", "before", "warm"))
    done = subprocess.run(f"{words} | true", shell=True, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_two_files_and_a_tolerance(compare, folder):
    pair = [result_paths(folder / side)[1] for side in ("before", "warm")]
    status, text = compare(*pair, "tolerance=100")
    assert status == 0
    assert "equivalent" in text.splitlines()[0]
    assert "tolerance 100" in text


def test_two_methods_of_a_folder(compare, folder, tmp_path):
    status, text = compare("before", "clip", "sclip", f"out={tmp_path}/found.json")
    assert status == 1
    head, line, *notes = text.splitlines()
    assert head.split() == ["data", "set", "CLIP", "clip", "mIoU", "sclip", "mIoU", "difference", "level"]
    assert line.split()[:2] == ["demo", "demo"]
    assert line.endswith("  different")
    assert len(notes) == 2
    assert notes[0].startswith("(a) overridden: resize=none, ")
    (found,) = json.loads((tmp_path / "found.json").read_text())["comparisons"]
    assert (found["a"]["segmentor"], found["b"]["segmentor"]) == ("clip", "sclip")
    status, text = compare("before", "clip", "slcip")
    assert (status, text) == (2, "error: unknown segmentor in before 'slcip'. Known: clip, sclip.\n")


def test_what_is_missing_is_status_2(compare, folder, tmp_path):
    shutil.copytree(folder / "after", tmp_path / "less")
    result_paths(tmp_path / "less")[0].unlink()
    status, text = compare("before", tmp_path / "less")
    assert status == 2
    assert f"has no counterpart in {tmp_path}/less" in text
    assert ": identical" in text


@pytest.fixture
def reproduced(folder, tmp_path):
    """A result that says it is naclip's with ViT-B/16 on all of voc21; its counts are drawn, and its short side is another."""
    path = result_paths(folder / "before")[0]
    counts = by_id(drawn(1, 1449, 21, 6))
    matrix = total(counts.values(), 21)
    correct, predicted, true = (values.tolist() for values in areas(matrix))
    iou = (100 * class_metrics(matrix)["IoU"]).tolist()
    classes = [
        {"class": f"class {c}", "IoU": iou[c], "Acc": 50.0, "correct": correct[c], "predicted": predicted[c], "true": true[c]}
        for c in range(21)
    ]
    recipe = compose_recipe("naclip", clip="vit_b16", dataset="voc21", overrides={"short_side": 448})
    result = json.loads(path.read_text()) | {
        "segmentor": "naclip",
        "clip": "vit_b16",
        "dataset": "voc21",
        "overridden": {},
        "partial": False,
        "images": {"expected": 1449, "evaluated": 1449, "failed": {}},
        "metrics": {"mIoU": 100 * metrics(matrix)["mIoU"]},
        "per_class": classes,
        "recipe": {name: {"value": value, "origin": "a test"} for name, value in recipe.values().items()},
    }
    with RunStore(tmp_path, "voc21", "vit_b16", "naclip", result["fingerprint"]) as store:
        for name, records in counts.items():
            store.add(name, records, "hash")
        store.finish(result, list(counts))
    return store.result_path


def test_a_run_is_held_against_what_is_published(compare, reproduced, tmp_path):
    status, text = compare(reproduced, "--published", f"out={tmp_path}/found.json")
    assert status == 1
    assert "naclip with vit_b16 on voc21: different" in text
    assert "published 64.07 (naclip + PAMR (default); NACLIP README)" in text
    assert "suspicious  resize and windows: short_side is 448, the recipe has 336" in text
    assert "ok          scale and threshold: logit_scale 40, threshold 0.1, area_threshold 0.0" in text
    assert "suspicious  texts: the digest is " in text
    (found,) = json.loads((tmp_path / "found.json").read_text())["comparisons"]
    assert found["difference"]["value"] == pytest.approx(found["ours"] - 64.07, abs=1e-3)
    assert {entry["state"] for entry in found["checklist"]} == {"ok", "suspicious", "not known"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["expected A B", "got none"]),
        (["before"], ["expected A B", "got before"]),
        (["before", "clip", "sclip", "gem"], ["expected A B, or FOLDER SEGMENTOR SEGMENTOR"]),
        (["before", "after", "--published"], ["expected RUN published=true"]),
        (["before", "nowhere"], ["nowhere does not exist"]),
        (["before", "after", "tolerance=some"], ["tolerance='some'", "0 or more"]),
        (["before", "after", "tolerance=-1"], ["tolerance=-1"]),
        (["before", "after", "tolernace=1"], ["unknown option 'tolernace'", "tolerance"]),
        (["before", "--published"], ["no published figure", "the demo CLIP is this project's own"]),
        (["before", "after", "out=/proc/x.json"], ["cannot write /proc/x.json"]),
    ],
    ids=str,
)
def test_mistakes_are_named_in_one_line(arguments, words, compare):
    status, text = compare(*arguments)
    assert status == 2
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert all(word in text for word in words), text
