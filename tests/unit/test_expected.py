"""How many images a data set has, and which ids: where that is known from, that all tools take the same numbers, and what is
said about others."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import ovss_bench as ob
from end_to_end.tools import evaluate_here
from miniatures import MINIATURES
from miniatures.context import IDS as CONTEXT_IDS
from ovss_bench.datasets import expected
from ovss_bench.datasets.check.run import check
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.prepare.run import prepare
from ovss_bench.files import CONFIGS, config_names
from ovss_bench.reports.datasets import card, state_of
from ovss_bench.reports.reproduced import _data

NAMES = [name for name in config_names("dataset") if dataset_config(name)[1].get("loader") != "demo"]
CONTEXT = ["context60", "context59", "context459"]
CONTEXT_LIST = "VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt"


@pytest.fixture
def own(tmp_path):
    """`own(count, **entries)`: the YAML file of a data set of one's own, of so many images with the ids 0, 1, ..."""

    def of(count, **entries):
        for kind, shape in (("images", (24, 32, 3)), ("labels", (24, 32))):
            (tmp_path / kind).mkdir()
            for number in range(count):
                array = np.random.RandomState(number).randint(0, 2, shape).astype(np.uint8)
                Image.fromarray(array).save(tmp_path / kind / f"{number}.png")
        plain = {"images": "images", "labels": "labels", "image_suffix": ".png", "label_suffix": ".png"}
        path = tmp_path / "mine.yaml"
        path.write_text(json.dumps(plain | {"classes": ["sky", "grass"]} | entries))
        return path

    return of


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_images_says_where_it_comes_from(name):
    lines = (CONFIGS / "dataset" / f"{name}.yaml").read_text().splitlines()
    stated = [number for number, line in enumerate(lines) if line.startswith("expected_images:")]
    if not stated:
        assert "expected_images" in dataset_config(name)[1], "neither a number nor `null  # unknown: why`"
        return
    (at,) = stated
    value, _, comment = lines[at].partition("#")
    comment = comment or (lines[at - 1] if lines[at - 1].startswith("#") else "")
    assert len(comment.split()) >= 3, "a comment must say where the number comes from"
    if value.split() == ["expected_images:", "null"]:
        assert comment.strip().startswith("unknown: ")
    assert (expected.counts(dataset_config(name)[1]) == []) == ("unknown: " in comment)


def test_numbers_are_those_of_the_outside_world():
    """The first is what papers evaluate."""
    known = {
        "context60": [5104, 5105],
        "context59": [5104, 5105],
        "context459": [5104, 5105],
        "foodseg103": [2135, 2125],
        "coco_stuff10k": [1000],
        "loveda": [1669],
        "chn6_cug": [903],
        "voc21": [1449],
        "vdd": [],
    }
    assert {name: expected.counts(dataset_config(name)[1]) for name in known} == known


@pytest.mark.parametrize("name", CONTEXT)
def test_either_list_of_context_is_complete(name):
    config = dataset_config(name)[1]
    assert [expected.number(config, found) for found in (5104, 5105, 4996, 5103)] == [5104, 5105, 5104, 5104]
    assert [bool(expected.wrong_count(config, found)) for found in (5104, 5105, 4996, 0)] == [False, False, True, True]
    images = {"evaluated": 5104, "failed": {}}
    for count, mark in ((5104, "ok"), (5105, "suspicious")):  # of a list of 5105 one is missing then
        result = {"dataset": name, "images": images | {"expected": count}, "per_class": [], "dataset_fingerprint": "0"}
        assert next(iter(_data(result)))[1].lower() == mark


@pytest.mark.parametrize("name", CONTEXT)
def test_the_image_of_context_that_nobody_evaluates_is_left_out(name, tmp_path):
    """Archives as VOC 2010 has them, whose list of validation images names it."""
    MINIATURES[name](tmp_path)
    main = tmp_path / "VOCdevkit/VOC2010/ImageSets/Main/val.txt"
    prepare(name, tmp_path, quiet=True, workers=1)
    main.write_text(main.read_text() + "2010_001606\n")
    prepare(name, tmp_path, quiet=True, workers=1, rerun=True)
    assert [sample.id for sample in ob.load_dataset(name, tmp_path).samples] == sorted(CONTEXT_IDS)


@pytest.mark.parametrize(("count", "wanted", "partial"), [(2, 2, False), (3, 3, False), (1, 2, True), (4, 2, True)])
def test_a_run_over_any_established_number_is_whole(count, wanted, partial, own, tiny_clip, tiny_vocabulary, capsys):
    data = ob.load_dataset(own(count, expected_images=[2, 3], classes=["a", "b", "c", "d"]))
    segmentor = ob.build_segmentor("clip", clip=tiny_clip, vocabulary=tiny_vocabulary, resize="square", short_side=32)
    shown = ob.evaluate(segmentor, data, progress=True)
    assert (f"{count} of {wanted} images" in repr(shown)) is partial
    assert ("note: mine: " in capsys.readouterr().err.partition("clip on")[0]) is partial  # before the run
    result = shown.data
    assert result["images"] == {"expected": wanted, "evaluated": count, "failed": {}}
    assert result["partial"] is partial
    assert data.expected_images == wanted


@pytest.mark.parametrize(("count", "complete"), [(2, True), (3, True), (1, False)])
def test_all_tools_take_the_same_numbers(count, complete, own, capsys):
    path = own(count, expected_images=[2, 3])
    kinds = [finding.what for finding in check(path, workers=1, quiet=True).findings if finding.kind == "number of images"]
    assert kinds == ([] if complete else ["1 images are listed, 2 or 3 are expected"])
    assert state_of(str(path), None)[0] == ("yes" if complete else "1 of 2 images")
    prepare(path)
    note = "note: 1 images are listed, 2 or 3 are expected; results are marked as partial"
    assert (note in capsys.readouterr().err) != complete
    assert re.search(r"^images expected +2 or 3$", card(str(path), None).plain, re.MULTILINE)


