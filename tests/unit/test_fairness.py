"""Fairness tags: every recipe and network states them, results hold them, tables show them and never rank over them."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

import ovss_bench as ob
from end_to_end.tools import first_version
from ovss_bench import files
from ovss_bench.auxiliary.bank import load_bank
from ovss_bench.config.recipe import compose_recipe, segmentor_config
from ovss_bench.config.training import IMAGES_SEEN, NAMES_SEEN, SUPERVISION, Training, checked_facts, training_of
from ovss_bench.datasets.suites import Average, Suite
from ovss_bench.files import config_names, load_config
from ovss_bench.reports.csv import csv
from ovss_bench.reports.html import html
from ovss_bench.reports.latex import latex
from ovss_bench.reports.markdown import markdown
from ovss_bench.reports.report import make_report, select
from ovss_bench.reports.results import averages_table, results_table
from ovss_bench.runs.evaluate import run_jobs
from ovss_bench.runs.exports import tags_of
from ovss_bench.runs.fairness import GROUPS, class_of, fairness, mark_of, mixed, overlap
from ovss_bench.runs.jobs import fingerprint, job_of, make_job
from ovss_bench.runs.load import frame_of
from ovss_bench.runs.schema import schema, validate_result
from stand_ins import concepts

FAST = {"resize": "none", "window": 48, "stride": 48}
TRAINED = ("clip_dinoiser", "denseclip", "maskclip_plus", "pacl", "segearth_ov", "tagclip", "tagclip_cross", "zegclip")
TRAINED += ("floss", "floss_maskclip", "floss_clip_dinoiser")  # the templates are ranked on images
GROUPS_AND_CLIP = ("clip", *GROUPS.values())
NETWORKS = [(group, name) for group in GROUPS_AND_CLIP for name in config_names(group)]


@pytest.fixture(scope="module")
def real():
    return ob.evaluate("clip", ob.load_clip("demo"), ob.load_dataset("demo"), recipe=FAST, limit=1).data


def changed(result, segmentor, dataset="demo", value=10.0, **tags):
    """A complete result with other fairness tags."""
    new = copy.deepcopy(result) | {"segmentor": segmentor, "dataset": dataset, "partial": False, "overridden": {}}
    new["metrics"] = {"mIoU": value}
    new["fairness"] |= tags
    return new


def stated(segmentor, dataset="voc21", clip="vit_b16", sources=None, **overrides):
    """What `fairness` takes, without a run."""
    recipe = compose_recipe(segmentor, clip=clip, dataset=dataset, overrides=overrides)
    values = {name: {"value": value, "origin": recipe.origins[name]} for name, value in recipe.values().items()}
    return {"segmentor": segmentor, "clip": clip, "dataset": dataset, "sources": sources or {}, "recipe": values}


@pytest.mark.parametrize("segmentor", config_names("segmentor"))
def test_every_segmentor_states_its_training(segmentor):
    facts = training_of(segmentor_config(segmentor)[0]["training"], segmentor)
    assert (facts != Training("none")) == (segmentor in TRAINED)
    assert "checkpoint" not in compose_recipe(segmentor, clip="vit_b16").hyperparameters or segmentor in TRAINED


@pytest.mark.parametrize(("group", "name"), NETWORKS, ids=map("/".join, NETWORKS))
def test_a_configuration_is_its_readers_own(group, name):
    before = copy.deepcopy(config := load_config(group, name))
    config.clear()
    assert load_config(group, name) == before


@pytest.mark.parametrize(("group", "name"), NETWORKS, ids=map("/".join, NETWORKS))
def test_every_network_states_its_training(group, name):
    facts = training_of(load_config(group, name)["training"], name)
    stand_in = (group, name) == ("concepts", "demo")
    untrained = stand_in or group == "diffusion" or load_config(group, name).get("kind") in ("felzenszwalb", "slic")
    assert (facts.training_data == "none") == (untrained and facts.supervision == "none")
    assert facts.supervision == "image-text pairs" or group != "clip"


def test_the_schema_knows_the_tags():
    tags = schema()["properties"]["fairness"]["properties"]
    assert tags["supervision"]["enum"] == list(SUPERVISION)
    assert tags["target_images_seen"]["enum"] == list(IMAGES_SEEN)
    assert tags["target_names_seen"]["enum"] == list(NAMES_SEEN)


@pytest.mark.parametrize(
    ("segmentor", "overrides", "mark"),
    [
        ("sclip", {}, "none"),
        ("proxyclip", {}, "none"),
        ("proxyclip", {"vfm": "sam_vitb"}, "masks without classes (vfm)"),
        ("corrclip", {}, "masks without classes (regions)"),
        ("corrclip", {"regions": "slic"}, "none"),
        ("cliper", {}, "image-text pairs (diffusion)"),
        ("cliper", {"diffusion": None}, "none"),
        ("clip_diy", {}, "none"),
        ("proxyclip", {"vfm": "/elsewhere/dino_vitbase8_pretrain.pth"}, "none"),
        ("proxyclip", {"vfm": "/elsewhere/mine.pth"}, "unknown (vfm)"),
        ("tagclip", {}, "masks"),
        ("pacl", {}, "image-text pairs"),
        ("maskclip_plus", {}, "pseudo-labels"),
    ],
)
def test_the_most_supervised_part_gives_the_mark(segmentor, overrides, mark):
    result = stated(segmentor, **overrides)
    assert mark_of({"fairness": fairness(result)}) == mark


def test_facts_depend_on_data_set_and_checkpoint(tmp_path):
    seen = {name: fairness(stated("tagclip_cross", name))["target_images_seen"] for name in ("voc20", "coco_stuff")}
    assert seen == {"voc20": "no", "coco_stuff": "labelled"}
    assert fairness(stated("pacl", clip="demo", dataset="demo"))["target_names_seen"] == "yes"
    checkpoint = tmp_path / "mine.pt"
    checkpoint.write_bytes(b"x")
    own = stated("pacl", checkpoint=str(checkpoint), sources={"checkpoint": {"name": str(checkpoint)}})
    assert fairness(own)["target_names_seen"] == "no"
    (tmp_path / "mine.pt.tags.yaml").write_text("target_names_seen: yes\ntraining_data: mine\n")
    tags = fairness(own)
    assert (tags["target_names_seen"], tags["training_data"], tags["supervision"]) == ("yes", "mine", "image-text pairs")
    assert tags["stated_by"][0] == "mine.pt.tags.yaml"
    (tmp_path / "mine.pt.tags.yaml").write_text("supervision: much\n")
    with pytest.raises(ob.OvssError, match=r"unknown value of supervision \(from .*mine\.pt\.tags\.yaml\)"):
        fairness(own)


def test_a_network_in_a_file_has_its_facts_beside_it(tmp_path):
    (tmp_path / "maps.tags.yaml").write_text("{supervision: masks, training_data: mine}")
    tags = fairness(stated("corrclip", sources={"regions": {"name": "maps"}}, regions=str(tmp_path / "maps")))
    assert (tags["supervision"], tags["supervised"]) == ("masks", ["regions"])
    indexed = {"regions": {"name": "maps", "generator": "entityseg"}}
    tags = fairness(stated("corrclip", sources=indexed, regions="maps"))
    assert (tags["supervision"], tags["target_images_seen"]) == ("masks without classes", "unknown")


@pytest.mark.parametrize("segmentor", ["sam3", "segearth_ov3", "active_sam"])
def test_a_folder_of_a_concept_segmenter_is_one_that_concept_labels_have_trained(segmentor, tmp_path):
    """Whatever its name: only a network of this layout can be loaded from it."""
    folder = tmp_path / "mine"
    tags = fairness(stated(segmentor, clip="none", concepts=str(folder)))
    assert mark_of({"fairness": tags}) == "concept labels and masks (concepts)"
    assert class_of({"fairness": tags}).startswith("concept labels and masks; target images unknown")
    (tmp_path / "mine.tags.yaml").write_text("supervision: masks")
    assert fairness(stated(segmentor, clip="none", concepts=str(folder)))["supervision"] == "masks"


@pytest.mark.parametrize("segmentor", ["sam3", "segearth_ov3", "active_sam"])
def test_a_concept_segmenter_that_is_a_function_may_be_anything(segmentor):
    data = ob.load_dataset("demo")
    built = ob.build_segmentor(segmentor, vocabulary=data.vocabulary(), concepts=concepts)
    assert tags_of(job_of(built, data, "paper", {}, kept=False), ())["networks"]["concepts"]["supervision"] == "unknown"


def test_values_tuned_for_the_data_set_are_listed():
    assert fairness(stated("sclip", "voc21"))["per_dataset_tuning"] == ["logit_scale", "threshold", "area_threshold"]
    assert fairness(stated("sclip", "voc20"))["per_dataset_tuning"] == []  # names only


def test_other_spellings_are_understood():
    given = {"supervision": "captions", "target_images_seen": "yes (unlabelled)", "target_names_seen": True}
    assert checked_facts(given, "it") == {
        "supervision": "image-text pairs",
        "target_images_seen": "unlabelled",
        "target_names_seen": "yes",
    }
    for wrong in ({"supervised": "x"}, {"target_images_seen": "yes"}, {"training_data": 3}):
        with pytest.raises(ob.OvssError, match="it"):
            checked_facts(wrong, "it")
    with pytest.raises(ob.OvssError, match="lacks supervision"):
        training_of({"training_data": "x"}, "it")
    with pytest.raises(ob.OvssError, match=r"it\.per_dataset\.voc21"):
        training_of({"supervision": "none", "per_dataset": {"voc21": 3}}, "it")


def test_a_bank_reports_its_overlap_with_the_evaluated_images(tmp_path):
    path = tmp_path / "bank.safetensors"
    names = ["train/000000000001.jpg", "scene_000.png", "scene_001.png"]
    for images in ("\n".join(names), json.dumps(names)):
        save_file({"keys": torch.eye(3, 128), "values": torch.eye(3, 128)}, path, {"images": images})
        assert load_bank(path).images == tuple(names)
    clip, data = ob.load_clip("demo"), ob.load_dataset("demo")
    result = ob.evaluate("corrclip_v2", clip, data, recipe={"bank": str(path)}, ids=["scene_000", "scene_002"])
    tags = result.data["fairness"]
    assert tags["bank_overlap"] == {"bank": 3, "evaluated": 2, "shared": 1}
    assert tags["target_images_seen"] == "unlabelled"
    assert class_of(result.data) == "none; target images unlabelled"
    assert overlap(["a/b.v2.png"], ["b.v2", "x/b", "b.v3"]) == {"bank": 1, "evaluated": 3, "shared": 1}


def test_a_bank_without_a_list_is_unknown(tmp_path):
    result = stated("corrclip_v2", bank=str(tmp_path / "bank.pt"), regions="slic")
    assert fairness(result)["target_images_seen"] == "unknown"
    (tmp_path / "bank.pt.tags.yaml").write_text("{target_images_seen: no, training_data: COCO train2017}")
    tags = fairness(result)
    assert (tags["target_images_seen"], tags["networks"]["bank"]["training_data"]) == ("no", "COCO train2017")


def test_label_maps_have_the_tags_of_their_manifest(tmp_path):
    clip, data = ob.load_clip("demo"), ob.load_dataset("demo")
    job, maps = make_job("pacl", clip, data, overrides=FAST), tmp_path / "maps"
    runtime = ob.Runtime(save_label_maps=str(maps))
    (first,) = run_jobs([job], limit=1, output=tmp_path / "out", runtime=runtime, quiet=True)
    (folder,) = [path.parent for path in maps.rglob("manifest.json")]
    again = ob.evaluate("labels", data, recipe={"path": str(folder)}, limit=1).data["fairness"]
    same = ("supervision", "training_data", "target_names_seen", "setting", "vocabulary")
    assert {tag: again[tag] for tag in same} == {tag: first.data["fairness"][tag] for tag in same}
    assert again["stated_by"] == ["manifest.json"]
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"tags": {"more": 1}}))
    assert ob.evaluate("labels", data, recipe={"path": str(folder)}, limit=1).data["fairness"]["supervision"] == "unknown"
    (folder / "manifest.json").write_text(json.dumps(manifest | {"tags": {"supervision": "some"}}))
    with pytest.raises(ob.OvssError, match=r"supervision \(from tags of manifest\.json\)"):
        ob.evaluate("labels", data, recipe={"path": str(folder)}, limit=1)


def test_tags_are_no_part_of_the_fingerprint(tmp_path, monkeypatch):
    data = ob.load_dataset("demo")
    job = make_job("pacl", ob.load_clip("demo"), data)
    before = fingerprint(job, data.samples)
    monkeypatch.setitem(files._config("segmentor", "pacl"), "training", {"supervision": "masks"})
    job = make_job("pacl", ob.load_clip("demo"), data)
    assert fingerprint(job, data.samples) == before
    assert not {"training", "supervision"} & set(job.segmentor.recipe.values())


def test_results_of_earlier_versions_get_the_tags_of_their_recipe(real):
    second = {name: value for name, value in real.items() if name != "fairness"} | {"schema_version": 2}
    assert validate_result(second, "it")["fairness"] == real["fairness"]
    unknown = validate_result(second | {"segmentor": "mine"}, "it")["fairness"]
    assert (unknown["supervision"], unknown["stated_by"][0]) == ("unknown", "nobody")
    assert validate_result(first_version(real), "it")["fairness"]["supervision"] == "none"


def test_a_plugin_states_its_training_in_its_recipe(tmp_path):
    method = "@ob.SEGMENTORS.register_module(name='tagged')\nclass Tagged(ob.SEGMENTORS.get('sclip')):\n    pass\n"
    (tmp_path / "tagged.py").write_text(f"import ovss_bench as ob\n\n{method}")
    (tmp_path / "configs/segmentor").mkdir(parents=True)
    (tmp_path / "configs/segmentor/tagged.yaml").write_text("training: {supervision: masks, training_data: mine}\n")
    from ovss_bench.config.registry import load_plugin

    load_plugin(str(tmp_path / "tagged.py"))
    assert fairness(stated("tagged"))["supervision"] == "masks"


# Tables


def test_the_best_of_a_run_is_marked_by_supervision(real):
    kinds = [changed(real, "a"), changed(real, "b", value=9.0), changed(real, "c", value=50.0, supervision="masks")]
    table = results_table([*kinds, changed(real, "d", value=60.0, target_images_seen="labelled")])
    assert [figure.rank for figure in table.cells("mIoU")] == [1, None, 1, 1]
    assert "same supervision" in table.remarks[0]
    assert table.cells("mIoU")[3].notes == ["target images labelled in training"]
    assert results_table(kinds[:2]).remarks == ()


def test_a_report_ranks_within_a_supervision_and_shows_it(real):
    rows = [changed(real, name, dataset, 10.0) for name in "ab" for dataset in ("voc21", "ade20k")]
    rows[2]["metrics"] = rows[3]["metrics"] = {"mIoU": 20.0}
    rows += [changed(real, name, "voc21", 90.0, supervision="masks", supervised=["method"]) for name in ("c", "d")]
    rows += [changed(real, "e", "voc21", 99.0, target_names_seen="yes")]
    report = make_report({f"{number}": row for number, row in enumerate(rows)})
    ranks = {row.cells[0].text: [cell.rank for cell in row.cells[4:]] for row in report.rows}
    assert ranks == {"a": [2, 2], "b": [1, 1], "e": [None, None], "c": [None, 1], "d": [None, 1]}
    assert [row.cells[3].text for row in report.rows] == ["none"] * 3 + ["masks"] * 2
    assert len(report.groups()) == 2
    assert any("supervision" in remark for remark in report.remarks)
    for render in (markdown, csv, html, lambda table: latex(table, "t")):
        assert "masks" in render(report)
        assert "target names seen in training" in render(report)


def test_an_average_over_settings_says_so(real):
    suite = Suite("s", "S", ("voc21", "ade20k"), (Average("both", ("voc21", "ade20k")),))
    rows = [changed(real, "a", "voc21"), changed(real, "a", "ade20k", target_images_seen="unlabelled")]
    rows += [changed(real, "b", name) for name in ("voc21", "ade20k")]
    words = "average of different settings: none (voc21), none; target images unlabelled (ade20k)"
    report = make_report({str(number): row for number, row in enumerate(rows)}, suite)
    assert {row.cells[0].text: row.cells[-1].notes for row in report.rows} == {"a": [words], "b": []}
    averages = averages_table(suite, rows)
    assert {row.cells[0].text: row.cells[0].notes for row in averages.rows} == {"a": [words], "b": []}
    assert mixed({"voc21": "none", "ade20k": "none"}) is None


def test_results_are_chosen_by_their_tags(real):
    rows = {"1": changed(real, "a"), "2": changed(real, "b", supervision="masks", target_images_seen="labelled")}
    assert list(select(rows, {"supervision": ["none"]}, False)) == ["1"]
    assert list(select(rows, {"target_images_seen": ["labelled"], "supervision": []}, False)) == ["2"]
    with pytest.raises(ob.OvssError, match="supervision among the results"):
        select(rows, {"supervision": ["mask"]}, False)


def test_data_frames_have_the_tags(real):
    frame = frame_of({"1": real})
    tags = ("supervision", "setting", "target_images_seen", "target_names_seen", "vocabulary", "training_data")
    assert [frame[tag][0] for tag in tags] == ["none", "training-free", "no", "no", "open", "none"]
