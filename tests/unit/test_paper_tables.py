"""The papers' tables as grids: configs/table, their figures, and ours beside them."""

import numpy as np
import pytest
import yaml

from ovss_bench.errors import OvssError
from ovss_bench.files import CONFIGS, config_names
from ovss_bench.reports.papers import load_table, side_by_side
from ovss_bench.runs.published import methods, published_figures

TABLES = config_names("table")
PUBLISHED = [name for name in TABLES if not name.startswith("demo")]  # of which nothing is published
SMALL = {
    "title": "A table",
    "source": "README",
    "datasets": ["voc21", "voc20", "ade20k"],
    "rows": [
        {"name": "NACLIP", "segmentor": "naclip", "clip": "vit_b16", "recipe": {"pamr_steps": 0}},
        {"name": "CASS", "method": "cass", "variant": "reproduced_by_pearl"},
    ],
    "averages": {"VOC": ["voc21", "voc20"], "all": ["voc21", "voc20", "ade20k"]},
}


def result(row, dataset, miou, **others):
    plain = {"protocol": "paper", "partial": False, "sources": {}, "metrics": {"mIoU": miou}}
    own = {"segmentor": row.segmentor, "clip": row.clip, "dataset": dataset, "overridden": row.overrides(dataset)}
    return plain | own | others


@pytest.fixture
def table(tmp_path):
    return load_table(written(tmp_path, SMALL))


def written(folder, content):
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content) if not isinstance(content, str) else content)
    return path


def cell(frame, row, column):
    (line,) = frame[(frame["row"] == row) & (frame["column"] == column)].to_dict("records")
    return line


# The tables


def test_the_tables_of_the_family_are_there():
    """Every method with figures of its authors, or with a run of ours that reproduces a figure. The others are in their tables:
    CLIP, MaskCLIP and GEM have no benchmarks of their own, PACL's listings state no backbone, and ActiveSAM has `activesam`."""
    figures = published_figures()
    first_hand = set(figures[~figures["second_hand"]]["method"])
    wanted = methods() & (first_hand | set(figures["segmentor"]))
    assert wanted - {"clip", "maskclip", "gem", "active_sam"} <= set(TABLES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_row_and_column_has_a_figure(name):
    table = load_table(name)
    assert table.title
    assert table.source
    figures = {(row.name, dataset): table.figures(row, dataset) for row in table.rows for dataset in table.datasets}
    for row in table.rows:
        assert any(figures[row.name, dataset] for dataset in table.datasets), row.name
    for dataset in table.datasets:
        assert any(figures[row.name, dataset] for row in table.rows), dataset
    second_hand = [cell[0]["second_hand"] for cell in figures.values() if cell]
    assert not all(second_hand) or "second-hand" in table.source


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_results_only_the_published_side_is_there(name):
    table = load_table(name)
    frame = side_by_side(table, [])
    assert len(frame) == len(table.rows) * (len(table.datasets) + len(table.averages))
    assert frame[["ours", "difference"]].isna().all(axis=None)
    assert frame["published"].notna().any()


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name in set(published_figures()["segmentor"])])
def test_the_rows_of_a_methods_own_table_are_the_runs_that_were_published(name):
    table = load_table(name)
    own = [row for row in table.rows if row.segmentor and row.segmentor.startswith(name)]
    assert own
    for row in own:
        assert any(figure["comparable"] for dataset in table.datasets for figure in table.figures(row, dataset)), row.name


@pytest.mark.parametrize(
    ("name", "row", "average", "stated"),
    [
        ("proxyclip", "ProxyCLIP, ViT-H/14 (LAION-2B)", "average", 44.4),  # its abstract
        ("naclip", "NACLIP + PAMR, ViT-B/16", "average", 42.5),
        ("corrclip", "CorrCLIP, SAM2_32, ViT-B/16", "average", 51.0),
        ("cliper", "CLIPer, ViT-L/14, windows", "eight benchmarks", 48.6),
        ("sclip", "SCLIP, ViT-B/16", "eight benchmarks", 39.1),
        ("clearclip", "ClearCLIP, ViT-B/16", "average", 37.5),
    ],
)
def test_published_averages(name, row, average, stated):
    assert round(cell(side_by_side(load_table(name), []), row, average)["published"], 1) == stated


@pytest.mark.parametrize("name", ["cliper", "cliptrase"])
def test_figures_on_other_labels_of_voc_say_so(name):
    assert "SegmentationClassAug" in (CONFIGS / "table" / f"{name}.yaml").read_text()


