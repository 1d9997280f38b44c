"""Texts on the command line and in YAML arrive as they were written, whatever Hydra's grammar or YAML sees in them."""

import re

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import ovss_bench as ob
from miniatures.drawing import write_files
from ovss_bench.cli.eval_options import checked_options
from ovss_bench.cli.options import Option, Text, Texts, is_positional, parse_options
from ovss_bench.cli.overrides import SEVERAL, TEXTS, checked, literal
from ovss_bench.datasets.config import dataset_config
from ovss_bench.files import CONFIGS, config_names

# An id of every kind that data sets have: each pattern in configs/dataset matches one of them (tested below).
IDS = [
    "2007_000033",
    "2010_001606",
    "000000000139",
    "COCO_val2014_000000000042",
    "COCO_train2014_000000000077",
    "ADE_val_00000001",
    "2522",
    "001",
    "frankfurt/frankfurt_000000_000294_leftImg8bit",
    "munster/munster_000173_000019",
    "P0003_0_896_512_1408",
    "P0003_12",
    "area2_0_0_512_512",
    "2_13_0_0_512_512",
    "top_2_13_17",
    "seq16_000000_0_1080_0_1280",
    "7e3f4a5b-00000000",
    "Image_05L",
    "GOPR0356_frame_000321",
    "water_body_1",
    "104_sat",
    "seq21_000000_0_1080_0_1280",
    "austin1_0_0_1000_1000",
    "hurricane-florence_00000018_pre_disaster",
    "scene_000",
    "1e3",
    "0x10",
    "1_000",
    "no",
    "yes",
    "true",
    "null",
    "NaN",
    "inf",
    "~",
    "1.0",
    ".5",
    "-1",
    "+3",
    "007",
    "2024-01-02",
    "12:30",
    "a-b.c",
    "é",
    "名",
    "a'b",
    "a#b",
    "x=y",
    "{a}",
    "(1)",
    "a\\b",
    "[1]",
    "$a",
    "%41",
    "a@b",
    "a+b",
    "*",
    "a&b",
]
IDS.append("a b")


PARSER = OverridesParser.create()
RUNTIME = ("feature_cache", "trunk_cache", "device")
LISTS = ("segmentor", "dataset", "plugins", "ids", "text", "refine")
OPTIONS = [Option("names", Texts, []), Option("out", Text | None, None)]


def composed(*words, grid=False):
    with hydra.initialize_config_dir(str(CONFIGS / "tools"), version_base="1.3"):
        config = hydra.compose("eval", [literal(word, grid) for word in words])
    return checked_options(OmegaConf.to_container(config, resolve=True))


def test_ids_of_every_kind_are_texts():
    assert composed(f"ids=[{','.join(IDS)}]")["ids"] == IDS
    assert composed(f"++ids=[ {' , '.join(IDS)} ]", grid=True)["ids"] == IDS
    names = [name for name in IDS if name != "~"]
    assert parse_options([f"names=[{','.join(names)}]"], OPTIONS)["names"] == names
    assert composed("ids=['a,b',\"c,d\"]")["ids"] == ["a,b", "c,d"]
    for name in {*IDS} - {"null", "~", "[1]"}:  # nothing, the home folder, a list
        assert PARSER.parse_override(literal(f"ids={name}", False)).value() == name
        assert parse_options([f"names={name}", f"out={name}"], OPTIONS) == {"names": [name], "out": name}


@pytest.mark.parametrize("dataset", config_names("dataset"))
def test_every_data_set_has_an_id_of_its_kind_here(dataset):
    pattern = (dataset_config(dataset)[1].get("check") or {}).get("ids") or ".*"
    assert any(re.fullmatch(pattern, name) for name in IDS), pattern


PATHS = ["/my data/a=b", "/a,b/c", "/x#1", "größe/w.pt", "/a(1)", "/[old]/{x}", "C:\\x", "it's", "/a/~b", " x ", "2012", "a:b"]


@pytest.mark.parametrize("path", [*PATHS, "~/data"])
def test_paths_of_every_option_are_texts(path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    expected = "/home/me/data" if path == "~/data" else path
    keys = [key for key in TEXTS if "," not in path or key not in SEVERAL]  # there a comma separates, or Hydra complains
    where = {"names": "++recipe.names", "templates": "++recipe.templates"} | {key: f"runtime.{key}" for key in RUNTIME}
    options = composed(*(f"{where.get(key, key)}={path}" for key in keys))
    found = {**options, **options["runtime"], **options["recipe"]}
    for key in keys:
        own = path if key in ("ids", "names", "templates") else expected  # which are no paths here
        assert found[key] == ([own] if key in LISTS else own)
        if key != "plugins":
            assert parse_options([f"{key}={path}"], [Option(key, Text | None, None)])[key] == (
                path if key == "ids" else expected
            )


def test_what_is_no_text_stays_hydras():
    for word in (
        "limit=3",
        "recipe.threshold=0.2",
        "vfm=null",
        "data_root=${oc.env:HOME}",
        "output=",
        "ids=[a,]",
        "hydra/launcher=x",
    ):
        assert literal(word, False) == word
    assert literal("segmentor=sclip,clip", False) == literal("segmentor=sclip,clip", True) == "segmentor=sclip,clip"
    assert literal("dataset=voc21,2012", True) == "dataset=voc21,'2012'"
    assert literal("segmentor=choice(sclip,clip)", True) == "segmentor=choice(sclip,clip)"
    assert composed("ids=null")["ids"] is None


def test_words_that_are_places_are_no_options(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a=1").mkdir()
    assert is_positional(f"{tmp_path}/a=1")
    assert is_positional("~/a=1")
    assert is_positional("runs")
    assert not is_positional("out=1")


def test_texts_in_yaml_are_texts(tmp_path):
    names = [name for name in IDS if name.isalnum() or "_" in name] + ["1.0", "~", "2024-01-02", "12:30"]
    lines = ["images: 2012", "labels: 007", "image_suffix: .png", "label_suffix: .png", "ids: 1e3", "reduce_zero_label: no"]
    (tmp_path / "mine.yaml").write_text("\n".join([*lines, f"classes: [{', '.join(names)}, [off, 0o7]]", "background: 0x1"]))
    write_files(tmp_path, {"2012/0.png": b"", "007/0.png": b"", "1e3": b"0\n"})
    dataset = ob.load_dataset(tmp_path / "mine.yaml")
    assert dataset.classes == (*names, "off")
    assert dataset.vocabulary(None, "photo").queries[-2:] == ("off", "0o7")
    assert [sample.id for sample in dataset.samples] == ["0"]
    assert dataset.background == 1
    assert dataset.config["reduce_zero_label"] is False


@pytest.mark.parametrize(
    "word", ["refine=pamr,freecp", "segmentor=sclip,clip", "recipe.window=112,224", "clip=demo,vit_b16", "limit=1,2"]
)
def test_several_values_without_a_grid_are_refused_with_what_to_write(word):
    name, _, value = word.partition("=")
    with pytest.raises(ob.OvssError, match="add -m to run a grid") as refused:
        checked([word])
    assert (f"write {name}=[{value}]" in str(refused.value)) == (name not in ("clip", "limit"))
    assert checked(["-m", word])
