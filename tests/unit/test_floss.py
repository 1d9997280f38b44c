"""FLOSS's step against the rule as the paper words it, written plainly; there are no arrays of the official code."""

import itertools
import json
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.inference.engine import make_context, predict
from ovss_bench.ops.windows import SlidingWindow
from parity.seeded import clip_state_dict, rgb_image
from stand_ins import METHODS, OUTSIDE, SOURCES, method_of, sources_of

NAMES = [["sand", "beach"], ["water"], ["Snow Field"], ["grass"]]
SMALL = {"short_side": 96, "window": 48, "stride": 24, "pad": "none", "templates": "notebook7", "pamr_steps": 0}


@pytest.fixture(scope="module")
def clip():
    return ob.load_clip("demo")


def write(path, chosen):
    """A ranking in the published format; `chosen`: per class templates with the share of their pixels, in order."""
    classes = {
        name: {
            "entropy_ranking": [
                {"template_id": t, "entropy": 0.1 * rank, "pixel_percentage": share, "rank": rank}
                for rank, (t, share) in enumerate(entries)
            ]
        }
        for name, entries in chosen.items()
    }
    path.write_text(json.dumps({"model": "naclip", "dataset": "demo", "split": "train", "classes": classes}))
    return path


GOOD = {
    "sand": [(3, 1.0), (0, 2.0), (6, 0.0), (2, 0.5)],
    "water": [(5, 1.0), (1, 0.1)],
    "snowfield": [(4, 9.0)],
    "grass": [(6, 0.0), (2, 1.0), (3, 1.0)],
}
EXPERTS = [[3, 0], [3, 0], [5, 1], [4], [2, 3]]  # of each query, with top_n=2


def build(base, clip, ranking, **values):
    return ob.build_segmentor(base, clip=clip, vocabulary=NAMES, text="floss", ranking=ranking, **SMALL | {"top_n": 2} | values)


def expected(base, clip, segmentor, batch, unit):
    """Section 4, one pixel at a time."""
    plain = ob.build_segmentor(base, clip=clip, vocabulary=NAMES, **SMALL)
    seen, compare = [], plain.compare
    plain.compare = lambda embeddings, grid: seen.append((embeddings, grid)) or compare(embeddings, grid)
    plain.patch_logits(batch)
    embeddings, grid = seen[0]
    embeddings = F.normalize(embeddings, dim=-1)

    size = batch.pixels.shape[2:]
    probabilities = []
    for bank in banks(clip, segmentor.vocabulary, unit):
        patches = (100 * embeddings @ bank.T).softmax(-1).transpose(1, 2).unflatten(2, grid)
        probabilities.append(F.interpolate(patches, size, mode="bilinear"))
    return fused(probabilities)


def banks(clip, vocabulary, unit=True):
    """The classifiers, the usual one first."""
    found = []
    for templates in (range(7), *EXPERTS):
        rows = []
        for query in vocabulary.queries:
            row = clip.encode_text([vocabulary.prompts[t].replace("{}", query) for t in templates]).mean(0)
            rows.append(row / row.norm() if unit else row)
        found.append(torch.stack(rows))
    return found


def fused(probabilities):
    """Probabilities (B, Q, H, W) by classifier, the usual one first, fused one pixel at a time."""
    result = probabilities[0].clone()
    confidence = [expert[:, query].tolist() for query, expert in enumerate(probabilities[1:])]
    labels = [expert.argmax(1).tolist() for expert in probabilities[1:]]
    for b, y, x in itertools.product(*map(range, (len(result), *result.shape[2:]))):
        firing = [e for e in range(len(labels)) if labels[e][b][y][x] == e]
        if firing:
            winner = max(firing, key=lambda e: confidence[e][b][y][x])
            result[b, :, y, x] = probabilities[1 + winner][b, :, y, x]
    return result


HOSTS = [("naclip", True), ("maskclip", False), ("clip_dinoiser", False), ("sclip", True)]


