"""Recipes: the order of the merge, origins, checks, protocols, and the sources in configs/segmentor."""

import itertools
from functools import cache
from typing import get_type_hints

import numpy as np
import pytest
import torch
import yaml

import ovss_bench as ob
from ovss_bench.config.hyperparameters import declared
from ovss_bench.config.recipe import RECIPE_VALUES, compose_recipe, segmentor_config
from ovss_bench.encoders.clip_loading import patch_size_of
from ovss_bench.encoders.clip_spec import ClipSpec
from ovss_bench.errors import OvssError
from ovss_bench.files import CONFIGS, PACKAGE, config_names, load_config
from ovss_bench.segmentors.base import Segmentor
from trained_networks import weights_of

from .test_names import outline

SEGMENTORS = config_names("segmentor")
CLIPS = [None, *config_names("clip")]
DATASETS = config_names("dataset")


def origin(value, **options):
    recipe = compose_recipe("sclip", **options)
    return recipe.values()[value], recipe.origins[value]


def test_later_layers_win_and_leave_their_origin():
    assert origin("stride") == (112, "configs/recipe.yaml recipe")
    assert origin("stride", clip="demo") == (16, "configs/recipe.yaml per_clip.demo")
    assert origin("names", clip="demo", dataset="demo") == ("demo", "configs/recipe.yaml per_dataset.demo")
    assert origin("threshold", dataset="voc21") == (0.1, "configs/segmentor/sclip.yaml per_dataset.voc21")
    assert origin("logit_scale", dataset="voc21") == (65, "configs/segmentor/sclip.yaml per_dataset.voc21")
    assert origin("logit_scale", dataset="voc21", protocol="unified") == (40, "configs/protocol/unified.yaml recipe")
    assert origin("stride", clip="demo", protocol="unified") == (16, "configs/protocol/unified.yaml per_clip.demo")
    given = {"protocol": "unified", "overrides": {"logit_scale": 7}}
    assert origin("logit_scale", dataset="voc21", **given) == (7, "command line")


def test_hyperparameters_have_origins_too():
    recipe = compose_recipe("naclip", overrides={"sigma": 3})
    assert (recipe.hyperparameters["sigma"], recipe.origins["sigma"]) == (3, "command line")
    assert recipe.origins["strategy"] == "default of NACLIP"
    assert compose_recipe("gem").origins["depth"] == "configs/segmentor/gem.yaml recipe"
    assert compose_recipe("gem", clip="demo").origins["depth"] == "configs/segmentor/gem.yaml per_clip.demo"


def test_published_settings_are_reached():
    """The table of sclip.md section 6 and of naclip, clearclip and maskclip for voc21."""
    sclip = compose_recipe("sclip", clip="vit_b16", dataset="voc21")
    assert (sclip.short_side, sclip.window, sclip.stride, sclip.names) == (336, 224, 112, "sclip")
    assert (sclip.logit_scale, sclip.threshold, sclip.area_threshold, sclip.pamr_steps) == (65, 0.1, 0.1, 0)
    naclip = compose_recipe("naclip", clip="vit_b16", dataset="voc21")
    assert (naclip.window, naclip.threshold, naclip.pamr_steps, naclip.pamr_dilations) == ("whole", 0.1, 10, (8, 16))
    clearclip = compose_recipe("clearclip", clip="vit_b16", dataset="voc20")
    assert (clearclip.short_side, clearclip.window, clearclip.stride, clearclip.pad) == (448, 448, 224, "center")
    assert (clearclip.logit_scale, clearclip.threshold, clearclip.names) == (50, 0, "clearclip")


def test_the_table_of_hyperparameters_is_that_of_the_classes():
    """If not: python -m ovss_bench.segmentors."""
    for name, found in declared().items():
        method = ob.SEGMENTORS.get(name)
        assert (found.owner, found.hints) == (method.__name__, get_type_hints(method)), name
        assert list(found.defaults.items()) == list(method.hyperparameters().items()), name
    assert set(declared()) == {n for n, m in ob.SEGMENTORS.module_dict.items() if m.__module__.startswith("ovss_bench.")}


