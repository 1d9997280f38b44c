"""Comparing runs: levels, what contributes, what differs, pairs of folders, damage; and the figures that are published."""

import copy
import json
import shutil

import numpy as np
import pytest

import ovss_bench as ob
from ovss_bench.evaluation.confusion import total
from ovss_bench.evaluation.metrics import class_metrics, metrics
from ovss_bench.reports import compare
from ovss_bench.reports.compare import Run, compare_methods, compare_paths, compare_runs, read_run, status
from ovss_bench.reports.compare_view import lines_of, method_lines, summary
from ovss_bench.reports.reproduced import checklist, compare_with_published
from ovss_bench.runs.load import result_paths
from unit.test_bootstrap import by_id, drawn

FAST = {"resize": "none", "window": 48, "stride": 48}


@pytest.fixture
def copied(two_results, tmp_path):
    """`copied(name)`: a copy of the folder of results."""
    return lambda name: shutil.copytree(two_results, tmp_path / name)


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


CLASSES = ["sky", "cat", "dog", "<b>sea</b>"]


def made(counts, hashes=None, **values):
    """A run with these counts by id; its figures are those of the counts."""
    matrix = total(counts.values(), 4)
    each = class_metrics(matrix)
    source = {"source_digest": "0" * 64, "device": "CPU", "threads": 1, "world_size": 1, "python": "3.12", "platform": "Linux"}
    result = {
        "segmentor": "sclip",
        "clip": "demo",
        "dataset": "demo",
        "protocol": "paper",
        "overridden": {},
        "partial": False,
        "metrics": {"mIoU": 100 * metrics(matrix)["mIoU"]},
        "recipe": {"logit_scale": {"value": 40, "origin": "here"}},
        "per_class": [{"class": name, "IoU": 100 * each["IoU"][c]} for c, name in enumerate(CLASSES)],
        "sources": {"vfm": {"name": "demo", "digest": "1" * 64, "stand_in": False}},
        "weights_digest": "2" * 64,
        "names_digest": "3" * 64,
        "dataset_fingerprint": "4" * 64,
        "precision": "fp32",
        "provenance": source | {"plugins": {}, "packages": {"torch": "2.6"}},
    }
    return Run("made", result | values, counts, hashes or dict.fromkeys(counts, "f"))


def shifted(counts, share, only=None):
    """The counts with a share of what is right made wrong: taken for the next class (the last but one, for the last)."""
    result = {}
    for name, records in counts.items():
        matrix = total([records], 4)
        if only is None or name in only:
            for c in range(4):
                moved = int(matrix[c, c] * share)
                matrix[c, c] -= moved
                matrix[c, c + 1 if c < 3 else 2] += moved
        truth, prediction = np.nonzero(matrix)
        result[name] = np.array([*zip(truth, prediction, matrix[truth, prediction], strict=True)], records.dtype)
    return result


# Levels


def test_the_same_label_maps_and_counts_are_identical():
    counts = by_id(drawn(1, 20, 4, 8))
    found = compare_runs(made(counts), made(copy.deepcopy(counts), recipe={"logit_scale": {"value": 20, "origin": "there"}}))
    assert found["level"] == "identical"
    assert found["difference"] == {"value": 0, "low": 0, "high": 0}
    assert found["contributing_images"] == found["contributing_classes"] == []
    assert found["settings"] == [{"name": "recipe.logit_scale", "a": 40, "b": 20}]
    assert lines_of(found) == [
        "sclip with demo on demo: identical (label maps and counts of 20 images)",
        "  settings that differ:",
        "    recipe.logit_scale: 40 -> 20",
    ]


def test_other_label_maps_with_the_same_counts_are_equivalent():
    counts = by_id(drawn(1, 20, 4, 8))
    found = compare_runs(made(counts), made(counts, hashes=dict.fromkeys(counts, "e")), tolerance=0)
    assert found["level"] == "equivalent"
    assert found["images"] == {"compared": 20, "other_maps": 20, "other_counts": 0}