@pytest.mark.parametrize("size", [(24, 32), (27, 33)], ids=["patches", "a remainder"])
@pytest.mark.parametrize(("base", "unit"), HOSTS)
def test_experts_are_fused_in_every_window(base, unit, size, clip, tmp_path):
    segmentor = build(base, clip, write(tmp_path / "r.json", GOOD))
    batch = ob.WindowBatch(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)))
    found, wanted = segmentor.patch_logits(batch), expected(base, clip, segmentor, batch, unit)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    usual = ob.build_segmentor(base, clip=clip, vocabulary=NAMES, **SMALL).patch_logits(batch)
    if base != "clip_dinoiser":  # whose patch logits are probabilities
        usual = (100 * usual).softmax(1)
    usual = F.interpolate(usual, size, mode="bilinear")
    assert (found - usual).abs().max() > 0.01


def test_a_ranking_moves_the_labels_of_a_picture(clip, tmp_path):
    scene = rgb_image(1, 96, 120)
    segmentor = build("naclip", clip, write(tmp_path / "r.json", GOOD))
    plain = ob.build_segmentor("naclip", clip=clip, vocabulary=NAMES, **SMALL)
    found, before = ob.segment(segmentor, scene), ob.segment(plain, scene)
    assert segmentor.recipe.segmentor == "naclip+floss"
    assert found.scores.isfinite().all()
    assert 0 < (found.label_map != before.label_map).float().mean() < 0.9