def test_clipers_windows_follow_the_data_set():
    table = load_table("cliper")
    row = next(row for row in table.rows if row.name == "CLIPer, ViT-L/14, windows")
    assert row.overrides("voc21") == {"window": 336}
    assert row.overrides("context60") == {"window": 224, "bkg_thre": 0.2, "score_threshold": 0.2}
    assert row.overrides("ade20k") == {"window": 224}


# Figures of a cell


def test_a_row_of_ours_has_the_figures_of_its_run(table):
    naclip, cass = table.rows
    assert [figure["miou"] for figure in table.figures(naclip, "voc21")] == [58.9, 58.9]
    assert [figure["miou"] for figure in table.figures(cass, "voc21")] == [58.6, 62.3]
    assert not table.figures(cass, "voc21")[0]["comparable"]


def test_papers_that_disagree_are_all_shown():
    line = cell(side_by_side(load_table("sclip"), []), "SCLIP, ViT-B/16", "voc21")
    assert (line["published"], line["second_hand"]) == (59.63, False)
    assert "59.1 (ResCLIP README" in line["also"]
    line = cell(side_by_side(load_table("resclip"), []), "SCLIP, ViT-B/16", "voc21")
    assert (line["published"], line["second_hand"]) == (59.1, True)
    assert "59.63 (SCLIP README" in line["also"]


def test_no_difference_where_the_settings_are_not_the_published_ones():
    table = load_table("cliptrase")
    row = table.rows[0]
    metrics = {"mIoU": 1.0, "mIoU_cliptrase": 52.0}
    results = [result(row, dataset, 0, metrics=metrics) for dataset in ("voc21", "coco_object")]
    frame = side_by_side(table, results)
    line = cell(frame, row.name, "voc21")
    assert (line["ours"], line["published"], line["difference"]) == (52.0, 50.88, 1.12)
    line = cell(frame, row.name, "coco_object")
    assert (line["ours"], line["published"]) == (1.0, 43.56)
    assert np.isnan(line["difference"])


# Ours beside them


def test_ours_stands_beside_the_published_figure(table):
    frame = side_by_side(table, [result(table.rows[0], "voc21", 59.123)])
    line = cell(frame, "NACLIP", "voc21")
    assert (line["ours"], line["published"], line["difference"]) == (59.123, 58.9, 0.22)
    assert np.isnan(cell(frame, "NACLIP", "voc20")["ours"])
    assert np.isnan(cell(frame, "CASS", "voc21")["ours"])


@pytest.mark.parametrize(
    "other",
    [
        {"partial": True},
        {"protocol": "unified"},
        {"overridden": {}},
        {"overridden": {"pamr_steps": 0, "threshold": 0.3}},
        {"clip": "vit_l14"},
        {"segmentor": "sclip"},
        {"metrics": {"mIoU": None}},
        {"metrics": {}},
    ],
    ids=str,
)
def test_only_a_complete_result_of_that_run_counts(table, other):
    frame = side_by_side(table, [result(table.rows[0], "voc21", 59.1, **other)])
    assert frame["ours"].isna().all()


def test_a_stand_in_is_named_and_has_no_difference(table):
    other = result(table.rows[0], "voc21", 59.1, sources={"vfm": {"stand_in": True}})
    line = cell(side_by_side(table, [other]), "NACLIP", "voc21")
    assert (line["ours"], line["stood_in"]) == (59.1, "vfm")
    assert np.isnan(line["difference"])


def test_settings_that_nobody_published_are_named_and_have_no_difference():
    table = load_table("corrclip")
    live, maps = ({"regions": {"name": "sam2_32", "stand_in": False, **more}} for more in ({}, {"generator": "sam2_32"}))
    for sources, doubted in ((live, True), (maps | {"regions": maps["regions"] | {"name": "/maps"}}, False)):
        overridden = {} if doubted else {"regions": "/maps"}
        other = result(table.rows[0], "voc21", 74.0, sources=sources, overridden=overridden)
        line = cell(side_by_side(table, [other]), table.rows[0].name, "voc21")
        assert (line["ours"], line["published"], bool(line["unconfirmed"])) == (74.0, 74.8, doubted)
        assert np.isnan(line["difference"]) == doubted


def test_averages_are_never_over_fewer_columns(table):
    row = table.rows[0]
    results = [result(row, "voc21", 60.0), result(row, "voc20", 80.0)]
    frame = side_by_side(table, results[:1])
    assert np.isnan(cell(frame, "NACLIP", "VOC")["ours"])
    assert cell(frame, "NACLIP", "VOC")["published"] == pytest.approx((58.9 + 79.7) / 2)
    frame = side_by_side(table, results)
    line = cell(frame, "NACLIP", "VOC")
    assert (line["ours"], line["difference"]) == (70.0, 0.7)
    line = cell(frame, "NACLIP", "all")
    assert np.isnan(line["ours"])
    assert np.isnan(line["difference"])
    frame = side_by_side(table, [*results, result(row, "ade20k", 40.0)])
    assert cell(frame, "NACLIP", "all")["ours"] == 60.0