@pytest.mark.parametrize(
    ("share", "tolerance", "level"),
    [(0.0001, 0.1, "equivalent"), (0.05, 0.1, "different"), (0.05, 20, "equivalent"), (0.05, 0, "different")],
)
def test_the_interval_decides(share, tolerance, level):
    counts = by_id(drawn(2, 60, 4, 8))
    a, b = made(counts), made(shifted(counts, share), hashes=dict.fromkeys(counts, "e"))
    found = compare_runs(a, b, tolerance)
    assert found["level"] == level
    assert found["difference"]["value"] == pytest.approx(b.result["metrics"]["mIoU"] - a.result["metrics"]["mIoU"], abs=1e-4)
    assert found["difference"]["low"] <= found["difference"]["value"] <= found["difference"]["high"] < 0


def test_what_goes_both_ways_is_inconclusive():
    counts, others = by_id(drawn(3, 20, 4, 8)), by_id(drawn(4, 20, 4, 8))
    found = compare_runs(made(counts), made(others))
    assert found["level"] == "inconclusive"
    assert found["difference"]["low"] < 0 < found["difference"]["high"]
    assert found["other_labels"] == 20
    assert "  the ground truth of 20 images differs: other labels, or another size" in lines_of(found)


def test_one_image_has_no_interval():
    counts = by_id(drawn(3, 1, 4, 8))
    found = compare_runs(made(counts), made(shifted(counts, 0.5)))
    assert found["level"] == "inconclusive"
    assert "no interval: it needs at least two images" in "\n".join(lines_of(found))


# What contributes, and what is set otherwise


def test_images_and_classes_that_contribute_most_come_first():
    counts = by_id(drawn(5, 40, 4, 8))
    a, b = made(counts), made(shifted(counts, 0.3, only=["image 00007", "image 00021"]))
    found = compare_runs(a, b)
    assert {entry["image"] for entry in found["contributing_images"]} == {"image 00007", "image 00021"}
    for entry in found["contributing_images"]:
        without = b.counts | {entry["image"]: a.counts[entry["image"]]}
        lost = b.result["metrics"]["mIoU"] - 100 * metrics(total(without.values(), 4))["mIoU"]
        assert entry["points"] == pytest.approx(lost, abs=1e-4)
    classes = found["contributing_classes"]
    assert sum(entry["points"] for entry in classes) == pytest.approx(found["difference"]["value"], abs=5e-4)
    assert [abs(entry["points"]) for entry in classes] == sorted([abs(entry["points"]) for entry in classes], reverse=True)
    for entry in classes:
        c = CLASSES.index(entry["class"])
        assert (entry["a"], entry["b"]) == pytest.approx([run.result["per_class"][c]["IoU"] for run in (a, b)], abs=1e-4)


def test_a_class_that_only_one_run_predicts_contributes_what_it_takes_from_the_mean():
    counts = by_id([np.array([(0, 0, 50), (1, 1, 50)], drawn(1, 1, 4, 2)[0].dtype)] * 5)
    other = by_id([np.array([(0, 0, 49), (0, 2, 1), (1, 1, 50)], drawn(1, 1, 4, 2)[0].dtype)] * 5)
    found = compare_runs(made(counts), made(other))
    assert found["difference"]["value"] == pytest.approx(100 * ((0.98 + 1 + 0) / 3 - 1), abs=1e-4)
    assert sum(entry["points"] for entry in found["contributing_classes"]) == pytest.approx(
        found["difference"]["value"], abs=1e-3
    )
    dog = found["contributing_classes"][0]
    assert (dog["class"], dog["b"]) == ("dog", 0)
    assert np.isnan(dog["a"])
    assert "dog: – -> 0.00" in "\n".join(lines_of(found))


