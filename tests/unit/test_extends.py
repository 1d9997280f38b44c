"""Segmentor files that extend others: `extends: NAME`."""

import pytest

from ovss_bench.config.recipe import compose_recipe, own_recipe, paper_method, parts
from ovss_bench.config.registry import load_plugin
from ovss_bench.config.segmentor_file import DEPTHS, lineage, merged
from ovss_bench.errors import OvssError
from ovss_bench.files import config_names, load_config
from ovss_bench.runs.fairness import fairness

PARENT = """
extends: sclip
paper: One et al., 2026
training: {supervision: masks, training_data: scenes, per_dataset: {voc21: {setting: inductive}}}
recipe: {short_side: 400, precision: fp32}
per_clip: {vit_l14: {stride: 100}}
per_dataset: {voc21: {threshold: 0.4, names: null}, voc20: {window: 200}}
"""
CHILD = """
extends: parent
training: {training_data: photos}
recipe: {precision: null, threshold: 0.7}
per_dataset: {voc21: {window: 210}, voc20: null}
"""
VARIANTS = [name for name in config_names("segmentor") if load_config("segmentor", name).get("extends")]
SECTIONS = ("recipe", "per_clip", "per_dataset", "per_clip_dataset")


@pytest.fixture
def family(tmp_path):
    """Two recipes of a plug-in; the first extends one of this project, the second the first."""
    return with_recipes(tmp_path, parent=PARENT, child=CHILD)


def with_recipes(folder, code="", **recipes):
    for name, text in recipes.items():
        path = folder / "configs" / "segmentor" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    plugin = folder / "own.py"
    plugin.write_text(code)
    load_plugin(plugin)
    return folder / "configs" / "segmentor"


def test_values_merge_one_by_one_and_leave_their_origin(family):
    recipe = compose_recipe("child", clip="vit_l14", dataset="voc21")
    expected = {
        "short_side": (400, f"{family}/parent.yaml recipe"),
        "precision": (None, f"{family}/child.yaml recipe"),
        "stride": (100, f"{family}/parent.yaml per_clip.vit_l14"),
        "threshold": (0.4, f"{family}/parent.yaml per_dataset.voc21"),  # the more special section wins, whosever it is
        "names": (None, f"{family}/parent.yaml per_dataset.voc21"),
        "window": (210, f"{family}/child.yaml per_dataset.voc21"),
        "logit_scale": (65, "configs/segmentor/sclip.yaml per_dataset.voc21"),
    }
    assert {name: (recipe.values()[name], recipe.origins[name]) for name in expected} == expected
    assert compose_recipe("child").threshold == 0.7


def test_null_removes_a_section(family):
    assert compose_recipe("parent", dataset="voc20").window == 200
    recipe = compose_recipe("child", dataset="voc20")
    assert (recipe.window, recipe.origins["window"]) == (224, "configs/recipe.yaml recipe")
    assert recipe.names is None  # sclip's section of voc20 is removed, too
    assert compose_recipe("sclip", dataset="voc20").names == "sclip"


def test_paper_training_and_file_come_from_the_family(family):
    assert parts("child")[0]["paper"] == "One et al., 2026"
    assert own_recipe("child") == f"{family}/child.yaml, {family}/parent.yaml, configs/segmentor/sclip.yaml"
    result = {"segmentor": "child", "clip": "none", "dataset": "voc21", "sources": {}, "recipe": {}}
    facts = fairness(result)
    assert (facts["supervision"], facts["training_data"], facts["setting"]) == ("masks", "photos", "inductive")
    assert facts["stated_by"] == [f"{family}/child.yaml training"]


METHOD = """
import ovss_bench as ob

@ob.SEGMENTORS.register_module(name="{name}")
class Own(ob.SEGMENTORS.get("naclip")):
    pass
"""


def test_a_variant_runs_the_method_of_the_file_that_it_extends(family):
    assert parts("child")[1:] == ("sclip", [])
    assert parts("child+pamr")[1:] == ("sclip", ["pamr"])
    assert paper_method("freecp_clearclip") == paper_method("freecp") == "freecp"
    assert compose_recipe("child+pamr", dataset="voc21").window == 210


def test_a_registered_method_keeps_its_class(tmp_path):
    with_recipes(tmp_path, METHOD.format(name="own"), own="extends: sclip\nrecipe: {sigma: 2}\n", like="extends: own\n")
    assert parts("own")[1] == parts("like")[1] == "own"
    assert compose_recipe("like").hyperparameters["sigma"] == 2


def test_a_method_and_its_steps_may_be_replaced(tmp_path):
    with_recipes(tmp_path, other="extends: freecp_clearclip\nmethod: sclip+freecp\n", like="extends: other\n")
    assert parts("like")[1:] == ("sclip", ["freecp"])


def test_files_of_values_are_found_beside_each_file_of_the_family(tmp_path):
    code = METHOD.format(name="own").replace("pass", "table: ob.File | None = None")
    folder = with_recipes(tmp_path, code, own="recipe: {table: numbers.txt}\n", like="extends: own\n")
    (folder / "numbers.txt").write_text("1")
    assert compose_recipe("like").hyperparameters["table"] == str(folder / "numbers.txt")


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ({"a": "extends: a\n"}, r"a\.yaml extends itself: a -> a\. Remove"),
        ({"a": "extends: b\n", "b": "extends: c\n", "c": "extends: b\n"}, r"b\.yaml extends itself: b -> c -> b\. Remove"),
        ({"a": "extends: slcip\n"}, r"segmentor that .*a\.yaml extends 'slcip'.*sclip"),
        ({"a": "extends: sclip+pamr\n"}, r"segmentor that .*a\.yaml extends 'sclip\+pamr'"),
        ({"a": "extends: [sclip, gem]\n"}, r"a\.yaml: extends: expected a text"),
        ({"a": "extends: null\n"}, r"a\.yaml: extends: expected a text"),
        ({"a": "extends: sclip\nrecipe: {depth: 3}\n"}, r"of a \(from .*a\.yaml recipe\) 'depth'"),
        ({"a": "extends: b\n", "b": "method: sclip\nrecipe: {depth: 3}\n"}, r"of a \(from .*b\.yaml recipe\) 'depth'"),
    ],
)
def test_what_cannot_be_extended_is_a_clear_error(recipes, message, tmp_path):
    with_recipes(tmp_path, **recipes)
    with pytest.raises(OvssError, match=message) as error:
        compose_recipe("a")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", config_names("segmentor"))
def test_every_file_of_this_project_has_known_keys(name):
    for file in lineage(name):
        assert set(file.content) <= set(DEPTHS)
    assert "extends" not in load_config("segmentor", name) or len(lineage(name)) > 1


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_repeats_nothing(name):
    """Every value differs from the inherited one, and null removes something."""
    *parents, own = lineage(name)
    inherited = merged(parents)

    def repeated(content, base):
        for key, value in content.items():
            if isinstance(value, dict):
                yield from (f"{key}.{inner}" for inner in repeated(value, base.get(key) or {}))
            elif key in base and base[key] == value:
                yield key

    own_values = {key: own.content.get(key) or {} for key in (*SECTIONS, "training")}
    assert list(repeated(own_values | {"paper": own.content.get("paper", "")}, inherited)) == []
    for key in (*SECTIONS[1:], "training"):
        removed = {name for name, inner in own_values[key].items() if inner is None}
        assert removed <= (inherited.get(key) or {}).keys()
