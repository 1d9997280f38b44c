"""Class names: every file in configs/names fits its data set, every recipe names one that is there, none changes unnoticed."""

import hashlib
import itertools
import json
from functools import cache
from pathlib import Path

import pytest
from mmseg.registry import DATASETS as MMSEG

import ovss_bench as ob
from ovss_bench.config.recipe import compose_recipe, segmentor_config
from ovss_bench.datasets.base import SegDataset
from ovss_bench.datasets.config import dataset_config, names_path
from ovss_bench.files import CONFIGS, config_names, load_config
from ovss_bench.vocabulary import read_names

FILES = {f"{path.parent.name}/{path.stem}": path for path in sorted((CONFIGS / "names").glob("*/*.txt"))}
DATASETS = config_names("dataset")
WITH_PER_DATASET = [
    (".", "recipe"),
    *itertools.product(["segmentor"], config_names("segmentor")),
    *itertools.product(["protocol"], config_names("protocol")),
]
PINS = Path(__file__).parents[1] / "data" / "names.json"


class Outline(SegDataset):
    """A data set as far as its configuration tells it, without its files."""

    def __init__(self, name):
        self.name, self.config = name, dataset_config(name)[1]
        known = self.config.get("classes") or MMSEG.get(self.config["mmseg"]).METAINFO["classes"]
        self.classes = tuple(entry.strip() for entry in known)
        self.background = self.config.get("background")


@cache
def outline(name):
    """A data set whose vocabulary can be asked for."""
    return ob.load_dataset(name) if dataset_config(name)[1].get("loader") == "demo" else Outline(name)


def entries(name):
    return read_names(FILES[name])[0]


def distractors(name):
    return read_names(FILES[name])[1]


def only(entry):
    """The query of a class that has one."""
    (query,) = entry
    return query


def single(name):
    return [only(entry) for entry in entries(name)]


@pytest.mark.parametrize("name", FILES)
def test_every_file_has_an_entry_for_every_class(name):
    dataset = outline(name.split("/")[0])
    vocabulary = dataset.vocabulary(name.split("/")[1], "none")
    assert vocabulary.classes == dataset.classes
    assert len(entries(name)) == len(dataset.classes)
    assert all(query == " ".join(query.split()) for query in vocabulary.queries), "white space that CLIP does not see"


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_has_canonical_names(name):
    """Where there is no variant: each class by its own name, one query."""
    dataset = outline(name)
    names = None if name not in ("demo", "demo_small", "demo_tune") else "demo"
    assert dataset.vocabulary(names, "none").classes == dataset.classes
    assert len(set(dataset.classes)) == len(dataset.classes)


@pytest.mark.parametrize(("group", "name"), WITH_PER_DATASET)
def test_recipes_are_for_data_sets_that_exist(group, name):
    content = load_config(group, name)
    clips = (content.get("per_clip_dataset") or {}).values()
    for dataset in itertools.chain(content.get("per_dataset") or {}, *clips):
        assert dataset in DATASETS


@pytest.mark.parametrize("protocol", config_names("protocol"))
@pytest.mark.parametrize("segmentor", config_names("segmentor"))
def test_every_name_in_a_recipe_is_a_file_of_its_data_set(segmentor, protocol):
    clips = [None, *(segmentor_config(segmentor)[0].get("per_clip_dataset") or {})]
    for clip, dataset in itertools.product(clips, DATASETS):
        names = compose_recipe(segmentor, clip=clip, dataset=dataset, protocol=protocol).names
        if names is not None:
            path = names_path(outline(dataset).config.get("names_of", dataset), names)
            assert path in FILES.values()


