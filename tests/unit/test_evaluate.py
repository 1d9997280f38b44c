"""A result states what ran, whatever a Python object carries that the recipe does not say."""

import json

import pytest
import torch

import ovss_bench as ob
from end_to_end.tools import evaluate_here, results
from ovss_bench.config.recipe import compose_recipe, segmentor_config
from ovss_bench.files import config_names
from ovss_bench.runs.jobs import job_of
from stand_ins import vfm

FAST = {"resize": "none", "window": 48, "stride": 48}
ARGUMENTS = ["limit=1", *(f"recipe.{name}={value}" for name, value in FAST.items())]


@pytest.fixture(scope="module")
def data():
    return ob.load_dataset("demo")


def built(data, name="sclip", clip=None, vocabulary=None, **options):
    vocabulary = vocabulary or data.vocabulary("demo", "notebook7")
    return ob.build_segmentor(name, clip=clip or ob.load_clip("demo"), vocabulary=vocabulary, **FAST, **options)


def ran(segmentor, data, **options):
    """The result, and what it says was overridden beside FAST; values and overrides agree."""
    result = ob.evaluate(segmentor, data, limit=1, **options).data
    overridden = {name: value for name, value in result["overridden"].items() if name not in FAST}
    for name, value in result["overridden"].items():
        assert result["recipe"][name] == {"value": value, "origin": "argument"}
    return result, overridden


def test_what_runs_as_the_recipe_says_is_not_overridden(data):
    vocabularies = {}
    for name in config_names("segmentor"):
        own = compose_recipe(name, clip="demo", dataset="demo")
        if own.hyperparameters.get("checkpoint", "not needed") is None:
            continue  # a trained method without weights for the demo
        if not segmentor_config(name)[1].uses_clip:
            continue  # no CLIP, and SAM 3 has no weights for the demo
        key = own.names, own.templates
        vocabulary = vocabularies.setdefault(key, data.vocabulary(*key))
        segmentor = ob.build_segmentor(name, clip=ob.load_clip("demo"), vocabulary=vocabulary)
        job = job_of(segmentor, data, "paper", {}, kept=True)
        assert job.segmentor.recipe.overrides == {}, name
        assert job.segmentor.recipe == own, name


CARRIED = {  # what was given -> what the result says
    "names": (lambda data: {"vocabulary": data.vocabulary(None, "notebook7")}, {"names": None}),
    "templates": (lambda data: {"vocabulary": data.vocabulary("demo", "photo")}, {"templates": "photo"}),
    "own names": (
        lambda data: {"vocabulary": ob.Vocabulary.from_names([f"cloth {c}" for c in range(37)], background=True)},
        {"names": "given: ", "templates": "imagenet80"},
    ),
    "no background": (
        lambda data: {"vocabulary": ob.Vocabulary.from_names(data.classes, templates="notebook7"), "threshold": 0},
        {"names": "given: ", "threshold": 0},
    ),
    "features": (
        lambda data: {"vocabulary": ob.Vocabulary.from_features(torch.eye(37, 128) + 0.1, background=True)},
        {"names": "given: ", "templates": "none"},
    ),
    "precision": (lambda data: {"clip": ob.load_clip("demo", precision="bf16")}, {"precision": "bf16"}),
    "activation": (lambda data: {"clip": ob.load_clip("demo", activation="quick_gelu")}, {"activation": "quick_gelu"}),
    "epsilon": (lambda data: {"clip": ob.load_clip("demo", layer_norm_eps=1e-6)}, {"layer_norm_eps": 1e-6}),
    "keyword": (lambda data: {"logit_scale": 30}, {"logit_scale": 30}),
}


@pytest.mark.parametrize("what", CARRIED)
def test_a_result_states_what_an_object_carries(what, data):
    options, expected = CARRIED[what]
    _, overridden = ran(built(data, **options(data)), data)
    assert overridden.keys() == expected.keys()
    for name, value in expected.items():
        assert overridden[name] == value or (value == "given: " and overridden[name].startswith(value)), name


def test_what_is_set_on_the_object_later_runs_and_is_stated(data):
    segmentor = built(data, "naclip")
    plain, _ = ran(segmentor, data)
    segmentor.sigma = 1.0
    changed, overridden = ran(segmentor, data)
    assert overridden == {"sigma": 1.0}
    assert changed["fingerprint"] != plain["fingerprint"]
    proxy = built(data, "proxyclip")
    proxy.vfm = vfm
    job = job_of(proxy, data, "paper", {}, kept=False)
    assert job.segmentor.vfm is vfm
    assert job.segmentor.recipe.overrides == FAST | {"vfm": "given: stand_ins.vfm"}
    assert job_of(proxy, data, "paper", {"vfm": "demo"}, kept=True).sources["vfm"]["name"] == "demo"
    with pytest.raises(ob.OvssError, match="vfm is an object without a `digest`"):
        job_of(built(data, "proxyclip"), data, "paper", {"vfm": vfm}, kept=True)


def test_a_recipe_without_an_activation_gets_clips_own(data):
    """Also where the segmentor was built under another one: MaskCLIP's original protocol has gelu, the unified one nothing."""
    segmentor = built(data, activation="quick_gelu")
    assert segmentor.clip.activation == "quick_gelu"
    own = segmentor.with_recipe(compose_recipe("sclip", clip="demo"))
    assert (own.clip.activation, own.clip.layer_norm_eps) == (ob.load_clip("demo").activation, 1e-5)


def test_by_name_it_does_what_the_tool_does(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate_here("segmentor=naclip", *ARGUMENTS, "recipe.sigma=3")
    (tool,) = results(tmp_path / "results").values()
    path = ob.evaluate("naclip", ob.load_clip("demo"), data, recipe=FAST | {"sigma": 3}, limit=1, output="own").path
    own = json.loads(path.read_text())
    same = ("segmentor", "clip", "dataset", "overridden", "metrics", "per_class", "fingerprint", "names_digest", "precision")
    assert {name: own[name] for name in same} == {name: tool[name] for name in same}
    assert own["provenance"]["recipe"] == tool["provenance"]["recipe"] == "configs/segmentor/naclip.yaml"
    values = [{name: each["value"] for name, each in result["recipe"].items()} for result in (own, tool)]
    assert values[0] == values[1]


def test_what_a_result_could_not_state_is_refused(data):
    with pytest.raises(ob.OvssError, match=r"templates=photo was given, but .* has templates=notebook7"):
        ob.evaluate(built(data), data, recipe={"templates": "photo"}, limit=1)
    with pytest.raises(ob.OvssError, match=r"names=None was given|names=demo was given"):
        ob.evaluate(built(data, names="demo", vocabulary=data.vocabulary(None, "notebook7")), data, limit=1)
    method = ob.SEGMENTORS.get("sclip")
    plain = built(data)
    own = type("Mine", (method,), {})(plain.clip, plain.vocabulary, plain.recipe)
    with pytest.raises(ob.OvssError, match=r"the segmentor is a Mine, but 'sclip' is SCLIP .* under another name"):
        ob.evaluate(own, data, limit=1)
    plain.mix = lambda q, k, v, grid: v
    with pytest.raises(ob.OvssError, match="has a mix of its own, but 'sclip'"):
        ob.evaluate(plain, data, limit=1)
    for arguments in (("sclip", data), ("sclip", plain.clip), (plain, plain.clip, data), (plain,)):
        with pytest.raises(ob.OvssError, match=r"expected evaluate\(NAME, clip, dataset\) or evaluate\(segmentor, dataset\)"):
            ob.evaluate(*arguments)