def test_every_file_of_a_method_is_in_the_table_of_modules():
    """A module registers the methods that the table says, and a file of the folder that registers one is in it."""
    for registry in (ob.SEGMENTORS, ob.DATASETS, ob.STEPS):
        found = {
            name: kind.__module__ for name, kind in registry.module_dict.items() if kind.__module__.startswith("ovss_bench.")
        }
        assert found == {name: f"{registry.package}.{module}" for name, module in registry.modules.items()}
        folder = PACKAGE.joinpath(*registry.package.split(".")[1:])
        written = {file for file in folder.rglob("*.py") if f"@{registry.name.upper()}S.register_module" in file.read_text()}
        assert written == {folder.joinpath(*module.split(".")).with_suffix(".py") for module in registry.modules.values()}


EIGHT = ("voc21", "voc20", "context60", "context59", "coco_object", "coco_stuff", "ade20k", "cityscapes")
SMALL, WHOLE_VOC = 8 * (336,), 2 * ("whole",)
GEOMETRY = {  # short sides and windows on the eight benchmarks, then the stride
    "sclip": ((*SMALL[:5], 448, 336, 560), 8 * (224,), 112),
    "clip": ((*SMALL[:7], 560), 8 * (224,), 112),
    "naclip": ((*SMALL[:7], 560), (*WHOLE_VOC, *6 * (224,)), 112),
    "resclip": ((*SMALL[:7], 560), (*WHOLE_VOC, *6 * (224,)), 112),
    "scclip": ((*SMALL[:7], 560), 8 * (224,), 112),
    "rf_clip": ((*SMALL[:7], 560), ("whole", *7 * (224,)), 112),
    "sfp": ((*SMALL[:6], 384, 560), 8 * (224,), 112),
    "clearclip": (8 * (448,), (*7 * (448,), 224), 224),
    "gem": (8 * (448,), (*7 * (448,), 224), 224),
    "maskclip": (8 * (448,), (*7 * (448,), 224), 224),
    "pearl": ((*SMALL[:7], 560), (*WHOLE_VOC, *6 * (224,)), 112),
    "proxyclip": ((*SMALL[:6], 448, 448), (*7 * (336,), 224), 112),
    "corrclip": ((*SMALL[:6], 448, 448), (*7 * (336,), 224), 112),
    "corrclip_v2": ((*SMALL[:6], 448, 784), (*7 * (336,), 224), 112),
    "gla_clip": ((*SMALL[:7], 560), 8 * (224,), 112),
    "cliper": ((*SMALL[:7], 560), 8 * ("whole",), 112),
    "lposs": (8 * (448,), 8 * (224,), 112),
    "lposs_plus": (8 * (448,), 8 * (224,), 112),
    "clip_dinoiser": (8 * (448,), 8 * (448,), 224),
    "floss": ((*SMALL[:7], 560), (224, "whole", *6 * (224,)), 112),
    "floss_maskclip": (8 * (448,), 8 * (448,), 224),
    "floss_clip_dinoiser": (8 * (448,), 8 * (448,), 224),
    "itaclip": ((*SMALL[:5], 448, 336, 560), 8 * (224,), 28),
}
THRESHOLDS = {  # voc21, context60, coco_object; 0 elsewhere
    "sclip": (0.1, 0.1, 0.1),
    "clip": (0.1, 0.05, 0.1),
    "naclip": (0.1, 0.1, 0.1),
    "resclip": (0.1, 0.1, 0.1),
    "scclip": (0.15, 0.15, 0.35),
    "rf_clip": (0.1, 0.1, 0.1),
    "sfp": (0.15, 0.15, 0.35),
    "clearclip": (0.5, 0.15, 0.4),
    "gem": (0.5, 0.15, 0.4),
    "maskclip": (0.5, 0.15, 0.4),
    "pearl": (0.1, 0.1, 0.1),
    "proxyclip": (0.2, 0.15, 0.25),
    "corrclip": (0.2, 0.15, 0.25),
    "corrclip_v2": (0.2, 0.15, 0.25),
    "gla_clip": (0.1, 0.1, 0.1),
    "cliper": (0, 0, 0),  # bkg_thre and score_threshold
    "lposs": (0, 0, 0),  # no threshold in this method
    "lposs_plus": (0, 0, 0),
    "clip_dinoiser": (0, 0, 0),  # apply_found
    **dict.fromkeys(("floss", "floss_maskclip", "floss_clip_dinoiser"), (0, 0, 0)),  # no data set with a background
    "itaclip": (0.1, 0.1, 0.1),
}