EIGHT = ("voc21", "voc20", "context60", "context59", "coco_object", "coco_stuff", "ade20k", "cityscapes")
SCLIP = dict.fromkeys((*EIGHT, "coco_stuff10k"), "sclip") | {"context59": None}
CLEARCLIP = dict.fromkeys(("context60", "coco_stuff", "ade20k", "cityscapes"), "sclip") | {
    "voc21": "clearclip",
    "voc20": "clearclip",
}
PROXYCLIP = CLEARCLIP | dict.fromkeys(("voc21", "coco_object", "ade847", "context459"), "proxyclip")
CORRCLIP = dict.fromkeys(EIGHT, "corrclip")
CLIPTRASE = dict.fromkeys(EIGHT[:5], "cliptrase") | {"context459": "proxyclip"}
CLIPER = dict.fromkeys((*EIGHT, "coco_object_2014"), "cliper")
FREECP = dict.fromkeys(("voc21", "voc20", "coco_object"), "freecp") | dict.fromkeys(EIGHT[5:], "sclip")
SCLIP_EIGHT = {name: SCLIP[name] for name in EIGHT}
LPOSS = dict.fromkeys(("voc20", "context60", "context59"), "clip_dinoiser") | {"voc21": "lposs", "coco_object": "lposs"}
USED = {
    "clip": SCLIP,
    "sclip": SCLIP,
    "naclip": SCLIP,
    "resclip": SCLIP,
    "scclip": SCLIP,
    "rf_clip": SCLIP,
    "sfp": SCLIP | dict.fromkeys(("voc21", "voc20", "cityscapes"), "sfp"),
    "clearclip": CLEARCLIP,
    "gem": CLEARCLIP,
    "maskclip": CLEARCLIP,
    "maskclip_original": dict.fromkeys(("voc20", "context59", "coco_stuff"), "maskclip"),
    "proxyclip": PROXYCLIP,
    "corrclip": CORRCLIP,
    "corrclip_v2": CORRCLIP | {"cityscapes": "corrclip_v2", "ade847": "proxyclip", "context459": "proxyclip"},
    "cliptrase": CLIPTRASE,
    "cliptrase_336": CLIPTRASE,
    "cliper": CLIPER,
    "clip_diy": {"voc21": "clip_diy"},
    "lposs": LPOSS,
    "lposs_plus": LPOSS,
    "pacl": {},
    **dict.fromkeys(("freecp", "freecp_clearclip"), FREECP),
    "floss": dict.fromkeys(("voc20", "coco_stuff", "ade20k", "cityscapes"), "sclip"),
    **dict.fromkeys(("floss_maskclip", "floss_clip_dinoiser"), dict.fromkeys(("voc20", "context59"), "clip_dinoiser")),
    "pearl": SCLIP_EIGHT,
    "clip_dinoiser": dict.fromkeys(("voc21", "coco_object", "voc20", "context60", "context59"), "clip_dinoiser"),
    "gem_original": {},
    "itaclip": dict.fromkeys(("voc21", "context60", "coco_object", "coco_stuff", "cityscapes"), "itaclip"),
    "tagclip_training_free": dict.fromkeys(("voc21", "coco_object"), "tagclip_training_free"),
    "ov_stitcher": CORRCLIP,
    "segearth_ov": {},
    "gla_clip": dict.fromkeys(EIGHT, "sclip") | {"context59": None},
}


REMOTE = ("isaid", "potsdam", "vaihingen", "loveda", "openearthmap", "udd5", "vdd")


@pytest.mark.parametrize("segmentor", USED)
def test_the_names_that_each_paper_used(segmentor):
    for name in DATASETS:
        if not name.startswith("demo"):
            aerial = "segearth_ov" if name in REMOTE else None  # whatever the method
            assert compose_recipe(segmentor, dataset=name).names == USED[segmentor].get(name, aerial), name


def test_sclip_speaks_of_ships_and_tables_and_has_26_background_words():
    names = entries("voc21/sclip")
    assert (len(names[0]), names[0][0], names[0][-1]) == (26, "sky", "fence")
    assert (names[4], names[11], names[16]) == (["ship"], ["table"], ["pottedplant"])
    assert names[15][:2] == ["person", "person in shirt"]
    assert names[20] == ["television monitor", "tv monitor", "monitor", "television", "screen"]
    assert entries("voc20/sclip") == names[1:]
    assert entries("coco_object/sclip")[0] == names[0]
    assert entries("coco_object/sclip")[1] == [*names[15], "body"]
    assert single("context60/sclip")[0] == "background"


