"""The HTML page: what it holds."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import ovss_bench as ob
from end_to_end.pages import FAST, IDS, SIZE
from ovss_bench.errors import OvssError
from ovss_bench.evaluation.confusion import confusion, total
from ovss_bench.evaluation.metrics import areas
from ovss_bench.reports.html import confusions, write_html
from ovss_bench.reports.overlays import choose, image_ious
from ovss_bench.runs.evaluate import Runtime, make_job, run_jobs
from ovss_bench.runs.load import read_results
from ovss_bench.runs.store import RunStore, read_counts


def content(path):
    """The JSON block of a page, `shared` in its place."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1]
    found = json.loads(text)
    return {"shared": found["shared"], "notes": found["notes"]} | {
        key: run | found["details"].get(key, {}) for key, run in found["runs"].items()
    }


def run_of(page, segmentor, dataset="own"):
    found = content(page)
    return next(
        run for run in found.values() if isinstance(run, dict) and (run["segmentor"], run["dataset"]) == (segmentor, dataset)
    ), found["shared"]


def picture(uri):
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_the_same_results_give_the_same_bytes(page, page_results, page_data, tmp_path):
    again = write_html(page_results, tmp_path / "again.html", datasets=[page_data], partial=True)
    assert again.read_bytes() == page.read_bytes()


def test_pictures_show_what_was_evaluated(page, page_results, page_data):
    run, shared = run_of(page, "naclip")
    own = ob.load_dataset(page_data)
    samples = {sample.id: sample for sample in own.samples}
    entries = [entry for entries in run["pictures"].values() for entry in entries]
    assert sorted(entry["id"] for entry in entries) == sorted(IDS)
    colours = np.array([list(bytes.fromhex(colour[1:])) for colour in shared[run["colours"]]])
    maps = next(page_results.rglob("naclip-*.maps"))
    for entry in entries:
        target = own.label(samples[entry["id"]])
        label_map = np.array(Image.open(maps / f"{entry['id']}.png"))
        counted = target != 255
        assert np.array_equal(picture(shared[entry["prediction"]]), colours[label_map])
        assert np.array_equal(picture(shared[entry["target"]])[counted], colours[target[counted]])
        error = picture(shared[entry["error"]])
        right, wrong, ignored = (np.unique(error[mask], axis=0) for mask in masks(target, label_map))
        assert len(right) == len(wrong) == len(ignored) == 1
        assert len(np.unique([right, wrong, ignored], axis=0)) == 3
        assert picture(shared[entry["input"]]).shape == (*SIZE, 3)
        assert {c for c, _ in entry["classes"]} == set(np.unique([target[counted], label_map[counted]]).tolist())


@pytest.mark.parametrize(
    ("change", "size"),
    [
        ({"resize": "center_crop", "short_side": 48, "scored_at": "resized"}, (48, 48)),
        ({"resize": "keep_ratio", "short_side": 96, "scored_at": "resized"}, (96, 128)),
    ],
)
def test_pictures_are_of_what_was_scored(page_data, tmp_path, change, size):
    job = make_job("clip", ob.load_clip("demo"), ob.load_dataset(page_data), overrides={**FAST, **change})
    run_jobs([job], output=tmp_path, runtime=Runtime(maps=True), quiet=True)
    run, shared = run_of(write_html(tmp_path, tmp_path / "page.html", datasets=[page_data]), "clip")
    entries = [entry for entries in run["pictures"].values() for entry in entries]
    assert len(entries) == len(IDS)
    for entry in entries:
        assert {picture(shared[entry[part]]).shape for part in ("input", "target", "prediction", "error")} == {(*size, 3)}


def masks(truth, label_map):
    counted = truth != 255
    return counted & (truth == label_map), counted & (truth != label_map), ~counted


def test_figures_are_those_of_the_results(page, page_results):
    for path, result in read_results(page_results)[0].items():
        run, shared = run_of(page, result["segmentor"], result["dataset"])
        assert run["metrics"] == {name: None if v is None else round(v, 2) for name, v in result["metrics"].items()}
        assert shared[run["classes"]] == [c["class"] for c in result["per_class"]]
        records = read_counts(path.with_suffix(".npz"))[0]
        matrix = total(records.values(), len(result["per_class"]))
        for t, p, percent, predicted in run["confusions"]["pairs"]:
            assert t != p
            assert percent == pytest.approx(100 * matrix[t, p] / matrix[t, :].sum(), abs=0.06)
            assert predicted == pytest.approx(100 * matrix[t, p] / matrix[:-1, p].sum(), abs=0.06)
        if len(records) > 1:
            assert run["interval"][0] <= run["metrics"]["mIoU"] <= run["interval"][1]
    assert (run_of(page, "naclip")[0]["published"], run_of(page, "naclip")[0]["difference"]) == (12.5, -1.25)


def test_partial_results_only_if_asked_for(page_results, tmp_path):
    found = content(write_html(page_results, tmp_path / "page.html"))
    assert len(found) == 2 + 4
    assert found["notes"] == ["1 partial results are left out."]
    with pytest.raises(OvssError, match="1 of 1 results are partial \\(partial=true"):
        write_html(page_results / "demo", tmp_path / "page.html")