def test_every_setting_that_differs_is_named():
    counts = by_id(drawn(1, 5, 4, 8))
    a = made(counts)
    b = made(counts, precision="fp16", weights_digest="9" * 64, sources={}, recipe={"stride": {"value": 8, "origin": "x"}})
    b.result["provenance"] |= {"threads": 2, "packages": {"torch": "2.7"}}
    found = {entry["name"]: (entry["a"], entry["b"]) for entry in compare_runs(a, b)["settings"]}
    assert found == {
        "recipe.logit_scale": (40, None),
        "recipe.stride": (None, 8),
        "vfm name": ("demo", None),
        "vfm digest": ("1" * 64, None),
        "vfm stand_in": (False, None),
        "weights_digest": ("2" * 64, "9" * 64),
        "precision": ("fp32", "fp16"),
        "threads": (1, 2),
        "packages torch": ("2.6", "2.7"),
    }
    text = lines_of(compare_runs(a, b))
    assert "    weights_digest: 222222222222 -> 999999999999" in text
    assert "    recipe.stride: none -> 8" in text


# Files and folders


def test_copies_are_identical(two_results, copied):
    found = compare_paths(two_results, copied("other"))
    assert [entry["level"] for entry in found] == ["identical", "identical"]
    assert status(found) == 0
    assert summary(found) == "2 identical"


def test_files_of_other_methods_and_overrides_can_be_compared(two_results):
    (found,) = compare_paths(*result_paths(two_results))
    assert (found["a"]["segmentor"], found["b"]["segmentor"]) == ("clip", "sclip")
    assert found["images"]["compared"] == 3
    assert lines_of(found)[0].startswith("clip (partial) ") or "clip resize=none" in lines_of(found)[0]


def test_folders_are_matched_whatever_is_overridden(two_results, copied):
    other = copied("other")
    for path in result_paths(other):
        changed(path, overridden={"stride": 8})
    assert [entry["level"] for entry in compare_paths(two_results, other)] == ["identical", "identical"]


def test_several_runs_of_a_method_are_matched_by_what_is_overridden(copied):
    a, b = copied("a"), copied("b")
    for side in (a, b):
        path = result_paths(side)[0]
        twin = path.with_name("clip-00000000aaaa.json")
        shutil.copy(path, twin)
        shutil.copy(path.with_suffix(".npz"), twin.with_suffix(".npz"))
        changed(twin, overridden={"stride": 8})
    found = compare_paths(a, b)
    assert [entry["level"] for entry in found] == ["identical"] * 3
    assert all(entry["a"]["overridden"] == entry["b"]["overridden"] for entry in found)
    changed(b / "demo/demo/clip-00000000aaaa.json", overridden={"stride": 9})
    found = compare_paths(a, b)
    assert sorted(entry["level"] for entry in found) == ["error", "error", "identical", "identical"]
    changed(b / "demo/demo/clip-00000000aaaa.json", overridden=FAST)
    with pytest.raises(
        ob.OvssError, match=r"b holds 2 results of clip with demo on demo: clip-00000000aaaa.json, clip-.*Name the"
    ):
        compare_paths(a, b)


def test_a_file_is_compared_with_its_counterpart_of_a_folder(two_results, copied):
    other, path = copied("other"), result_paths(two_results)[0]
    for pair in ((path, other), (other, path)):
        (found,) = compare_paths(*pair)
        assert (found["level"], found["a"]["segmentor"]) == ("identical", "clip")


def test_what_is_in_one_folder_only_is_an_error(two_results, copied):
    other = copied("other")
    result_paths(other)[1].unlink()
    found = compare_paths(two_results, other)
    assert [entry["level"] for entry in found] == ["identical", "error"]
    assert status(found) == 2
    assert "has no counterpart in" in lines_of(found[1])[0]
    assert status(compare_paths(other, two_results)) == 2


def test_the_worst_level_is_the_status():
    def of(*levels):
        return status([{"level": level} for level in levels])

    assert of("identical", "equivalent") == 0
    assert of("identical", "inconclusive") == 3
    assert of("inconclusive", "different", "equivalent") == 1
    assert of("different", "error") == 2


