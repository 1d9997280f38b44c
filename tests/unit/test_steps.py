"""Steps that compose with other methods: names, order, values, refusals, and the numbers of the methods that they are from."""

import itertools
import re

import numpy as np
import pytest
import torch

import ovss_bench as ob
from end_to_end.tools import evaluate_here, results, run
from ovss_bench.bench.stand_ins import given_experts
from ovss_bench.config.recipe import segmentor_config
from ovss_bench.config.steps import with_steps
from ovss_bench.datasets.base import load_dataset
from ovss_bench.files import CONFIGS, config_names, load_config
from ovss_bench.inference.engine import predict
from ovss_bench.ops.vote import majority_vote
from ovss_bench.runs.code import known_code, row_code
from ovss_bench.runs.jobs import fingerprint, make_job
from ovss_bench.segmentors.steps.floss import FLOSS
from parity.seeded import query_features, rgb_image
from stand_ins import METHODS, ON_CLIP, SOURCES, STEPS, needs_of, sources_of

SMALL = {"short_side": 80, "window": 64, "stride": 32, "pad_multiple": None, "scored_at": "original", "pamr_steps": 0}
IMAGES = {f"image{n}": rgb_image(70 + n, *size) for n, size in enumerate([(120, 150), (50, 31), (64, 64)])}
STAGES = (ob.TextStep, ob.WindowStep, ob.PixelStep, ob.ScoreStep, ob.LabelStep)  # in the order in which they run
BASES = ("sclip", "gem")  # cheap ones


@pytest.fixture(autouse=True)
def without_texts(monkeypatch):
    monkeypatch.setattr(FLOSS, "classifiers", given_experts)


def build(name, clip, vocabulary, **values):
    base, *steps = name.split("+")
    used = {key: value for key, value in SMALL.items() if key not in ob.SEGMENTORS.get(base).unused()}
    needed = {key: value for step in steps for key, value in needs_of(step).items()}
    return ob.build_segmentor(name, clip=clip, vocabulary=vocabulary, **(used | sources_of(base) | needed | values))


def predictions(segmentor, **options):
    return {key: found for key, (found,) in predict([segmentor], IMAGES.items(), keep_scores=True, **options)}


def equal(one, other):
    return all(
        torch.equal(one[key].label_map, other[key].label_map) and torch.equal(one[key].scores, other[key].scores) for key in one
    )


def test_options_append_to_the_name_in_order():
    assert with_steps("sclip", {"refine": ["pamr", "region_vote"], "sigma": 3}) == ("sclip+pamr+region_vote", {"sigma": 3})
    assert with_steps("sclip", {"refine": None, "text": []}) == ("sclip", {})
    assert ob.compose_recipe("sclip", overrides={"refine": "pamr"}) == ob.compose_recipe("sclip+pamr")
    assert ob.compose_recipe("sclip", overrides={"refine": "pamr"}).segmentor == "sclip+pamr"


def test_values_of_a_step_have_origins_and_only_its_users_have_them():
    recipe = ob.compose_recipe("sclip", clip="demo", overrides={"refine": ["pamr", "region_vote"], "pamr_iterations": 3})
    assert recipe.hyperparameters == {"residual": True, "pamr_iterations": 3, "regions": "demo"}
    assert recipe.origins["regions"] == "configs/step/region_vote.yaml per_clip.demo"
    assert recipe.origins["pamr_iterations"] == "command line"
    assert recipe.overrides == {"pamr_iterations": 3}
    assert ob.compose_recipe("sclip").hyperparameters == {"residual": True}
    with pytest.raises(ob.OvssError, match="unknown recipe value or hyperparameter of sclip"):
        ob.compose_recipe("sclip", overrides={"pamr_iterations": 3})


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_this_project_has_published_values_and_names_of_its_own(step):
    """Sources are shared with methods on purpose."""
    assert step in config_names("step")
    config, own = load_config("step", step), set(ob.STEPS.get(step).hyperparameters())
    assert config["paper"]
    stated = set(config["recipe"]).union(*config.get("per_dataset", {}).values(), *config.get("per_clip", {}).values())
    assert stated <= own
    text = (CONFIGS / "step" / f"{step}.yaml").read_text()
    assert all("#" in line for line in text.splitlines() if line.startswith("  ") and not line.endswith(":"))
    for name in METHODS:
        if not issubclass(ob.SEGMENTORS.get(name), ob.STEPS.get(step)) and not ob.STEPS.get(step).refusal(
            ob.SEGMENTORS.get(name)
        ):
            assert not own & set(ob.SEGMENTORS.get(name).hyperparameters()) - SOURCES.keys(), name