BAD = {
    "no such class": (GOOD | {"water": None}, {}, r"has no class 'water'"),
    "no pixels": (GOOD | {"water": [(1, 0.0)]}, {}, r"no template of the ranking .* predicts class 'water'"),
    "another list": (GOOD | {"water": [(79, 1.0)]}, {}, r"has template 79, but the recipe has 7 templates"),
    "none": (GOOD, {"ranking": None}, r"^naclip\+floss needs ranking: give ranking=FILE\."),
    "background": (
        GOOD,
        {"apply_found": True},
        r"^clip_dinoiser\+floss: the experts skip the background rule .* apply_found=false\.$",
    ),
    "refine": (GOOD, {"text": None, "refine": "floss"}, r"^refine=floss: give this step as text=floss\.$"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line(case, clip, tmp_path):
    chosen, values, words = BAD[case]
    path = write(tmp_path / "r.json", {name: entries for name, entries in chosen.items() if entries is not None})
    options = {"text": "floss", "ranking": path} | values
    base = "clip_dinoiser" if "apply_found" in values else "naclip"
    vocabulary = ob.Vocabulary.from_names(NAMES, background=True, templates=SMALL["templates"])
    with pytest.raises(ob.OvssError, match=words) as caught:
        ob.build_segmentor(base, clip=clip, vocabulary=vocabulary, **SMALL | options).encode_text()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("base", ["maskclip", "clip_dinoiser"])
def test_these_take_all_templates_for_a_class_without_pixels(base, clip, tmp_path):
    segmentor = build(base, clip, write(tmp_path / "r.json", GOOD | {"water": [(1, 0.0)]}))
    segmentor.encode_text()
    torch.testing.assert_close(segmentor.experts[3], segmentor.experts[0])


def test_damaged_files_and_text_features_are_refused(clip, tmp_path):
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(ob.OvssError, match=r"^ranking .*r\.json cannot be read \(KeyError: 'classes'\)\. Expected"):
        build("naclip", clip, tmp_path / "r.json").encode_text()
    good = write(tmp_path / "good.json", GOOD)
    features = ob.Vocabulary.from_features(torch.eye(4, clip.model.text_projection.shape[1]))
    segmentor = ob.build_segmentor("naclip", clip=clip, vocabulary=features, text="floss", ranking=good)
    with pytest.raises(ob.OvssError, match=r"^naclip\+floss: floss needs names of classes"):
        segmentor.encode_text()


@pytest.mark.parametrize("base", ["naclip", "maskclip", "clip_dinoiser"])
def test_templates_are_ranked_by_the_entropy_of_what_they_predict(base, clip, tmp_path):
    data, options = ob.load_dataset("demo_small"), {"short_side": 96, "window": 48, "stride": 48, "pad": "none"}
    path = ob.rank_templates(base, clip, data, tmp_path / "r.json", limit=1, **options)
    known = {"apply_found": False} if base == "clip_dinoiser" else {"logit_scale": 100}
    vocabulary = data.vocabulary("demo", "notebook7")
    sums, counts = torch.zeros(7, 37).double(), torch.zeros(7, 37).double()
    for t, prompt in enumerate(vocabulary.prompts):
        one = ob.build_segmentor(
            base, clip=clip, vocabulary=replace(vocabulary, prompts=(prompt,)), pamr_steps=0, **known, **options
        )
        one.scores_sum_to_one = False
        if base == "maskclip":  # averages probabilities
            logits = one.patch_logits
            one.patch_logits = lambda batch, logits=logits: (100 * logits(batch)).softmax(1)
            one.scores = lambda maps, context: torch.stack(
                [maps[[q for q, c in enumerate(vocabulary.group) if c == k]].amax(0) for k in range(37)]
            )
        images = [(sample.id, data.image(sample)) for sample in data.select(1, None)]
        for _, (found,) in predict([one], images, keep_scores=True):
            p, labels = found.scores, found.scores.argmax(0)
            entropy = -(p * (p + 1e-10).log()).sum(0)
            for c in labels.unique().tolist():
                sums[t, c] += entropy[labels == c].sum()
                counts[t, c] += (labels == c).sum()
    content = json.loads(path.read_text())
    assert (content["model"], content["dataset"], content["split"]) == (base, "demo_small", "train")
    assert list(content["classes"]) == [name.replace(" ", "") for name in vocabulary.classes]
    for c, entry in enumerate(content["classes"].values()):
        ranks = entry["entropy_ranking"]
        assert [each["rank"] for each in ranks] == [1, 2, 3, 4, 5, 6, 7]
        assert [each["entropy"] for each in ranks] == sorted(each["entropy"] for each in ranks)
        for each in ranks:
            t = each["template_id"]
            share = 100 * counts[t, c] / counts[t].sum()
            assert each["pixel_percentage"] == pytest.approx(float(share), abs=0.01)
            assert each["entropy"] == pytest.approx(float(sums[t, c] / counts[t, c].clamp(min=1)), rel=1e-2, abs=1e-4)
    with pytest.raises(ob.OvssError, match=r"^cliptrase has a decision of its own"):
        ob.rank_templates("cliptrase", clip, data, tmp_path / "c.json")


RECIPES = {"floss": "naclip", "floss_maskclip": "maskclip", "floss_clip_dinoiser": "clip_dinoiser"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_demo_has_a_ranking_for_each_host(recipe, clip):
    segmentor = ob.build_segmentor(recipe, clip=clip, vocabulary=ob.load_dataset("demo").vocabulary("demo", "notebook7"))
    segmentor.encode_text()
    usual, *experts = segmentor.experts
    assert sum(not torch.allclose(expert, usual) for expert in experts) > 30
    content = json.loads(segmentor.ranking.read_text())
    assert (content["model"], content["dataset"]) == (RECIPES[recipe], "demo_tune")


def test_a_recipe_with_floss_stands_for_its_host(clip, tmp_path):
    data, options = ob.load_dataset("demo_small"), {"limit": 1, "window": 48, "stride": 48}
    one, other = (
        ob.rank_templates(name, clip, data, tmp_path / f"{name}.json", **options) for name in ("floss_maskclip", "maskclip")
    )
    assert one.read_text() == other.read_text()


# Base methods that are refused, and why.
NO_CLIP, OTHER = "no texts in templates: a network that takes concepts", "is no comparison with all queries at one place: "
REFUSED = dict.fromkeys(OUTSIDE, "label maps from outside") | {
    "sam3": NO_CLIP,
    "active_sam": NO_CLIP,
    "segearth_ov3": NO_CLIP,
    "cliper": OTHER + "each map is cut and stretched by itself, and propagated",
    "tagclip_training_free": OTHER + "only the classes of the image's tags have maps, by gradients",
    "maskclip_plus": OTHER + "products without a scale, by default with a classifier of the checkpoint's own",
}
# Values that let methods run on a small image, or that change their cosines.
BASES = [(name, {}) for name in METHODS if name not in REFUSED]
BASES += [("maskclip", {"prompt_denoising": 0.3, "key_smoothing": 0.5}), ("cliptrase", {"cls_weighting": True})]
BASES += [("itaclip", {"img_engineering": False}), ("cass", {"whole_image": False}), ("rf_clip", {"image_level": "window"})]
BASES += [("resclip", {"use_sfr": False}), ("lavg", {"clear_background": True}), ("clip_diy", {"foreground": None})]
FITTING = {
    "proxyclip": {"empty_rows": "diagonal"},
    "cliptrase": {"resize": "keep_ratio"},
    "clip_diy": {"patch_sizes": (48, 24, 16)},
}


@pytest.fixture(scope="module")
def deep_clip():
    """Of twelve blocks, with a text tower."""
    return ob.load_clip(state_dict=clip_state_dict(11, width=64, embed_dim=32, resolution=64))


def host(base, clip, **values):
    """A base method, or with text=floss, with all that it needs, for five queries of four classes and a distractor."""
    vocabulary = ob.Vocabulary.from_names(NAMES, background=True, templates="notebook7", distractors=["fog"])
    small = {"short_side": 64, "window": 48, "stride": 32, "pad": "none", "pad_multiple": None, "pamr_steps": 0}
    used = {key: value for key, value in small.items() if key not in method_of(base).unused()}
    options = used | sources_of(base, 32) | FITTING.get(base, {}) | values
    options = (
        {"templates": "notebook7", "logit_scale": 40} | options if "logit_scale" not in method_of(base).unused() else options
    )
    return ob.build_segmentor(base, clip=clip, vocabulary=vocabulary, **options)


def windows_of(segmentor, image):
    """An image's context, and all its windows."""
    context = make_context(image, segmentor)
    windows = SlidingWindow.by(segmentor.recipe, *context.pixels.shape[1:], segmentor.clip.patch_size)
    pixels = torch.stack(windows.cut(context.pixels))
    places = torch.tensor(windows.origins), torch.zeros(len(pixels), dtype=torch.int64)
    return context, ob.WindowBatch(pixels, *places, [context])


def by_hand(base, clip, values, image):
    """The fused probabilities: the base method runs once for each classifier, each time built anew."""
    probabilities = []
    for bank in banks(clip, host(base, clip, **values).vocabulary, unit=base not in ("maskclip", "clip_dinoiser")):
        plain = host(base, clip, **values)
        plain._text = bank
        context, batch = windows_of(plain, image)
        with torch.inference_mode():
            if plain.image_scores:
                logits, size = plain.image_cosines(context), context.resized.shape[:2]
            else:
                logits, size = (plain.image_logits or plain.patch_logits)(batch), batch.pixels.shape[2:]
        if len(logits) == 1 < len(batch.pixels):  # a grid over the whole image
            size = (batch.origins.amax(0) + torch.tensor(size) - batch.origins.amin(0)).tolist()
        soft = logits if base == "clip_dinoiser" else (100 * logits).softmax(1)
        probabilities.append(F.interpolate(soft, size, mode="bilinear"))
    result = fused(probabilities)
    assert not torch.allclose(result, probabilities[0]), "no expert has fired"
    return result


@pytest.mark.parametrize(("base", "values"), BASES, ids=str)
def test_an_expert_is_the_base_method_with_another_classifier(base, values, deep_clip, tmp_path):
    image = rgb_image(5, 64, 80)
    segmentor = host(base, deep_clip, text="floss", top_n=2, ranking=write(tmp_path / "r.json", GOOD), **values)
    context, batch = windows_of(segmentor, image)
    expected = by_hand(base, deep_clip, values, image)
    with torch.inference_mode():
        if segmentor.image_scores:
            found, plain = segmentor.image_scores(context), host(base, deep_clip, **values)
            plain.image_cosines = lambda context: expected
            expected = plain.image_scores(windows_of(plain, image)[0])
        else:
            found = (segmentor.image_logits or segmentor.patch_logits)(batch)
    assert found.shape == expected.shape
    assert ((found - expected).abs() < 1e-4).float().mean() > 0.999  # pixels where rounding decides


@pytest.mark.parametrize("base", sorted({base for base, _ in BASES}))
def test_encoders_run_once_for_all_experts(base, deep_clip, tmp_path, monkeypatch):
    passes, embed = [], type(deep_clip).embed_patches
    monkeypatch.setattr(type(deep_clip), "embed_patches", lambda *given: passes.append("CLIP") or embed(*given))
    values, counts, count = {}, [], None
    if "vfm" in method_of(base).hyperparameters():
        values["vfm"] = lambda batch: passes.append("vfm") or SOURCES["vfm"](batch)
    for more in ({}, {"text": "floss", "ranking": write(tmp_path / "r.json", GOOD)}):
        segmentor = host(base, deep_clip, **values, **more)
        if base == "tagclip":
            count = segmentor.network.backbone.register_forward_hook(lambda *_: passes.append("network"))
        context, batch = windows_of(segmentor, rgb_image(5, 64, 80))
        passes.clear()
        if segmentor.image_scores:
            segmentor.image_scores(context)
        else:
            (segmentor.image_logits or segmentor.patch_logits)(batch)
        counts.append(Counter(passes))
        if count:  # both have the same network
            count.remove()
    assert counts[0] == counts[1]
    assert counts[0]


def test_lposs_joins_synonyms_after_the_experts(deep_clip, tmp_path):
    image = rgb_image(5, 64, 80)
    segmentor = host("lposs", deep_clip, text="floss", top_n=2, ranking=write(tmp_path / "r.json", GOOD))
    plain, expected = host("lposs", deep_clip), by_hand("lposs", deep_clip, {}, image)
    plain.image_logits = lambda batch: expected
    ((_, (found, expected)),) = predict([segmentor, plain], [("image", image)], keep_scores=True)
    assert ((found.scores - expected.scores).abs() < 1e-3).float().mean() > 0.999


def test_descriptions_of_a_method_are_part_of_its_experts(deep_clip, tmp_path):
    """ITACLIP's definitions and OV-Stitcher's sentences, with the templates of each expert."""
    (tmp_path / "texts.txt").write_text("water >=a wet place\nsnow >=a cold place\ngrass >=a green place\n")
    (tmp_path / "sentences.json").write_text(json.dumps({"water": ["a wet place", "a blue place"]}))
    ranking = write(tmp_path / "r.json", GOOD)
    itaclip, stitcher = (
        host(base, deep_clip, text="floss", top_n=2, ranking=ranking, **values)
        for base, values in (
            ("itaclip", {"texts": tmp_path / "texts.txt", "def_coefficient": 0.2}),
            ("ov_stitcher", {"prompts": tmp_path / "sentences.json"}),
        )
    )
    names, prompts = banks(deep_clip, itaclip.vocabulary), itaclip.vocabulary.prompts
    itaclip.encode_text()
    stitcher.encode_text()
    for number, templates in enumerate((range(7), *EXPERTS)):
        mixed, joined = names[number].clone(), names[number].clone()
        for query, text in {2: "a wet place", 3: "a cold place", 4: "a green place"}.items():
            rows = deep_clip.encode_text([prompts[t].replace("{}", text) for t in templates])
            mixed[query] = 0.8 * mixed[query] + 0.2 * F.normalize(rows.mean(0), dim=0)
        texts = [*(prompts[t].replace("{}", "water") for t in templates), "a wet place", "a blue place"]
        joined[2] = F.normalize(deep_clip.encode_text(texts).mean(0), dim=0)
        torch.testing.assert_close(itaclip.experts[number], mixed, atol=1e-5, rtol=0)
        torch.testing.assert_close(stitcher.experts[number], joined, atol=1e-5, rtol=0)


@pytest.mark.parametrize("base", sorted(REFUSED))
def test_what_has_no_experts_is_refused_in_one_line(base, tmp_path):
    with pytest.raises(ob.OvssError, match=rf"^{re.escape(base)}\+floss: the .*\. Leave floss out, or use another") as caught:
        ob.compose_recipe(base, overrides={"text": "floss"})
    assert "\n" not in str(caught.value)


def test_every_method_has_experts_or_a_reason():
    assert {base for base, _ in BASES} | REFUSED.keys() == {*METHODS, *OUTSIDE}
