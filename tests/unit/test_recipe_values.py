"""No recipe value is without effect silently: every value times every method changes something, or is refused."""

import numpy as np
import pytest
import torch

import ovss_bench as ob
from ovss_bench.config.recipe import BESIDE, RECIPE_VALUES, segmentor_config
from ovss_bench.files import config_names
from ovss_bench.inference.engine import predict
from ovss_bench.runs.jobs import refuse_idle
from ovss_bench.segmentors.base import NEUTRAL, WITHOUT_EFFECT
from parity.seeded import query_features, rgb_image
from stand_ins import METHODS, sources_of

IMAGE = rgb_image(5, 44, 150)  # so long that the long side counts
# A setting at which every value counts: windows that need padding, an image with a background, PAMR.
BASE = {"resize": "keep_ratio", "short_side": 48, "long_side": 140, "window": 32, "stride": 16, "pad": "center"}
BASE |= {"pad_multiple": 40, "logit_scale": 40.0, "threshold": 0.2, "area_threshold": 0.0, "pamr_steps": 1}
BASE |= {"pamr_dilations": [1], "scored_at": "original", "normalize": "clip", "position": "offset", "activation": "gelu"}
OTHER = {"resize": "square", "short_side": 20, "long_side": 100, "window": 240, "stride": 32, "pad": "corner"}
OTHER |= {
    "pad_multiple": 48,
    "logit_scale": 60.0,
    "threshold": 0.97,
    "area_threshold": 0.45,
    "pamr_steps": 2,
    "pamr_dilations": [3],
}
OTHER |= {"scored_at": "resized", "normalize": "imagenet", "position": "bilinear", "activation": "quick_gelu"}
OTHER |= {"layer_norm_eps": 1e-3, "precision": "fp16", "templates": "photo"}
FEW = {"clip_diy": {"patch_sizes": [48], "weights": [1.0]}}  # crops, each of which CLIP enlarges to 224 pixels
FEW |= {"tagclip_training_free": {"tag_threshold": 0.75}}  # a probability near it, so that tags differ
FEW |= {"gla_clip": {"rho": 0.9, "shift_growth": 1.0}}  # attention is less uniform, so that labels differ
ELSEWHERE = {"names", "min_foreground"}  # what the vocabulary of a run is read from, and what its labels are held against


@pytest.fixture(scope="module")
def vocabulary():
    return ob.Vocabulary.from_features(query_features(31, 6), [0, 1, 1, 2, 3, 4], background=True)


@pytest.fixture(scope="module")
def unchanged():
    return {}


def observed(name, clip, vocabulary, options):
    """What comes of an image: the labels, what they were decided on, and the sizes of both."""
    given = {key: value for key, value in options.items() if key not in ob.SEGMENTORS.get(name).unused()}
    segmentor = ob.build_segmentor(name, clip=clip, vocabulary=vocabulary, **given, **sources_of(name), **FEW.get(name, {}))
    ((_, (prediction,)),) = predict([segmentor], [("one", IMAGE)], batch=4, keep_scores=True)
    return prediction.label_map, prediction.scores


def test_every_value_is_tried():
    assert set(OTHER) | ELSEWHERE == set(RECIPE_VALUES)
    assert all(OTHER[key] != value for key, value in BASE.items())


@pytest.mark.parametrize("value", OTHER)
@pytest.mark.parametrize("name", METHODS)
def test_a_value_changes_something_or_is_refused(name, value, tiny_clip, vocabulary, unchanged):
    if value in ob.SEGMENTORS.get(name).unused() or value in ("precision", "templates"):
        with pytest.raises(ob.OvssError, match=rf"{value}=.* (clip was|{name}|has no effect)|{name} has {value}"):
            ob.build_segmentor(name, clip=tiny_clip, vocabulary=vocabulary, **{value: OTHER[value]}, **sources_of(name))
        return
    if name not in unchanged:
        unchanged[name] = observed(name, tiny_clip, vocabulary, BASE)
    changed = observed(name, tiny_clip, vocabulary, BASE | {value: OTHER[value]})
    same = all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(unchanged[name], changed, strict=True))
    assert not same


@pytest.mark.parametrize("name", METHODS)
def test_values_for_all_methods_that_are_without_effect_say_so(name, tiny_clip, vocabulary):
    recipe = ob.build_segmentor(name, clip=tiny_clip, vocabulary=vocabulary, **sources_of(name)).recipe
    marked = {key for key, origin in recipe.origins.items() if origin.endswith(WITHOUT_EFFECT)}
    assert marked == ob.SEGMENTORS.get(name).unused()


def test_no_shipped_recipe_sets_what_is_without_effect():
    for name in config_names("segmentor"):
        config, method = segmentor_config(name)
        sections = [config.get("recipe", {}), *config.get("per_clip", {}).values(), *config.get("per_dataset", {}).values()]
        sections += [part for parts in config.get("per_clip_dataset", {}).values() for part in parts.values()]
        assert all(not section.keys() & method.unused() for section in sections), name