@pytest.mark.parametrize("segmentor", GEOMETRY)
def test_published_sizes_windows_and_thresholds_of_the_eight_benchmarks(segmentor):
    recipes = [compose_recipe(segmentor, clip="vit_b16", dataset=name) for name in EIGHT]
    sides, windows, stride = GEOMETRY[segmentor]
    assert tuple(recipe.short_side for recipe in recipes) == sides
    assert tuple(recipe.window for recipe in recipes) == windows
    assert {recipe.stride for recipe in recipes} == {stride}
    thresholds = dict(zip(("voc21", "context60", "coco_object"), THRESHOLDS[segmentor], strict=True))
    assert {name: recipe.threshold for name, recipe in zip(EIGHT, recipes, strict=True) if recipe.threshold} == {
        name: value for name, value in thresholds.items() if value
    }


@pytest.mark.parametrize(
    ("segmentor", "dataset", "short_side", "window"),
    [
        ("sclip", "coco_stuff10k", 336, 224),
        ("proxyclip", "ade847", 448, 336),
        ("proxyclip", "context459", 448, 336),
        ("corrclip_v2", "ade847", 448, 336),
        ("corrclip_v2", "context459", 336, 336),
    ],
)
def test_published_sizes_elsewhere(segmentor, dataset, short_side, window):
    recipe = compose_recipe(segmentor, clip="vit_b16", dataset=dataset)
    assert (recipe.short_side, recipe.window, recipe.stride, recipe.threshold) == (short_side, window, 112, 0)


@pytest.mark.parametrize("clip", ["vit_b16", "vit_l14"])
def test_cliper_has_the_same_values_for_both_forms_of_coco_object(clip):
    one, other = (compose_recipe("cliper", clip=clip, dataset=name) for name in ("coco_object", "coco_object_2014"))
    assert one == other
    assert one.hyperparameters["bkg_thre"] == one.hyperparameters["score_threshold"] == {"vit_b16": 0.3, "vit_l14": 0.5}[clip]
    assert (one.names, one.templates, one.logit_scale) == ("cliper", "imagenet80", 50)


def test_scales_that_differ_by_data_set():
    scales = {"sclip": (65, 50, 50, 40), "scclip": (50, 40, 55, 40), "naclip": 4 * (40,), "clearclip": 4 * (50,)}
    for segmentor, expected in scales.items():
        found = [
            compose_recipe(segmentor, dataset=name).logit_scale for name in ("voc21", "context60", "coco_object", "ade20k")
        ]
        assert tuple(found) == expected, segmentor


@pytest.mark.parametrize(
    ("key", "close"), [("treshold", "threshold"), ("logit_scal", "logit_scale"), ("sigm", "sigma"), ("strid", "stride")]
)
def test_an_unknown_key_lists_close_ones(key, close):
    with pytest.raises(OvssError, match=rf"recipe value or hyperparameter of naclip \(from command line\) '{key}'.*{close}"):
        compose_recipe("naclip", overrides={key: 1})


@pytest.mark.parametrize(
    ("name", "message"),
    [("sclp", r"segmentor 'sclp'.*sclip"), ("clearclipp", "clearclip"), ("", "segmentor")],
)
def test_an_unknown_segmentor_lists_close_ones(name, message, tiny_clip, tiny_vocabulary):
    with pytest.raises(OvssError, match=message):
        ob.build_segmentor(name, clip=tiny_clip, vocabulary=tiny_vocabulary)


def test_an_unknown_protocol_lists_close_ones():
    with pytest.raises(OvssError, match=r"protocol 'unifid'.*unified"):
        compose_recipe("sclip", protocol="unifid")


BAD = {
    "resize": ["keepratio", 3, None],
    "short_side": [0, -1, 336.5, "336", True, None],
    "window": [0, -224, 12.5, "hole", None, True],
    "stride": [0, -1, 1.5, "x", 300],
    "pad": ["centre", None, 0],
    "normalize": ["none", None],
    "position": ["nearest", None],
    "activation": ["relu", 1],
    "precision": ["fp8", 32],
    "layer_norm_eps": [-1e-5, "small", True],
    "names": [3, ["sclip"]],
    "templates": [80],
    "logit_scale": [-1, "40", None, True, float("nan")],
    "threshold": [-0.1, None, "x", float("nan")],
    "area_threshold": [-0.1, None],
    "pamr_steps": [-1, 1.5, None, True],
    "pamr_dilations": [[], [0], [1.5], ["8"], [-8], 8, None, "816"],
    "sigma": ["wide", None, True],
    "strategy": ["kkk", 1, None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values], ids=repr)
