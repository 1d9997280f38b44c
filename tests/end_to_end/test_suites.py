"""Suites and papers' tables through the tool, on the miniatures."""

import pandas as pd
import pytest

import ovss_bench as ob
from end_to_end.tools import evaluate, evaluate_here, results
from ovss_bench.datasets.suites import load_suite

FAST = ["recipe.resize=square", "recipe.short_side=64", "recipe.window=whole", "recipe.templates=photo", "recipe.pamr_steps=0"]


@pytest.fixture
def eight(prepared):
    """The data root with (at least) the eight benchmarks."""
    for name in load_suite("sclip8").datasets:
        root = prepared(name)
    return root


def linked(root, folder, *without):
    """A data root that lacks some folders."""
    folder.mkdir()
    for path in root.iterdir():
        if path.name not in without:
            (folder / path.name).symlink_to(path)
    return folder


def test_a_suite_evaluates_all_and_averages_as_the_papers_do(eight, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert evaluate_here("segmentor=[sclip,naclip]", "dataset=suite/sclip8", f"data_root={eight}", *FAST) == 0
    found = results(tmp_path)
    assert len(found) == 16
    table = pd.read_csv(tmp_path / "results/runs/sclip8.csv")
    for row in table.itertuples():
        name = row.segmentor.split(" ")[0]
        mious = [found[f"{name}/{dataset}"]["metrics"]["mIoU"] for dataset in load_suite("sclip8").datasets]
        assert row._7 == pytest.approx(sum(mious) / 8, abs=0.006)
    # voc21 and voc20, context60 and context59, coco_object and coco_stuff share their passes.
    assert {result["timing"]["segmentors_in_pass"] for result in found.values()} == {2, 4}


def test_what_is_missing_is_said_and_never_averaged_over(eight, tmp_path):
    root = linked(eight, tmp_path / "data", "cityscapes")
    options = ["segmentor=clip", f"data_root={root}", "dataset=suite/sclip8", *FAST]
    done = evaluate(*options, cwd=tmp_path)
    assert "missing: cityscapes" in done.stdout
    table = pd.read_csv(tmp_path / "results/runs/sclip8.csv").iloc[0]
    assert table["missing"] == "cityscapes"
    assert table["with background"] > 0
    assert pd.isna(table["without background"])
    assert pd.isna(table["all eight"])


def test_a_data_set_that_is_named_must_be_there(eight, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = linked(eight, tmp_path / "data", "cityscapes")
    with pytest.raises(ob.OvssError, match=r"'cityscapes' was not found"):
        evaluate_here("segmentor=clip", f"data_root={root}", "dataset=[voc21,cityscapes]", *FAST)
    with pytest.raises(ob.OvssError, match=r"was not found"):
        evaluate_here("segmentor=clip", f"data_root={tmp_path}", "dataset=suite/mess", *FAST)
    assert results(tmp_path) == {}


TABLE = """\
title: A table of ours
source: a test
datasets: [voc21, voc20, cityscapes]
rows:
  - {name: SCLIP, segmentor: sclip, clip: demo}
  - {name: NACLIP without PAMR, segmentor: naclip, clip: demo, recipe: {pamr_steps: 0}}
  - {name: as printed, method: sclip, variant: csa, backbone: ViT-B-16, pretrained: openai}
averages: {all: [voc21, voc20, cityscapes], voc: [voc21, voc20]}
"""


def test_a_papers_table_is_run_and_printed_beside_the_published_figures(eight, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ours.yaml").write_text(TABLE)
    root = linked(eight, tmp_path / "data", "cityscapes")
    assert evaluate_here("table=ours.yaml", f"data_root={root}", "recipe.short_side=64") == 0
    found = results(tmp_path)
    assert sorted(found) == ["naclip/voc20", "naclip/voc21", "sclip/voc20", "sclip/voc21"]
    assert found["naclip/voc21"]["overridden"] == {"pamr_steps": 0, "short_side": 64}
    printed = capsys.readouterr().out
    assert "missing: cityscapes" in printed
    lines = pd.read_csv(tmp_path / "results/runs/table_ours.csv").set_index(["row", "column"])
    assert lines.loc[("as printed", "voc20"), "published"] > 80
    assert "as printed" in (tmp_path / "results/runs/table_ours.md").read_text()


def test_an_unknown_table_lists_close_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ob.OvssError, match=r"sclp.*sclip"):
        evaluate_here("table=sclp")