def test_rows_that_differ_in_dilations_do_not_share_what_depends_on_them(tiny_clip, vocabulary):
    """ResCLIP's feedback reads the recipe's dilations before any PAMR of the loop."""
    options = {"short_side": 64, "window": 48, "stride": 32, "threshold": 0.0, "pamr_steps": 0, "temp_thd": 0.0}
    rows = [
        ob.build_segmentor("resclip", clip=tiny_clip, vocabulary=vocabulary, pamr_dilations=value, **options)
        for value in ([1], [4, 8])
    ]
    together = dict(predict(rows, [("one", IMAGE)], batch=4, keep_scores=True))["one"]
    for row, prediction in zip(rows, together, strict=True):
        ((_, (alone,)),) = predict([row], [("one", IMAGE)], batch=4, keep_scores=True)
        assert torch.equal(alone.scores, prediction.scores)
    assert not torch.equal(*(prediction.scores for prediction in together))


class OwnScores(ob.SEGMENTORS.get("sclip")):
    uses = ("logit_scale",)

    def scores(self, cosines, scene=None):
        return self.decision.class_scores(cosines)


class OwnDecision(ob.SEGMENTORS.get("sclip")):
    def decide(self, scores, scene):
        return scores.argmax(0)


def test_classes_of_ones_own_scores_have_an_area_threshold(tiny_clip, vocabulary):
    recipe = ob.compose_recipe("sclip", overrides={"short_side": 64, "window": 48, "stride": 32, "area_threshold": 0.45})
    plain, own = (method(tiny_clip, vocabulary, recipe) for method in (ob.SEGMENTORS.get("sclip"), OwnScores))
    expected, found = (ob.segment(segmentor, IMAGE) for segmentor in (plain, own))
    assert torch.equal(expected.scores, found.scores)
    without = plain.with_recipe(recipe.override(area_threshold=0.0))
    assert not torch.equal(ob.segment(without, IMAGE).label_map, found.label_map)


def test_a_decision_of_ones_own_says_which_values_it_reads(tiny_clip, vocabulary, monkeypatch):
    recipe = ob.compose_recipe("sclip", overrides={"threshold": 0.3})
    with pytest.raises(ob.OvssError, match=r"threshold=0\.3 .* has no effect on sclip.*OwnDecision\.uses"):
        OwnDecision(tiny_clip, vocabulary, recipe)
    monkeypatch.setattr(OwnDecision, "uses", ("threshold",))
    assert OwnDecision(tiny_clip, vocabulary, recipe).recipe.threshold == 0.3


def test_neutral_values_are_allowed_everywhere(tiny_clip, vocabulary):
    neutral = NEUTRAL | {"short_side": 48} | FEW["clip_diy"] | sources_of("clip_diy")
    segmentor = ob.build_segmentor("clip_diy", clip=tiny_clip, vocabulary=vocabulary, **neutral)
    assert ob.segment(segmentor, np.zeros((20, 30, 3), np.uint8), window="whole").label_map.shape == (48, 48)


@pytest.mark.parametrize("name", sorted(BESIDE))
def test_a_value_that_counts_only_beside_another_is_refused(name):
    idle = {"short_side": {"resize": "none"}, "long_side": {"resize": "square"}, "stride": {"window": "whole"}}
    beside = {"pad_multiple": {"pad": "none"}, "pamr_dilations": {"pamr_steps": 0}} | idle
    values = {name: OTHER[name]} | beside[name]

    def refuse(recipe):
        refuse_idle(recipe, ob.SEGMENTORS.get(recipe.segmentor))

    with pytest.raises(ob.OvssError, match=f"{name}=.* has no effect with {BESIDE[name][0]}="):
        refuse(ob.compose_recipe("sclip", overrides=values))
    refuse(ob.compose_recipe("sclip", overrides=beside[name]))  # what no one chose
    refuse(ob.compose_recipe("sclip", overrides={key: BASE[key] for key in (name, BESIDE[name][0])}))
    if name == "pamr_dilations":
        refuse(ob.compose_recipe("resclip", overrides=values))


@pytest.mark.parametrize(
    ("name", "value"), [("scclip", "lof_neighbors"), ("resclip", "gaussian_std"), ("corrclip_v2", "spatial_blocks")]
)
def test_values_that_must_be_positive_are_refused_below_0(name, value, tiny_clip, vocabulary):
    with pytest.raises(ob.OvssError, match=rf"{value}=-1(\.0)? of {name}: expected a number above 0"):
        ob.build_segmentor(name, clip=tiny_clip, vocabulary=vocabulary, **{value: -1}, **sources_of(name))