def test_bad_values_are_refused_by_name(name, value):
    with pytest.raises(OvssError, match=name):
        compose_recipe("naclip", overrides={name: value})


GOOD = {"window": "whole", "activation": None, "names": None, "threshold": 0, "logit_scale": 40, "pamr_dilations": [1]}


@pytest.mark.parametrize(("name", "value"), GOOD.items(), ids=repr)
def test_the_bounds_are_allowed(name, value):
    result = compose_recipe("naclip", overrides={name: value}).values()[name]
    assert result == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("segmentor", "name", "good", "bad"),
    [
        ("gem", "depth", [2, 7], [1.5, "7", None, True]),
        ("gem", "temperature", [None, 2, 0.5], ["hot", True]),
        ("gem", "min_max", [True, False], [1, "yes", None]),
        ("naclip", "strategy", ["kk", "nonly"], ["nn", True]),
        ("maskclip", "key_smoothing", [0, 0.5], ["much", None]),
    ],
)
def test_hyperparameters_are_checked(segmentor, name, good, bad, tiny_clip, tiny_vocabulary):
    for value in good:
        built = ob.build_segmentor(segmentor, clip=tiny_clip, vocabulary=tiny_vocabulary, **{name: value})
        assert getattr(built, name) == value
    for value in bad:
        with pytest.raises(OvssError, match=name):
            ob.build_segmentor(segmentor, clip=tiny_clip, vocabulary=tiny_vocabulary, **{name: value})


@pytest.mark.parametrize("depth", [1, 14, 99])
def test_a_depth_that_the_encoder_does_not_have_is_refused(depth, tiny_clip, tiny_vocabulary):
    def use():
        segmentor = ob.build_segmentor("gem", clip=tiny_clip, vocabulary=tiny_vocabulary, depth=depth)
        segmentor.patch_logits(ob.WindowBatch(torch.zeros(1, 3, 32, 32)))

    with pytest.raises(OvssError, match="depth"):
        use()


@pytest.mark.parametrize("name", ["threshold", "area_threshold"])
def test_a_threshold_needs_a_background(name, tiny_clip, tiny_vocabulary, voc):
    without = ob.Vocabulary.from_features(tiny_vocabulary.given_features)
    with pytest.raises(OvssError, match=rf"^{name}=0.2 .*no background class"):
        ob.build_segmentor("clip", clip=tiny_clip, vocabulary=without, **{name: 0.2})
    dataset = ob.load_dataset("voc20", voc)
    segmentor = ob.build_segmentor("clip", clip=tiny_clip, vocabulary=dataset.vocabulary("sclip", "none"))
    with pytest.raises(OvssError, match=rf"^{name}=0.2 .*no background class"):
        ob.evaluate(segmentor, dataset, recipe={name: 0.2}, limit=1)


def test_a_threshold_given_to_segment_needs_a_background(tiny_clip, tiny_vocabulary):
    without = ob.Vocabulary.from_features(tiny_vocabulary.given_features)
    segmentor = ob.build_segmentor("clip", clip=tiny_clip, vocabulary=without)
    with pytest.raises(OvssError, match=r"^threshold=0.2 .*no background class"):
        ob.segment(segmentor, np.zeros((32, 32, 3), np.uint8), threshold=0.2)


def clips_of(segmentor, protocol):
    """A CLIP, and those that the recipe or the rules name: all others compose like the first."""
    files = [load_config(".", "recipe"), load_config("protocol", protocol), segmentor_config(segmentor)[0]]
    return {None, "vit_b16"}.union(*(file.get(part) or {} for file in files for part in ("per_clip", "per_clip_dataset")))


@pytest.mark.parametrize("protocol", config_names("protocol"))
@pytest.mark.parametrize("segmentor", SEGMENTORS)
def test_every_recipe_composes(segmentor, protocol, tiny_clip, monkeypatch):
    method, check_windows = segmentor_config(segmentor)[1], Segmentor.check_windows.__func__
    monkeypatch.setattr(Segmentor, "check_windows", lambda *_: None)  # the tiny CLIP has other patches
    for name, clip in itertools.product(DATASETS, clips_of(segmentor, protocol)):
        weights = weights_of(segmentor)
        recipe = compose_recipe(segmentor, clip=clip, dataset=name, protocol=protocol, overrides=weights)
        assert set(recipe.origins) == set(recipe.values())
        assert all(recipe.origins.values())
        vocabulary = vocabulary_of(name, recipe.names, recipe.templates)
        if method.joins_patches and clip and (patch := patch_size_of(ClipSpec.of(clip))):
            check_windows(method, recipe, patch)
        built = method(tiny_clip, vocabulary, recipe)  # shares its weights with the next
        assert built.vocabulary.classes == outline(name).classes