def test_pamr_as_a_step_is_that_of_the_recipe(tiny_clip, tiny_vocabulary):
    plain, step, recipe = (
        build(name, tiny_clip, tiny_vocabulary, pamr_dilations=(1, 3), **values)
        for name, values in (("sclip", {"pamr_steps": 1}), ("sclip+pamr", {}), ("sclip", {"pamr_steps": 10}))
    )
    found = predictions(step)
    assert equal(found, predictions(recipe))
    assert not equal(found, predictions(plain))


@pytest.mark.parametrize("name", ["corrclip", "corrclip_v2"])
def test_the_region_vote_is_corrclip_s(name, tiny_clip, tiny_vocabulary):
    voted, plain = (build(name, tiny_clip, tiny_vocabulary, correction=correction) for correction in (True, False))
    step = build(f"{name}+region_vote", tiny_clip, tiny_vocabulary, correction=False)
    found = predictions(step)
    assert equal(found, predictions(voted))
    assert not equal(found, predictions(plain))


def test_the_laplacian_step_is_pearl_s(tiny_clip, tiny_vocabulary):
    """Which is a refinement of CLIP without a residual connection, if nothing is aligned."""
    values = {"grid": 20, "ke_img": 3.0}
    pearl = build("pearl", tiny_clip, tiny_vocabulary, strategy="vanilla", **values)
    step, plain = (
        build(name, tiny_clip, tiny_vocabulary, residual=False, **v) for name, v in (("clip+tlp", values), ("clip", {}))
    )
    found = predictions(step)
    assert equal(found, predictions(pearl))
    assert not equal(found, predictions(plain))


def test_image_engineering_is_itaclip_s(tiny_clip, tiny_vocabulary):
    weight = {"img_eng_coefficient": 0.6}
    whole, plain = (build("itaclip", tiny_clip, tiny_vocabulary, img_engineering=on, **weight) for on in (True, False))
    step = build("itaclip+image_engineering", tiny_clip, tiny_vocabulary, img_engineering=False, engineering_weight=0.6)
    found = predictions(step)
    assert equal(found, predictions(whole))
    assert not equal(found, predictions(plain))


def test_the_step_over_pixels_is_that_of_lposs(tiny_clip):
    """Where an image keeps its size, so that nothing is resized in between, and a class has one query: then LPOSS takes no
    maximum over synonyms."""
    vocabulary = ob.Vocabulary.from_features(query_features(31, 4))
    values = {"resize": "none", "scored_at": "resized"}
    plus, plain = (build("lposs", tiny_clip, vocabulary, pixel_refine=on, r=5, **values) for on in (True, False))
    found = predictions(build("lposs+lposs_pixels", tiny_clip, vocabulary, pixel_r=5, **values))
    expected, before = predictions(plus), predictions(plain)
    for key in IMAGES:
        torch.testing.assert_close(found[key].scores, expected[key].scores, atol=1e-4, rtol=1e-4)
        assert (found[key].label_map == expected[key].label_map).float().mean() > 0.999
        assert (found[key].scores - before[key].scores).abs().max() > 0.1


@pytest.mark.parametrize("min_max", [True, False])
def test_a_step_follows_the_refinement_of_the_method_if_that_is_on(min_max, tiny_clip, tiny_vocabulary):
    gem, step = (build(name, tiny_clip, tiny_vocabulary, min_max=min_max) for name in ("gem", "gem+pamr"))
    cosines, context = torch.rand(7, 20, 30), ob.make_context(rgb_image(1, 20, 30), step)
    before = ob.PixelStep.refine.__get__(step)(cosines, context)  # what the step gets from `super()`
    assert torch.equal(before, gem.refine(cosines, context) if min_max else cosines)


@pytest.mark.parametrize(("first", "second"), itertools.permutations(STEPS, 2))
def test_a_name_states_the_order_in_which_steps_run(first, second):
    """Of two steps of one stage either order is allowed, and both run in that order."""
    places = {
        step: next(n for n, kind in enumerate(STAGES) if issubclass(ob.STEPS.get(step), kind)) for step in (first, second)
    }
    name = f"gem+{first}+{second}"
    if places[first] <= places[second]:
        assert ob.compose_recipe(name).segmentor == name
    else:
        with pytest.raises(ob.OvssError, match=rf"^{re.escape(name)}: {second} always acts before {first}\."):
            ob.compose_recipe(name)