@pytest.mark.parametrize(
    ("name", "some"),
    [
        ("ade20k/sclip", {"chestofdrawers", "trafficlight", "televisionreceiver", "bed"}),
        ("coco_stuff/sclip", {"trafficlight", "hairdrier", "teddybear", "ceiling-other", "wall-brick"}),
        ("cityscapes/sclip", {"trafficlight", "trafficsign"}),
    ],
)
def test_the_family_of_sclip_glues_words(name, some):
    names = single(name)
    assert some <= set(names)
    assert not any(" " in query for query in names)
    assert names == [query.replace(" ", "") for query in outline(name.split("/")[0]).classes]


@pytest.mark.parametrize("dataset", CORRCLIP)
def test_corrclip_says_people(dataset):
    queries = [query for entry in entries(f"{dataset}/corrclip") for query in entry]
    assert "people" in queries
    assert "person" not in queries


def test_a_comma_may_be_part_of_a_query():
    assert entries("cityscapes/corrclip_v2")[11] == ["people, person"]
    assert entries("voc21/cliper")[15] == ["person with clothes, people, human"]
    ade = single("ade847/proxyclip")
    assert (len(ade), ade[1]) == (847, "building, edifice")
    assert ade[11] == "person, individual, someone, somebody, mortal, soul"
    assert ade[300] == "altar, communion table, lords table"  # the data set has an apostrophe


def test_the_background_words_of_coco_object():
    proxyclip, corrclip = entries("coco_object/proxyclip"), entries("coco_object/corrclip")
    assert len(proxyclip[0]) == 17
    assert proxyclip[60] == ["bed"]
    assert corrclip[0] == [word for word in proxyclip[0] if word != "bed"]
    words = entries("coco_object/cliptrase")[0]
    assert (len(words), words[0], words[16], words[-1]) == (107, "textile", "banner", "wood")
    words = entries("voc21/cliptrase")[0]
    assert (len(words), words.count("bed"), "beachhill" in words) == (33, 2, True)


def test_clipers_background_words():
    words = entries("voc21/cliper")[0]
    assert (len(words), words[0], words[-1]) == (25, "ground", "sign")
    assert distractors("voc20/cliper") == words
    assert entries("coco_object/cliper")[0] == [word for word in words if word not in ("keyboard", "sign")]
    assert entries("context60/cliper")[0] == ["background"]
    for name in ("context59", "coco_stuff", "ade20k", "cityscapes"):
        assert distractors(f"{name}/cliper") == ["background"]
    assert sum(bool(distractors(name)) for name in FILES) == 5  # nobody else has any
    assert entries("context60/cliper")[1:] == entries("context59/cliper")
    assert entries("coco_object/cliper")[5] == ["aeroplane"]


def test_names_that_only_one_method_uses():
    assert entries("voc21/clip_diy")[20] == ["tv/monitor"]
    assert single("voc20/maskclip")[19] == "tv monitor"
    assert single("context59/maskclip")[39] == "potted plant"
    assert single("coco_stuff/maskclip")[9] == "traffic light"
    stuff = single("coco_stuff/maskclip")
    assert {"building", "tile ceiling", "wood floor", "brick wall", "wall", "blind window", "window"} <= set(stuff)
    assert not any("-" in query for query in stuff)
    assert single("context60/cliptrase")[50] == "diningtable"
    assert single("context459/proxyclip")[2] == "air conditioner"


def test_prompts_for_remote_sensing_are_words():
    for name in REMOTE:
        assert not any("_" in query for entry in entries(f"{name}/segearth_ov") for query in entry)
    assert entries("potsdam/segearth_ov")[0] == ["road", "parking lot"]
    assert entries("potsdam/segearth_ov")[5] == ["clutter", "background"]
    assert entries("openearthmap/segearth_ov")[8] == ["building", "roof", "house"]
    assert single("isaid/segearth_ov")[13] == "soccer ball field"
    assert single("udd5/segearth_ov")[4] == "background"


def test_no_file_changes_unnoticed():
    """After a change that is meant: python tests/unit/test_names.py"""
    assert digests() == json.loads(PINS.read_text()), "update the pins with python tests/unit/test_names.py if this is meant"


def digests():
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in FILES.items()}


if __name__ == "__main__":
    PINS.write_text(json.dumps(digests(), indent=1) + "\n")