@pytest.mark.parametrize("value", [-1, "many", [], [2, "three"], [True], {"val": 3}], ids=str)
def test_other_values_for_the_number_are_refused(value, own):
    with pytest.raises(ob.OvssError, match=r"expected_images=.*a positive number of images, or a list"):
        ob.load_dataset(own(1, expected_images=value))


@pytest.mark.parametrize("name", NAMES)
def test_complete_data_in_the_layout_that_is_read_need_no_preparation(name, prepared, tmp_path, capsys):
    """As mmseg's or MESS's own scripts leave them: no archives, no raw files, and here another number of images."""
    intact = ob.load_dataset(name, prepared(name))
    folder = tmp_path / dataset_config(name)[1]["folders"][0]
    files = [path for sample in intact.samples for path in (sample.image_path, sample.label_path)]
    files += [intact.root / intact.config["ids"]] if intact.config.get("ids") else []
    for path in files:
        target = folder / path.relative_to(intact.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    prepare(name, tmp_path, workers=1)
    said = capsys.readouterr().err
    assert f"{name} is ready: {len(intact.samples)} images in {folder}" in said
    assert ("marked as partial" in said) == bool(expected.counts(intact.config))
    assert ob.load_dataset(name, tmp_path).fingerprint == intact.fingerprint
    assert sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock") == sorted(
        folder / path.relative_to(intact.root) for path in files
    )


@pytest.mark.parametrize(
    ("name", "own_ids", "others"),
    [
        ("loveda", ["2522", "4190"], ["0", "2521", "4191", "5986", "2522_a", "-2522"]),
        ("uavid", ["seq21_000000_0_1080_0_1280", "seq42_1_0_1_0_1"], ["seq16_000000_0_1080_0_1280", "seq31_1_0_1_0_1"]),
        ("mess_uavid", ["seq16_000000_0", "seq37_000900_11"], ["seq21_000000_0", "seq1_000000_0"]),
        ("potsdam", ["2_13_0_0_512_512"], ["2_10_0_0_512_512"]),
        ("voc21", ["2007_000033"], ["000033"]),
    ],
)
def test_ids_foreign_ids_are_known(name, own_ids, others):
    config = dataset_config(name)[1]
    assert expected.foreign_ids(config, [*own_ids, *others]) == others


def test_every_miniature_has_ids_of_its_split(prepared):
    for name in NAMES:
        assert [doubt for doubt in ob.load_dataset(name, prepared(name)).doubts if "do not match this split" in doubt] == []


def test_tiles_of_the_training_split_are_noticed(prepared, tmp_path, monkeypatch, capsys):
    """LoveDA's training tiles in the folders of val: by check, by prepare and before a run."""
    intact = ob.load_dataset("loveda", prepared("loveda"))
    for number, sample in enumerate(intact.samples):
        for path in (sample.image_path, sample.label_path):
            target = tmp_path / "LoveDA" / path.relative_to(intact.root).with_name(f"{number}.png")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    found = check("loveda", tmp_path, workers=1, quiet=True).findings
    assert [finding.what for finding in found if finding.kind == "ids of another split"] == [
        f"the id {number} does not match this split (2522 to 4190)" for number in range(4)
    ]
    note = "4 of 4 ids do not match this split (2522 to 4190): 0, 1, 2, ..."
    prepare("loveda", tmp_path, workers=1)
    assert f"note: {note}" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    fast = ["recipe.resize=square", "recipe.short_side=32", "recipe.window=whole", "recipe.templates=photo", "limit=1"]
    assert evaluate_here("segmentor=clip", "dataset=loveda", f"data_root={tmp_path}", *fast) == 0
    said = capsys.readouterr().out
    assert f"note: loveda: {note}" in said
    assert "note: loveda: 4 images are listed, 1669 are expected; results are marked as partial" in said


def test_the_number_of_another_split_is_named():
    config = dataset_config("loveda")[1]
    assert expected.wrong_count(config, 2522).endswith("2522 is the number of train")
    assert expected.doubts(config, [str(number) for number in range(2522, 4191)]) == []


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"id_range": 5}, r"id_range=5 .*: expected \[first, last\]"),
        ({"id_range": [1, "9"]}, r"id_range=.*: expected \[first, last\]"),
        ({"ids": "(a"}, r"ids='\(a' .*mine.yaml.*: expected a regular expression"),
        ({"ids": 7}, "ids=7 .*: expected a regular expression"),
        ({"splits": [1]}, r"splits=\[1\] .*: expected NAME: NUMBER"),
    ],
)
def test_facts_of_ones_own_that_cannot_be_used_are_refused(facts, said, own):
    with pytest.raises(ob.OvssError, match=said):
        ob.load_dataset(own(1, check=facts))


def test_ones_own_range_of_ids(own):
    data = ob.load_dataset(own(3, check={"id_range": [1, 5], "ids": r"\d"}))
    assert data.doubts == [r"1 of 3 ids do not match this split (\d, 1 to 5): 0"]


def test_sources_are_those_of_the_published_numbers():
    assert "shirshmall/water-body" in dataset_config("wbs_si")[1]["link"]
    assert "agreement" not in dataset_config("vdd")[1]["licence"] + dataset_config("vdd")[1]["prepare"]["note"]