@pytest.mark.parametrize("step", [step for step in STEPS if issubclass(ob.STEPS.get(step), ob.LabelStep)])
@pytest.mark.parametrize("name", sorted({*METHODS} - {*ON_CLIP}))
def test_a_step_on_labels_fits_methods_without_clip(name, step, tiny_clip):
    vocabulary = ob.Vocabulary.from_names(["background", "dog", "cat"], background=True)
    step_only, plain = (
        ob.build_segmentor(f"{name}{more}", vocabulary=vocabulary, **(sources_of(name) | (needs_of(step) if more else {})))
        for more in (f"+{step}", "")
    )
    found, before = predictions(step_only), predictions(plain)
    for key in IMAGES:
        regions = torch.from_numpy(SOURCES["regions"](IMAGES[key]))
        voted = majority_vote(before[key].label_map, regions, skip=regions.min())
        assert torch.equal(found[key].label_map, voted)


def register(kind, hook, name, change):
    """A step that changes what its hook gets, after the steps before it."""

    def call(self, value, context):
        return change(getattr(super(step, self), hook)(value, context))

    step = type(name, (kind,), {hook: call})
    ob.STEPS.register_module(name=name, module=step)


@pytest.mark.parametrize(
    ("kind", "hook"), [(ob.PixelStep, "refine"), (ob.ScoreStep, "refine_scores"), (ob.LabelStep, "correct")]
)
def test_steps_of_one_stage_run_in_the_order_of_the_list(kind, hook, tiny_clip, tiny_vocabulary):
    register(kind, hook, "plus", lambda value: value + 1)
    register(kind, hook, "times", lambda value: value * 2)
    for names, expected in ((["plus", "times"], 4), (["times", "plus"], 3)):
        segmentor = build("sclip", tiny_clip, tiny_vocabulary, refine=names)
        assert segmentor.recipe.segmentor == f"sclip+{'+'.join(names)}"
        result = getattr(segmentor, hook)(torch.ones(4, 20, 30), None)
        assert (result == expected).all()


def test_planes_are_refined_before_the_decision(tiny_clip, tiny_vocabulary):
    register(ob.ScoreStep, "refine_scores", "roll", lambda planes: planes.roll(1, 0))
    plain, rolled = (build(name, tiny_clip, tiny_vocabulary) for name in ("sclip", "sclip+roll"))
    before, after = predictions(plain), predictions(rolled)
    for key in IMAGES:
        assert torch.equal(after[key].label_map, (before[key].label_map + 1) % 4)
        assert torch.equal(after[key].scores, before[key].scores.roll(1, 0))
    ((_, (without,)),) = predict([rolled], [("image0", IMAGES["image0"])])
    assert torch.equal(without.label_map, after["image0"].label_map)