@cache
def vocabulary_of(dataset, names, templates):
    return outline(dataset).vocabulary(names, templates)


@pytest.mark.parametrize("dataset", DATASETS)
def test_unified_gives_every_segmentor_the_same_recipe(dataset):
    for clip in CLIPS:
        recipes = [compose_recipe(name, clip=clip, dataset=dataset, protocol="unified") for name in SEGMENTORS]
        assert len({recipe.trunk_key for recipe in recipes}) == 1
        for value in set(RECIPE_VALUES) - {"pamr_dilations"}:
            assert len({recipe.values()[value] for recipe in recipes}) == 1, (clip, value)
        assert recipes[0].pamr_steps == 0


@pytest.mark.parametrize(
    "names", [["clip", "maskclip", "sclip", "clearclip", "naclip", "gem", "scclip"], ["proxyclip", "corrclip", "corrclip_v2"]]
)
def test_these_share_one_trunk_on_the_demo(names):
    assert set(names) <= set(load_config("tools", "eval")["segmentor"])
    assert len({compose_recipe(name, clip="demo", dataset="demo").trunk_key for name in names}) == 1


@pytest.mark.parametrize("value", RECIPE_VALUES)
def test_the_trunk_key_follows_what_the_trunk_sees(value):
    changed = {"resize": "square", "short_side": 100, "long_side": 999, "window": 150, "stride": 50, "pad": "corner"}
    changed |= {"normalize": "imagenet", "position": "size", "activation": "gelu", "layer_norm_eps": 1e-6}
    changed |= {"pad_multiple": 56, "scored_at": "resized"}
    after = {"names": "x", "templates": "photo", "logit_scale": 3, "threshold": 0.3, "area_threshold": 0.1, "pamr_steps": 2}
    after |= {"pamr_dilations": [3], "min_foreground": 10, "precision": "bf16"}  # CLIP has a precision of its own
    base = compose_recipe("clip", overrides={"pad": "center"})
    other = base.override(**{value: (changed | after)[value]})
    assert (base.trunk_key != other.trunk_key) == (value in changed)


def test_the_trunk_key_has_no_values_without_effect():
    beside = {"short_side": {"resize": "none"}, "long_side": {"resize": "square"}, "stride": {"window": "whole"}}
    beside |= {"pad_multiple": {"pad": "none"}}
    for value, condition in beside.items():
        one, other = (compose_recipe("clip", overrides=condition | {value: number}) for number in (100, 104))
        assert one.trunk_key == other.trunk_key, value


def test_every_registered_method_has_a_configuration():
    for name, method in ob.SEGMENTORS.module_dict.items():
        if method.__module__.startswith("ovss_bench.") and method.uses_clip:
            assert segmentor_config(name)[0].get("paper"), name


@pytest.mark.parametrize("segmentor", SEGMENTORS)
def test_every_value_names_its_source(segmentor):
    text = (CONFIGS / "segmentor" / f"{segmentor}.yaml").read_text()
    lines = text.splitlines()
    commented = {number for number, line in enumerate(lines) if line.partition("#")[2].strip()}

    def check(node, enclosing):
        for key, value in node.value:
            line = key.start_mark.line
            here = enclosing | ({line, value.start_mark.line} & commented)
            if isinstance(value, yaml.MappingNode) and value.value:
                check(value, here)
            elif not (isinstance(value, yaml.MappingNode)):
                assert here, f"{segmentor}.yaml, line {line + 1} names no source: {lines[line].strip()}"

    for key, value in yaml.compose(text).value:
        if key.value in ("recipe", "per_clip", "per_dataset", "per_clip_dataset"):
            check(value, {key.start_mark.line} & commented)


def test_what_center_crop_cuts_off_cannot_be_scored():
    with pytest.raises(ob.OvssError, match=r"scored_at='original'.*center_crop"):
        compose_recipe("sclip", overrides={"resize": "center_crop"})
    assert compose_recipe("sclip", overrides={"resize": "center_crop", "scored_at": "resized"}).resize == "center_crop"
