"""The top-level datasets/: default data root, README, id lists and manifests. OVSS_WRITE=1 regenerates the files."""

import hashlib
import json
import os
import runpy
from pathlib import Path

import pytest

import ovss_bench as ob
from ovss_bench.datasets import layout
from ovss_bench.datasets.check.manifest import read_manifest
from ovss_bench.datasets.check.run import check
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.expected import counts
from ovss_bench.datasets.prepare.conversion import words
from ovss_bench.datasets.prepare.converters.aerial import boxes
from ovss_bench.files import DATASET_FACTS

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted(path.stem for path in (DATASET_FACTS / "manifests").glob("*.json"))


def generated():
    """Name -> content of the manifests. PNG files differ between versions of zlib, so the demo has no fingerprint."""
    for name in ("demo", "demo_small", "demo_tune"):
        facts = check(name, workers=1, quiet=True).manifest()
        facts.pop("fingerprint")
        yield name, {"source": "drawn by ovss_bench/datasets/demo"} | facts
    tiles = [(left, top, right, bottom) for top, bottom, left, right in boxes((5000, 5000), (1000, 1000), (1000, 1000))]
    inria = ["_".join(map(str, (name, *tile))) for name in listed("inria_split_test") for tile in tiles]
    for name, ids in (("inria", inria), ("wbs_si", listed("wbs_si_val"))):
        digest = hashlib.sha256("".join(f"{key}\n" for key in sorted(ids)).encode()).hexdigest()
        yield name, {"source": "SegEarth-OV's list", "dataset": name, "images": len(ids), "ids_sha256": digest}


def listed(name):
    return words(DATASET_FACTS / "ids" / f"{name}.txt")


def same(path, text):
    if os.environ.get("OVSS_WRITE"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text("utf-8") == text, f"{path} is out of date; run this test with OVSS_WRITE=1"


def test_the_readme_is_generated():
    text = runpy.run_path(str(DATASET_FACTS / "readme.py"))["readme"]()
    same(DATASET_FACTS / "README.md", text)
    assert max(map(len, text.splitlines())) <= 200


def test_manifests_hold_facts_that_can_be_computed():
    found = dict(generated())
    assert sorted(found) == MANIFESTS or os.environ.get("OVSS_WRITE")
    for name, facts in found.items():
        same(DATASET_FACTS / "manifests" / f"{name}.json", json.dumps(facts, indent=1) + "\n")
        assert facts["images"] in counts(ob.load_dataset(name).config if name.startswith("demo") else dataset_config(name)[1])


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_manifest_can_be_read(name):
    assert read_manifest(DATASET_FACTS / "manifests" / f"{name}.json", name)["dataset"] == name


def test_a_manifest_without_labels_compares_the_ids(tmp_path):
    path = tmp_path / "demo.json"
    report = check("demo_tune", workers=1, quiet=True)
    path.write_text(json.dumps({"dataset": "demo_tune", "ids_sha256": report.ids_digest}))
    assert check("demo_tune", workers=1, against=path, quiet=True).findings == []
    path.write_text(json.dumps({"dataset": "demo_tune", "images": 7, "ids_sha256": "0"}))
    (finding,) = check("demo_tune", workers=1, against=path, quiet=True).findings
    assert (finding.kind, "7 in the manifest" in finding.what) == ("other ids than in the manifest", True)


def test_the_data_root_is_the_argument_the_variable_or_datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("OVSS_DATA", "elsewhere")
    assert [str(layout.data_root(root)) for root in ("given", None, "")] == ["given", "elsewhere", "elsewhere"]
    monkeypatch.delenv("OVSS_DATA")
    monkeypatch.setattr(layout, "DATASET_FACTS", DATASET_FACTS)
    assert layout.data_root() == ROOT / "datasets"
    monkeypatch.setattr(layout, "DATASET_FACTS", layout.PACKAGE / "dataset_facts")  # an installed wheel
    assert layout.data_root() == Path("datasets")


def test_data_in_the_default_data_root_are_found(voc, monkeypatch):
    monkeypatch.delenv("OVSS_DATA", raising=False)
    monkeypatch.setattr(layout, "DATASET_FACTS", voc)
    assert len(ob.load_dataset("voc21")) == 10


def test_a_user_s_data_may_lie_in_the_default_data_root(voc, tmp_path, monkeypatch):
    monkeypatch.delenv("OVSS_DATA", raising=False)
    path = tmp_path / "mine.yaml"
    path.write_text("extends: voc21\n")
    with pytest.raises(ob.OvssError, match=f"not found in {tmp_path}"):
        ob.load_dataset(path)
    monkeypatch.setattr(layout, "DATASET_FACTS", voc)
    assert len(ob.load_dataset(path)) == 10