@pytest.mark.parametrize("together", [True, False])
def test_steps_on_windows_also_fit_methods_that_see_all_windows(together, tiny_clip, tiny_vocabulary):
    class Base(ob.SEGMENTORS.get("sclip")):
        image_logits = ob.SEGMENTORS.get("sclip").patch_logits if together else None

    ob.SEGMENTORS.register_module(name="base", module=Base)
    for name, (factor, more) in {"halved": (0.5, 0), "lifted": (1, 1)}.items():

        def patch_logits(self, batch, factor=factor, more=more, name=name):
            return factor * super(ob.STEPS.get(name), self).patch_logits(batch) + more * self.vocabulary.background

        ob.STEPS.register_module(name=name, module=type(name, (ob.WindowStep,), {"patch_logits": patch_logits}))
    step, plain = (
        build(name, tiny_clip, tiny_vocabulary, logit_scale=scale) for name, scale in (("base+halved+lifted", 40), ("base", 20))
    )
    assert step.granularity == ("image windows" if together else "window")
    one, other = predictions(step, batch=3), predictions(plain, batch=3)
    for key in IMAGES:
        torch.testing.assert_close(one[key].scores, other[key].scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("sclip", {"refine": ["pamr", "pamr"]}, r"^sclip\+pamr\+pamr: pamr is already part of it\. Leave pamr out"),
        ("clip_diy", {"refine": "pamr"}, r"^clip_diy\+pamr: the method scores whole images.* windows\. Leave pamr out"),
        ("labels", {"refine": "region_vote", "path": "."}, r"^labels\+region_vote: the label maps come from outside"),
        ("sclip", {"refine": "pamr", "pamr_steps": 2}, r"^sclip\+pamr: .*already \(pamr_steps=2 from argument\)\. Leave"),
        ("naclip", {"refine": "pamr", "pamr_steps": 10}, r"already \(pamr_steps=10"),
        (
            "lavg",
            {"refine": "region_vote"},
            r"^lavg\+region_vote: the regions .* would replace the method's own masks\.",
        ),
        ("corrclip", {"refine": "region_vote"}, r"^corrclip\+region_vote: the base method votes in regions already\. Leave"),
        ("sclip", {"refine": "region_vote", "regions": None}, r"^sclip\+region_vote needs regions: give a name or a file"),
        ("sclip", {"refine": "region_vote", "regions": "nope"}, r"^unknown regions .* 'nope'"),
        ("cliptrase", {"refine": "freecp"}, r"^cliptrase\+freecp: freecp is for GEM, MaskCLIP and methods that only change"),
        ("pearl", {"refine": "tlp"}, r"^pearl\+tlp: tlp is already part of it\. Leave tlp out"),
        (
            "lposs",
            {"refine": "lposs_pixels", "pixel_refine": True},
            r"propagates over pixels already\. .*pixel_refine=false\.$",
        ),
        ("itaclip", {"refine": "image_engineering"}, r"^itaclip\+image_eng.* windows already\. .*img_engineering=false\.$"),
        ("gla_clip", {"refine": "image_engineering"}, r"^gla_clip\+image_eng.* sees all windows of an image together"),
        ("corrclip", {"refine": "image_engineering"}, r"^corrclip\+image_eng.*: the method has regions of the image"),
        ("clip_diy", {"refine": "image_engineering"}, r"^clip_diy\+image_eng.*: the method scores whole images"),
        ("sclip", {"refine": "tlp", "grid": 0}, r"^grid=0 of sclip\+tlp: expected a number above 0"),
        ("sclip", {"refine": "lposs_pixels", "pixel_tau": 0.0}, r"^pixel_tau=0.0 of sclip\+lposs_pixels: expected a number"),
        ("sclip", {"refine": "freecp", "crop_side": 0}, r"^crop_side=0 of sclip\+freecp"),
        ("sclip", {"refine": "pmar"}, r"^unknown step 'pmar'\. .*pamr"),
        ("sclip", {"refine": 3}, r"^refine=3: expected the name of a step, or a list of names\.$"),
        ("sclip", {"text": "pamr"}, r"^text=pamr: give this step as refine=pamr\.$"),
        ("sclip+region_vote", {"refine": "pamr"}, r"^sclip\+region_vote\+pamr: pamr always acts before region_vote\. Write it"),
        ("sclip+", {}, r"^unknown step ''"),
        ("slip+pamr", {}, r"^unknown segmentor 'slip'\. Did you mean sclip"),
        ("sclip", {"refine": "pamr", "pamr_iterations": 0}, r"^pamr_iterations=0 of sclip\+pamr: expected a number above 0"),
    ],
)
def test_what_makes_no_sense_is_one_line(name, values, words, tiny_clip, tiny_vocabulary):
    with pytest.raises(ob.OvssError, match=words) as caught:
        ob.segment(build(name, tiny_clip, tiny_vocabulary, **values), IMAGES["image2"])
    assert "\n" not in str(caught.value)


def job(name, **overrides):
    return make_job(name, ob.load_clip("demo"), load_dataset("demo_small"), overrides=overrides)


def test_fingerprints_tell_steps_and_their_values_apart():
    def of(name, **values):
        return fingerprint(one := job(name, **values), one.dataset.samples)

    used = [of("sclip"), of("sclip", refine="pamr"), of("sclip", refine="pamr", pamr_iterations=3), of("sclip+region_vote")]
    used += [of("sclip", refine=["pamr", "tlp"]), of("sclip", refine=["tlp", "pamr"])]
    assert len(set(used)) == len(used)
    assert of("sclip", refine="pamr") == of("sclip+pamr")


@pytest.mark.parametrize("name", ["sclip+pamr", "gem+pamr+region_vote", "maskclip_original+pamr"])
def test_the_code_of_a_step_belongs_to_its_row(name):
    dataset = load_dataset("demo")
    live = row_code((segmentor_config(name)[1], type(dataset)), [])
    assert known_code(name, "demo", []) == live
    assert {f"segmentors/steps/{step}.py" for step in name.split("+")[1:]} <= live[0].keys()
    assert known_code("sclip+other", "demo", []) is None


