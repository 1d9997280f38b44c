"""The schema of result files: files are validated when written and read, older versions are read, damage is reported."""

import copy
import json

import numpy as np
import pytest

import ovss_bench as ob
from end_to_end.tools import ROOT, first_version
from ovss_bench.runs.evaluate import make_job, run_jobs
from ovss_bench.runs.load import load_results, result_paths
from ovss_bench.runs.schema import FOLDER, VERSION, schema, validate_result
from ovss_bench.runs.store import read_counts, read_result

FAST = {"resize": "none", "window": 48, "stride": 48}


@pytest.fixture
def result(two_results):
    return read_result(result_paths(two_results)[0])


def test_results_are_match_the_current_schema(result):
    assert result["schema_version"] == VERSION
    assert validate_result(copy.deepcopy(result), "it") == result
    assert set(result) == set(schema()["properties"]) - {"observed"}  # only of methods that count something


def test_every_version_has_a_schema():
    assert sorted(path.name for path in FOLDER.glob("*.json")) == [f"result-{n + 1}.json" for n in range(VERSION)]


def test_the_first_version_is_read(result, tmp_path):
    old = first_version(result)
    path = tmp_path / "clip-0123456789ab.json"
    path.write_text(json.dumps(old))
    read = read_result(path)
    assert read["schema_version"] == VERSION
    assert read["metrics"] == result["metrics"]
    assert "before published figures" in read["published"]["why_not"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": VERSION + 1}, "newer ovss-bench"),
        ({"schema_version": None}, "is not a result"),
        ({"schema_version": 0}, "is not a result"),
        ({"metrics": {"mIoU": "high"}}, r"metrics.mIoU must be number or null"),
        ({"images": {"expected": 3}}, r"images must contain"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"more": 1}, "must not contain"),
        ({"fingerprint": "xyz"}, "fingerprint must match pattern"),
    ],
    ids=str,
)
def test_results_that_do_not_match_are_refused(change, words, result):
    with pytest.raises(ob.OvssError, match=words):
        validate_result(result | change, "result FILE")


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '"x"', "{}"])
def test_files_that_are_no_results_are_refused(text, tmp_path):
    path = tmp_path / "clip-0123456789ab.json"
    path.write_text(text)
    with pytest.raises(ob.OvssError, match=r"clip-0123456789ab\.json"):
        read_result(path)


def test_nothing_that_does_not_match_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("ovss_bench.runs.evaluate.VERSION", "two")
    clip, dataset = ob.load_clip("demo"), ob.load_dataset("demo")
    with pytest.raises(ob.OvssError, match="is not a result"):
        run_jobs([make_job("clip", clip, dataset, overrides=FAST)], limit=1, output=tmp_path, quiet=True)
    assert list(tmp_path.rglob("*.json")) == []


def test_results_come_as_a_data_frame(two_results):
    frame = load_results(two_results, partial=True)
    assert frame["segmentor"].tolist() == ["clip", "sclip"]
    assert {"mIoU", "hIoU", "mIoU_per_image", "images_evaluated", "published", "device", "path"} <= set(frame)
    assert frame["images_evaluated"].tolist() == [3, 3]
    assert load_results(two_results).empty


def test_a_damaged_result_is_left_out_with_a_warning(two_results, tmp_path):
    for path in result_paths(two_results):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "naclip-0123456789ab.json").write_text("{")
    with pytest.warns(UserWarning, match=r"naclip-0123456789ab\.json cannot be read"):
        frame = load_results(tmp_path, partial=True)
    assert len(frame) == 2


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ob.OvssError, match="no result"):
        load_results(tmp_path)


def test_a_changed_count_is_found_by_its_checksum(two_results, tmp_path):
    (path, *_) = sorted(two_results.rglob("*.npz"))
    content = dict(np.load(path))
    content["records"] = content["records"].copy()
    content["records"]["pixels"][0] += 1
    np.savez_compressed(tmp_path / "changed.npz", **content)
    with pytest.raises(ob.OvssError, match=r"changed\.npz is damaged: its checksum is wrong"):
        read_counts(tmp_path / "changed.npz")
    del content["checksum"]
    np.savez_compressed(tmp_path / "old.npz", **content)  # of before there was one
    assert len(read_counts(tmp_path / "old.npz")[0]) == 3


def test_label_maps_are_kept_on_request(tmp_path):
    clip, dataset = ob.load_clip("demo"), ob.load_dataset("demo")
    job = make_job("clip", clip, dataset, overrides=FAST)
    (result,) = run_jobs([job], limit=2, output=tmp_path, runtime=ob.Runtime(maps=True), quiet=True)
    maps = sorted(tmp_path.rglob("*.png"))
    assert [path.stem for path in maps] == ["scene_000", "scene_099"]
    assert maps[0].parent == result.path.with_suffix(".maps")


def test_the_documentation_is_that_of_the_schema():
    text = (ROOT / "docs/results.md").read_text()  # tests/unit/test_docs.py compares it with the generated table
    for name in schema()["properties"]:
        assert f"| `{name}` |" in text
    assert "`per_class[].IoU`" in text