def test_damage_is_named(copied):
    (path, other) = result_paths(copied("damaged"))
    values = json.loads(path.read_text())
    values["per_class"][0]["correct"] += 1
    changed(path, **values)
    with pytest.raises(ob.OvssError, match=r"clip-.*json and its counts .*npz do not state the same images and pixels"):
        read_run(path)
    shutil.copy(path.with_suffix(".npz"), other.with_suffix(".npz"))
    with pytest.raises(ob.OvssError, match="belongs to another run"):
        read_run(other)
    other.with_suffix(".npz").unlink()
    with pytest.raises(ob.OvssError, match=r"the counts of .*sclip-.*json are missing: expected .*npz"):
        read_run(other)


def test_other_classes_and_other_images_are_refused():
    a = made(by_id(drawn(1, 5, 4, 8)))
    b = made(a.counts, per_class=[{"class": name} for name in "abcd"], dataset="voc21")
    with pytest.raises(ob.OvssError, match=r"different classes \(demo, voc21\)"):
        compare_runs(a, b)
    with pytest.raises(ob.OvssError, match=r"1 of 5 images are not in the second run: image 00004"):
        compare_runs(a, made(by_id(drawn(1, 4, 4, 8))))


def test_two_methods_are_compared_wherever_both_were_run(two_results, copied):
    both = copied("both")
    first, second = result_paths(both)
    for number, dataset in enumerate(("voc21", "voc20", "ade20k")):
        for path in (first, second)[: 1 if dataset == "ade20k" else 2]:
            name = f"{path.stem[:-12]}{number:012x}"
            shutil.copy(path.with_suffix(".npz"), path.with_name(f"{name}.npz"))
            path.with_name(f"{name}.json").write_text(json.dumps(json.loads(path.read_text()) | {"dataset": dataset}))
    comparisons, alone = compare_methods(both, "clip", "sclip")
    assert [(one["a"]["dataset"], one["b"]["segmentor"]) for one in comparisons] == [
        ("demo", "sclip"), ("voc20", "sclip"), ("voc21", "sclip"),
    ]  # fmt: skip
    (reason,) = alone
    assert "has no counterpart of sclip" in reason
    head, *rows, mean, partial, overridden = method_lines(comparisons)
    assert head.split() == ["data", "set", "CLIP", "clip", "mIoU", "sclip", "mIoU", "difference", "level"]
    assert [row.split()[0] for row in rows] == ["demo", "voc20", "voc21"]
    assert mean.startswith("mean of 3  demo ")
    figures = [json.loads(path.read_text())["metrics"]["mIoU"] for path in (first, second)]
    assert [f"{figure:.2f}" in row for row in (*rows, mean) for figure in figures] == [True] * 8
    assert {partial, overridden} == {"(a) overridden: resize=none, stride=48, window=48", "(b) partial"}
    with pytest.raises(ob.OvssError, match=r"unknown segmentor in .* 'gem'. Known: clip, sclip"):
        compare_methods(both, "clip", "gem")


def test_without_a_published_figure_the_reason_is_given(two_results):
    with pytest.raises(ob.OvssError, match=r"no published figure belongs to .*the demo CLIP is this project's own"):
        compare_with_published(two_results)


def test_results_hold_all_that_comparisons_read(two_results):
    run = read_run(result_paths(two_results)[0])
    names = [name for name, _ in compare._flat(run.result)]
    assert len(names) == len(set(names))
    assert {"recipe.logit_scale", "packages torch", "source_digest"} <= set(names)
    assert len(list(checklist(run.result))) >= 9


def test_every_result_and_its_counts_are_read_once(two_results, copied, monkeypatch):
    read = []
    for name in ("read_result", "read_counts"):
        original = getattr(compare, name)
        monkeypatch.setattr(compare, name, lambda path, *rest, original=original: read.append(path) or original(path, *rest))
    other = copied("other")
    assert len(compare_paths(two_results, other)) == 2
    results = [*result_paths(two_results), *result_paths(other)]
    assert sorted(read) == sorted([*results, *(path.with_suffix(".npz") for path in results)])