def test_a_result_names_its_steps(tmp_path):
    clip, data = ob.load_clip("demo"), load_dataset("demo_small")
    values = {"refine": ["pamr", "region_vote"], "pamr_iterations": 2}
    result = ob.evaluate("sclip", clip, data, recipe=values, limit=2, output=tmp_path)
    assert result.path.name.startswith("sclip+pamr+region_vote-")
    assert result.data["segmentor"] == "sclip+pamr+region_vote"
    assert result.data["recipe"]["pamr_iterations"] == {"value": 2, "origin": "argument"}
    assert result.data["provenance"]["recipe"].endswith("sclip.yaml, configs/step/pamr.yaml, configs/step/region_vote.yaml")
    assert ob.load_results(tmp_path, partial=True)["segmentor"].tolist() == ["sclip+pamr+region_vote"]
    built = ob.build_segmentor("sclip", clip=clip, vocabulary=data.vocabulary("demo", "notebook7"))
    again = ob.evaluate(built, data, recipe=values, limit=2)
    assert again.data["metrics"] == result.data["metrics"]
    assert again.data["segmentor"] == result.data["segmentor"]


@pytest.mark.parametrize(
    ("base", "step"),
    [*itertools.product(BASES, STEPS), ("scclip", "region_vote"), ("proxyclip", "pamr")],
)
def test_labels_do_not_depend_on_the_batch_or_the_order(base, step, tiny_clip, tiny_vocabulary):
    one, other = (build(f"{base}+{step}", tiny_clip, tiny_vocabulary) for _ in range(2))
    expected = {key: found.label_map for key, found in predictions(one, batch=3).items()}
    for images, batch in ((IMAGES.items(), 1), (reversed(IMAGES.items()), 7)):
        for key, (found,) in predict([other], images, batch=batch):
            assert (found.label_map == expected[key]).float().mean() > 0.999


@pytest.mark.parametrize("name", [name for name in METHODS if not ob.SEGMENTORS.get(name).image_scores])
def test_a_method_does_not_mind_blocks_that_a_step_needs(name, tiny_clip, tiny_vocabulary):
    class Wider(ob.WindowStep):
        needs = needs_qkv = frozenset(range(tiny_clip.depth))

    ob.STEPS.register_module(name="wider", module=Wider)
    images = [("image", rgb_image(71, 50, 31))]
    values = {"proxyclip": {"empty_rows": "diagonal"}, "cliptrase": {"resize": "keep_ratio"}}.get(name, {})
    found, expected = (
        predict([build(each, tiny_clip, tiny_vocabulary, **values)], images, keep_scores=True)
        for each in (f"{name}+wider", name)
    )
    for (_, (one,)), (_, (other,)) in zip(found, expected, strict=True):
        assert torch.equal(one.label_map, other.label_map)
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=1e-5)


DEGENERATE = {"flat": np.full((40, 60, 3), 128, np.uint8), "black": np.zeros((40, 60, 3), np.uint8)}
DEGENERATE |= {"one row": rgb_image(1, 1, 60), "one pixel": rgb_image(2, 1, 1)}


@pytest.mark.parametrize("image", DEGENERATE)
@pytest.mark.parametrize("step", STEPS)
def test_degenerate_images_get_a_label_map(step, image, tiny_clip, tiny_vocabulary):
    found = ob.segment(build(f"sclip+{step}", tiny_clip, tiny_vocabulary), DEGENERATE[image])
    assert found.label_map.shape == DEGENERATE[image].shape[:2]
    assert found.scores.isfinite().all()
    assert 0 <= found.label_map.min() <= found.label_map.max() < 4


def test_the_command_lines_take_steps(tmp_path, capsys):
    options = ["segmentor=[sclip,clearclip]", "refine=[pamr,region_vote]", "recipe.pamr_iterations=[1,2]", "limit=1"]
    assert evaluate_here(*options, f"output={tmp_path}") == 0
    found = results(tmp_path)
    assert set(found) == {f"{base}+pamr+region_vote/demo" for base in ("sclip", "clearclip")}
    assert len(list(tmp_path.rglob("*.json"))) == 4
    evaluate_here("segmentor=sclip", "refine=pamr", "dry_run=true")
    assert re.search(r"pamr_iterations +10 +configs/step/pamr\.yaml recipe", capsys.readouterr().out)
    with pytest.raises(ob.OvssError, match=r"^table=demo states its rows: leave text and refine out"):
        evaluate_here("table=demo", "refine=pamr")
    photo = ob.load_dataset("demo").samples[0].image_path
    run("segment.py", photo, "classes=grass; sand", "refine=pamr", "recipe.pamr_iterations=2", cwd=tmp_path)
    assert (tmp_path / "segmented" / f"{photo.stem}.sclip+pamr.labels.png").is_file()