def test_published_averages_are_never_over_fewer_columns():
    line = cell(side_by_side(load_table("resclip"), []), "GEM, ViT-B/16", "with background")
    assert np.isnan(line["published"])


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"titel": "x"}, r"unknown key 'titel'.*title"),
        ({"title": None}, "title=None: expected a text"),
        ({"source": ""}, "source='': expected a text"),
        ({"datasets": []}, r"datasets=\[\]: expected a list of names"),
        ({"datasets": "voc21"}, "datasets='voc21': expected a list of names"),
        ({"datasets": ["voc12"]}, r"unknown dataset 'voc12'"),
        ({"datasets": ["voc21", "voc20", "ade20k", "voc21"]}, "dataset 'voc21' occurs twice"),
        ({"rows": []}, r"rows=\[\]: expected a list of rows"),
        ({"rows": ["NACLIP"]}, r"row 1='NACLIP': expected {name: NAME"),
        ({"averages": {"all": ["voc21", "cityscapes"]}}, r"unknown column of the average 'all' 'cityscapes'"),
        ({"averages": {"voc21": ["voc21"]}}, "average 'voc21' occurs twice"),
        ({"averages": ["voc21"]}, r"averages=\['voc21'\]: expected {NAME: \[DATASET"),
    ],
    ids=str,
)
def test_mistakes_in_a_table_are_named(change, message, tmp_path):
    with pytest.raises(OvssError, match=rf"small\.yaml: .*{message}"):
        load_table(written(tmp_path, SMALL | change))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"segmentor": "naclip"}, "row 2: name=None: expected a text"),
        ({"name": "X"}, "row 'X': it names neither a segmentor with its clip nor a method"),
        ({"name": "X", "segmentor": "naclipp", "clip": "vit_b16"}, r"row 'X': unknown segmentor 'naclipp'.*naclip"),
        ({"name": "X", "segmentor": "naclip"}, r"row 'X': unknown clip 'None'"),
        ({"name": "X", "segmentor": "naclip", "clip": "vit_b61"}, r"row 'X': unknown clip 'vit_b61'.*vit_b16"),
        ({"name": "X", "segmentor": "naclip", "clip": "vit_b16", "recipe": {"sigm": 1}}, r"row 'X': .*'sigm'.*sigma"),
        ({"name": "X", "segmentor": "naclip", "clip": "vit_b16", "recipe": {"sigma": "wide"}}, r"row 'X': sigma='wide'"),
        (
            {"name": "X", "segmentor": "naclip", "clip": "vit_b16", "recipe": ["sigma"]},
            r"'X': recipe=.*: expected overrides as",
        ),
        (
            {"name": "X", "segmentor": "naclip", "clip": "vit_b16", "per_dataset": {"loveda": {}}},
            r"row 'X': unknown key of per_dataset 'loveda'",
        ),
        (
            {"name": "X", "segmentor": "naclip", "clip": "vit_b16", "per_dataset": {"voc21": 1}},
            r"row 'X': per_dataset=.*: expected {DATASET",
        ),
        ({"name": "X", "segmentor": "naclip", "clip": "vit_b16", "variant": "y"}, r"row 'X': variant, .* need a method"),
        (
            {"name": "X", "method": "cass", "recipe": {"sigma": 1}},
            r"row 'X': clip, recipe, per_dataset and first need a segmentor",
        ),
        ({"name": "X", "method": "cass", "variant": "default"}, r"row 'X': results/published has no such figure"),
        ({"name": "X", "method": "cass", "colour": "red"}, r"row 'X': unknown key 'colour'"),
        (SMALL["rows"][0], "row 'NACLIP' occurs twice"),
    ],
    ids=str,
)
def test_mistakes_in_a_row_are_named(row, message, tmp_path):
    with pytest.raises(OvssError, match=rf"small\.yaml: .*{message}"):
        load_table(written(tmp_path, SMALL | {"rows": [SMALL["rows"][0], row]}))


def test_a_table_that_is_not_there_lists_close_ones(tmp_path):
    with pytest.raises(OvssError, match=r"unknown table .*'naclp'.*naclip"):
        load_table("naclp")
    for text in ("title: [", "- a", ""):
        with pytest.raises(OvssError, match=r"small\.yaml"):
            load_table(written(tmp_path, text))