def test_what_is_missing_is_said(page_results, page_data, tmp_path):
    missing, _ = run_of(write_html(page_results, tmp_path / "page.html"), "naclip")  # the data set is not named
    assert "Pictures need the data set. unknown dataset 'own'" in missing["why_no_pictures"]
    assert missing["pictures"]["best"][0].keys() == {"id", "mIoU"}
    other = tmp_path / "results"
    shutil.copytree(page_results, other)
    path = next(other.rglob("maskclip-*.json"))
    (path.with_suffix(".maps") / "plain.png").unlink()
    changed = path.with_suffix(".maps") / f"{IDS[1]}.png"
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(changed)
    next(other.rglob("clip-*.json")).write_text("{")
    next(other.rglob("naclip-*.npz")).write_text("{")
    found = write_html(other, tmp_path / "other.html", datasets=[page_data])
    run, _ = run_of(found, "maskclip")
    why = {entry["id"]: entry.get("why_not", "") for entries in run["pictures"].values() for entry in entries}
    assert "cannot be read" in why["plain"]
    assert "changed since the run" in why[IDS[1]]
    assert why[IDS[2]] == ""
    assert "is damaged" in run_of(found, "naclip")[0]["why_no_counts"]
    assert "runtime.maps=true" in run_of(found, "sclip")[0]["why_no_pictures"]
    assert any("cannot be read" in note for note in content(found)["notes"])


def test_best_worst_and_random_images():
    ious = {f"image {i}": float(i) for i in range(50)}
    chosen = choose(ious, 12, "seed")
    assert chosen["best"] == [f"image {i}" for i in (49, 48, 47, 46)]
    assert chosen["worst"] == [f"image {i}" for i in (0, 1, 2, 3)]
    other = choose({image: -iou for image, iou in ious.items()}, 12, "seed")
    assert chosen["random"] == other["random"]
    assert len({name for names in chosen.values() for name in names}) == 12
    assert chosen["random"] != choose(ious, 12, "another seed")["random"]
    few = choose({"a": 1.0, "b": 2.0, "c": 3.0}, 12, "seed")
    assert sorted(name for names in few.values() for name in names) == ["a", "b", "c"]
    assert choose({}, 12, "seed") == {"best": [], "worst": [], "random": []}


def test_the_iou_of_an_image_is_that_of_the_classes_in_its_ground_truth():
    truth, prediction = np.array([[0, 0, 1, 255]]), np.array([[0, 2, 1, 1]])
    nothing = np.full((1, 4), 255)
    counts = {"some": confusion(truth, prediction, 3), "nothing": confusion(nothing, prediction, 3)}
    assert image_ious(counts, 3) == {"some": pytest.approx(75)}


def test_confusions_are_ranked_by_what_they_cost():
    matrix = np.zeros((4, 4), np.int64)
    matrix[0, 0], matrix[0, 1] = 10000, 50  # little of class 0, but most of what is called class 1
    matrix[1, 1], matrix[2, 2], matrix[2, 3] = 10, 60, 20
    matrix[3, 0] = 10**6  # without ground truth
    found = confusions(matrix)
    assert found["pairs"] == [[0, 1, 0.5, 83.3], [2, 3, 25.0, 100.0]]
    assert found["classes"] == [0, 1, 2, 3]
    assert found["cells"] == [[99.5, 0.5, 0.0, 0.0], [0.0, 100.0, 0.0, 0.0], [0.0, 0.0, 75.0, 25.0]]
    assert confusions(np.zeros((848, 848), np.int64)) == {"pairs": [], "classes": [], "cells": []}


def test_many_pictures_stay_small(page_results, tmp_path):
    """20 runs of 100 images shall stay below 15 MB: here 5 of the images, from which the rest is reckoned."""
    demo, random = ob.load_dataset("demo"), np.random.default_rng(0)
    classes, runs, kept = len(demo.classes), 20, 5
    result = json.loads(next(page_results.rglob("naclip-*.json")).read_text())
    result |= {"dataset": "demo", "images": {"expected": len(demo.samples), "evaluated": kept, "failed": {}}}
    for i in range(runs):
        with RunStore(tmp_path, "demo", "demo", "naclip", f"{i:012x}".ljust(64, "0")) as store:
            result["fingerprint"] = store.fingerprint
            for sample in demo.samples[:kept]:
                truth = demo.label(sample)
                label_map = np.where(truth == 255, 0, truth).astype(np.uint16)
                label_map[random.random(truth.shape) < 0.05] = 1
                store.add(sample.id, confusion(truth, label_map, classes), "0", None, label_map)
            numbers = np.stack(areas(total(store.counts.values(), classes)), 1).tolist()
            names = "correct", "predicted", "true"
            result["per_class"] = [result["per_class"][0] | dict(zip(names, row, strict=True)) for row in numbers]
            store.finish(result, list(store.counts))
    path = write_html(tmp_path, tmp_path / "page.html", images=100)
    assert path.read_text().count("data:image/") > runs * kept
    assert path.stat().st_size * 100 / kept < 15e6
