"""What holds for every registered segmentor, found by enumeration."""

import ast
import copy
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

import ovss_bench as ob
from ovss_bench.encoders.concepts import ConceptSegmenter, load_concepts
from ovss_bench.inference.engine import predict
from parity.seeded import clip_state_dict, query_features, rgb_image
from stand_ins import METHODS, ON_CLIP, PRESETS, method_of, sources_of

RECIPES = [*METHODS, *PRESETS]
# With what several methods derive from.
CLASSES = {cls for name in METHODS for cls in method_of(name).mro() if cls.__module__.startswith("ovss_bench.segmentors.")}
FILES = sorted({Path(inspect.getsourcefile(cls)) for cls in CLASSES} - {Path(inspect.getsourcefile(ob.Segmentor))})
SMALL = {"short_side": 80, "long_side": 2048, "window": 64, "stride": 32, "pad_multiple": None, "scored_at": "original"}
IN_WINDOWS = [name for name in METHODS if method_of(name).image_scores is None]
# Their windows do not see each other.
ALONE = [name for name in IN_WINDOWS if method_of(name).image_logits is None]
WITHOUT_CLIP = [name for name in RECIPES if name not in ON_CLIP]
# Their planes are not class probabilities, or what comes after the scores changes the labels.
OWN_DECISION = {"cliper", "clip_diy", "cliptrase", "corrclip", "corrclip_v2", "itaclip", "lposs", "maskclip_plus"}
OWN_DECISION |= {"trident", "ov_stitcher", "tagclip_training_free"}
# Clustering, votes, first-pass labels or thresholds may carry a difference of rounding to many pixels.
DISCRETE = {"cliper", "cliptrase", "corrclip", "corrclip_v2", "gla_clip", "ov_stitcher", "resclip", "rf_clip", "scclip", "sfp"}
DISCRETE |= {"cass", "lavg", "tagclip_training_free", "trident"}
# Several windows each, one image smaller than a window, one with a side below a patch, one that is a window.
SIZES = [(120, 150), (50, 31), (100, 200), (64, 64), (12, 30), (140, 130), (160, 120)]
IMAGES = {f"image{number}": rgb_image(50 + number, *size) for number, size in enumerate(SIZES)}


def build(name, clip, vocabulary, **options):
    recipe, other = ob.compose_recipe(name), {}
    if recipe.resize == "center_crop":
        other["resize"] = "keep_ratio"
    if "empty_rows" in recipe.hyperparameters:  # the official rule sets labels, not scores: test_proxyclip.py
        other["empty_rows"] = "diagonal"
    if "preview_resolution" in recipe.hyperparameters:  # a preview, of the tiny network
        other |= {"preview_resolution": 112, "pruner_max_active": 5, "quantile_alpha": 0.5}
    used = {key: value for key, value in SMALL.items() if key not in method_of(name).unused()}
    return ob.build_segmentor(name, clip=clip, vocabulary=vocabulary, **(used | other | sources_of(name) | options))


def label_maps(segmentor, images=IMAGES, **options):
    reads = [(key, lambda image=image: image) for key, image in images.items()]
    return {key: prediction.label_map for key, (prediction,) in predict([segmentor], reads, **options)}


def agreement(one, other):
    assert one.keys() == other.keys()
    equal = sum(int((one[key] == other[key]).sum()) for key in one)
    return equal / sum(labels.numel() for labels in one.values())


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(params=RECIPES)
def segmentor(request, tiny_clip, tiny_vocabulary):
    return build(request.param, tiny_clip, tiny_vocabulary)


@pytest.fixture(params=IN_WINDOWS)
def in_windows(request, tiny_clip, tiny_vocabulary):
    return build(request.param, tiny_clip, tiny_vocabulary)


@pytest.fixture(params=ALONE)
def alone(request, tiny_clip, tiny_vocabulary):
    return build(request.param, tiny_clip, tiny_vocabulary)


def test_the_methods_are_found():
    assert {"clip", "maskclip", "sclip", "clearclip", "naclip", "gem"} <= set(IN_WINDOWS)
    assert {"cliptrase", "resclip", "scclip", "proxyclip", "corrclip", "corrclip_v2"} <= set(IN_WINDOWS)
    assert {"cliper", "clip_diy", "maskclip_plus"} <= set(ON_CLIP) - set(IN_WINDOWS)
    assert {"sam3", "sam3_paint", "sam3_fused_once", "sam3_semantic"} <= set(RECIPES)
    assert {"segearth_ov3", "active_sam"} <= set(METHODS)


def test_outputs_are_finite_and_in_range(segmentor):
    images = dict(list(IMAGES.items())[:5])
    outcomes = list(predict([segmentor], images.items(), batch=8, keep_scores=True))
    outcomes.append(("image1", [ob.segment(segmentor, IMAGES["image1"], window="whole")]))
    for key, (prediction,) in outcomes:
        assert prediction.label_map.shape == IMAGES[key].shape[:2], key
        assert 0 <= prediction.label_map.min() <= prediction.label_map.max() <= 4
        assert prediction.scores.isfinite().all()
        if segmentor.recipe.segmentor in OWN_DECISION:
            continue
        assert prediction.scores.shape == (4, *prediction.label_map.shape)
        assert (prediction.scores >= 0).all()
        assert (prediction.scores <= 1).all()
        assert torch.equal(prediction.label_map, prediction.scores.argmax(0))


FLAT = np.full((70, 90, 3), 128, np.uint8)
NOISE = np.random.RandomState(0).randint(0, 256, (70, 90, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "sources"),
    [
        (FLAT, {}),
        (np.zeros((70, 90, 3), np.uint8), {}),
        (NOISE[:1], {}),
        (NOISE, {"regions": lambda image: np.zeros(image.shape[:2], np.int64)}),
        (NOISE, {"regions": lambda image: np.ones(image.shape[:2], np.int32)}),
        (NOISE, {"foreground": lambda image: np.zeros(image.shape[:2], np.float32)}),
        (NOISE, {"foreground": lambda image: np.ones(image.shape[:2], np.float32)}),
        (NOISE, {"vfm": lambda batch: torch.ones(len(batch.pixels), 4, 8, 8)}),
    ],
    ids=["flat", "black", "one-row", "unsegmented", "one-region", "no-foreground", "all-foreground", "flat-features"],
)
@pytest.mark.parametrize("name", RECIPES)
def test_degenerate_images_get_a_label_map(name, image, sources, tiny_clip, tiny_vocabulary):
    known = sources_of(name)
    if not sources.keys() <= known.keys():
        pytest.skip("has no such source")
    (prediction,) = [ob.segment(build(name, tiny_clip, tiny_vocabulary, **sources), image)]
    assert prediction.label_map.shape == image.shape[:2]
    assert prediction.scores.isfinite().all()
    assert 0 <= prediction.label_map.min() <= prediction.label_map.max() <= 4


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("name", RECIPES)
def test_a_vocabulary_of_one_class_gives_that_class(name, background, tiny_clip):
    vocabulary = ob.Vocabulary.from_features(query_features(31, 2), [0, 0], background=background)
    labels = ob.segment(build(name, tiny_clip, vocabulary, threshold=0.0), IMAGES["image1"]).label_map
    no_class = {1} if name == "cliper" and not background else set()  # its own thresholds may leave a pixel without a class
    assert set(labels.unique().tolist()) <= {0} | no_class


def test_patch_logits_are_finite_on_flat_and_noisy_windows(in_windows):
    noise = torch.randn(3, 64, 48, generator=torch.Generator().manual_seed(2))
    pixels = torch.stack([torch.zeros(3, 64, 48), noise, 50 * noise, torch.full((3, 64, 48), -1.8)])
    logits = in_windows.patch_logits(ob.WindowBatch(pixels))
    assert logits.shape[:2] == (4, 7)
    assert min(logits.shape[2:]) >= 3
    assert logits.isfinite().all()
    assert (logits.abs() <= 1 + 1e-5).all()


def test_methods_differ(tiny_clip, tiny_vocabulary):
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    maps = [build(name, tiny_clip, tiny_vocabulary).patch_logits(ob.WindowBatch(pixels)) for name in IN_WINDOWS]
    logits = [torch.nn.functional.interpolate(one, (64, 64), mode="bilinear") for one in maps]
    for i, one in enumerate(logits):
        assert all((one - other).abs().max() > 1e-4 for other in logits[:i]), IN_WINDOWS[i]


@pytest.fixture(scope="module")
def known():
    return {}


@pytest.fixture
def expected(segmentor, known):
    """The label maps of a method's segmentor, computed once."""
    name = segmentor.recipe.segmentor
    if name not in known:
        known[name] = label_maps(segmentor, batch=7)
    return known[name]


def test_order_and_readers_change_nothing_but_the_order_of_the_results(segmentor, expected):
    keys = list(IMAGES)
    assert list(expected) == keys
    for order, workers in ((keys[::-1], 2), (keys[3:] + keys[:3], 1), (keys, 2)):
        found = label_maps(segmentor, {key: IMAGES[key] for key in order}, batch=7, workers=workers)
        assert list(found) == order
        assert equal(found, expected)


def test_every_batch_of_full_windows_has_the_same_shape(tiny_clip, tiny_vocabulary, monkeypatch):
    shapes, original = [], ob.DenseCLIP.trunk

    def trunk(self, pixels, *arguments):
        shapes.append(tuple(pixels.shape))
        return original(self, pixels, *arguments)

    monkeypatch.setattr(ob.DenseCLIP, "trunk", trunk)
    label_maps(build("clip", tiny_clip, tiny_vocabulary), {key: IMAGES[key] for key in ("image0", "image5")}, batch=7)
    assert set(shapes) == {(7, 3, 64, 64)}


def test_an_image_alone_gets_the_same_labels(segmentor, expected):
    for key in ("image2", "image4"):
        assert torch.equal(label_maps(segmentor, {key: IMAGES[key]}, batch=7)[key], expected[key])


def test_the_default_batch_does_not_depend_on_the_order(tiny_clip, tiny_vocabulary):
    segmentor = build("sclip", tiny_clip, tiny_vocabulary)
    expected = label_maps(segmentor)
    assert equal(label_maps(segmentor, dict(reversed(IMAGES.items())), workers=2), expected)


def test_batches_and_threads_change_rounding_only(segmentor):
    recipe = segmentor.recipe.override(pamr_steps=min(segmentor.recipe.pamr_steps, 2))
    segmentor = segmentor.with_recipe(recipe)
    torch.set_num_threads(1)
    expected = label_maps(segmentor, batch=7, output_size=(220, 220))
    for batch, threads in ((1, 1), (64, 2)):
        torch.set_num_threads(threads)
        result = label_maps(segmentor, batch=batch, output_size=(220, 220))
        least = 0.999 if segmentor.recipe.segmentor in DISCRETE else 0.99999
        assert agreement(result, expected) >= least, (batch, threads)


@pytest.mark.parametrize("names", [ON_CLIP, WITHOUT_CLIP], ids=["on-clip", "without-clip"])
def test_a_shared_run_gives_what_each_gives_alone(names, tiny_clip, tiny_vocabulary):
    same = {"resize": "keep_ratio", "pad": "center", "position": "offset", "pamr_steps": 0}
    same |= {"normalize": "clip", "activation": None}
    chosen = {name: same.keys() - method_of(name).unused() for name in names}
    segmentors = [build(name, tiny_clip, tiny_vocabulary, **{key: same[key] for key in chosen[name]}) for name in names]
    together = [[p.label_map for p in predictions] for _, predictions in predict(segmentors, IMAGES.items(), batch=7)]
    for number, segmentor in enumerate(segmentors):
        alone = list(label_maps(segmentor, batch=7).values())
        for labels, expected in zip(together, alone, strict=True):
            assert torch.equal(labels[number], expected)


FEW = {key: IMAGES[key] for key in ("image0", "image1")}


def test_all_windows_of_an_image_together_give_the_same_labels(alone, monkeypatch):
    expected = label_maps(alone, FEW, batch=7)
    sizes, patch_logits = [], type(alone).patch_logits
    monkeypatch.setattr(
        type(alone), "image_logits", lambda self, batch: sizes.append(len(batch.pixels)) or patch_logits(self, batch)
    )
    assert alone.granularity == "image windows"
    found = label_maps(alone, FEW, batch=7)
    assert sizes[0] > 1
    assert len(sizes) == len(FEW)
    assert agreement(found, expected) >= (0.99 if alone.recipe.segmentor in DISCRETE else 0.9999)


def test_a_prior_that_is_the_same_for_all_queries_changes_nothing_and_one_may_exclude_a_class(in_windows, monkeypatch):
    expected = label_maps(in_windows, FEW, batch=7)
    monkeypatch.setattr(type(in_windows), "prior", lambda self, context: torch.full((7,), 2.0))
    assert agreement(label_maps(in_windows, FEW, batch=7), expected) >= 0.999
    won = torch.cat([labels.flatten() for labels in expected.values()]).bincount(minlength=4)
    excluded = int(won[1:].argmax()) + 1
    absent = torch.tensor([c == excluded for c in in_windows.vocabulary.group])
    monkeypatch.setattr(type(in_windows), "prior", lambda self, context: torch.zeros(7).masked_fill(absent, -torch.inf))
    found = label_maps(in_windows, FEW, batch=7)
    assert won[excluded] > 0
    assert all(excluded not in labels for labels in found.values())


@pytest.mark.parametrize("weight", ["visual.conv1.weight", "visual.transformer.resblocks.0.mlp.c_proj.bias", "visual.proj"])
@pytest.mark.parametrize("name", [name for name in ON_CLIP if not method_of(name).own_network])
def test_nan_in_the_weights_names_image_and_window(name, weight, tiny_vocabulary):
    if (name, weight) == ("pacl", "visual.proj"):
        pytest.skip("has a projection of its own")
    weights = clip_state_dict(1, vocab_size=100)
    weights[weight].view(-1)[5] = torch.nan
    segmentor = build(name, ob.load_clip(state_dict=weights), tiny_vocabulary)
    window = r".*\(y, x\) = \(0, 0\)" if name in IN_WINDOWS else ""
    with pytest.raises(ob.OvssError, match=r"non-finite.*image image4" + window):
        label_maps(segmentor, {"image4": IMAGES["image4"]})


@pytest.fixture(scope="module")
def concepts():
    return load_concepts("demo")


@pytest.mark.parametrize(
    "weight", ["vision_encoder.backbone", "text_encoder", "detr_decoder.presence_head", "mask_decoder.pixel_decoder"]
)
@pytest.mark.parametrize("name", WITHOUT_CLIP)
def test_nan_in_the_weights_of_a_network_without_clip_names_the_image(name, weight, concepts, tiny_vocabulary):
    """Whichever part gives it: a presence or score that is no number is not one below the threshold."""
    model = copy.deepcopy(concepts.model)
    next(values for key, values in model.named_parameters() if key.startswith(weight)).view(-1)[5:].fill_(torch.nan)
    damaged = ConceptSegmenter(model, name="damaged", identity="damaged")
    segmentor = build(name, None, tiny_vocabulary, concepts=damaged, confidence=0.0)
    with pytest.raises(ob.OvssError, match=r"non-finite.*image image4"):
        label_maps(segmentor, {"image4": IMAGES["image4"]})


def test_nan_in_one_image_names_that_image_and_window(alone, monkeypatch):
    segmentor, original = alone, type(alone).patch_logits

    def damaged(self, batch):
        logits = original(self, batch).clone()
        logits[-1, 0, 0, 0] = torch.nan
        return logits

    monkeypatch.setattr(type(segmentor), "patch_logits", damaged)
    image = {"photo": IMAGES["image0"]}  # 80 x 100 pixels: windows at 0 and 16, at 0, 32 and 36
    place = r"\(16, 36\)" if segmentor.granularity == "window" else ""  # where windows see each other, all are not finite
    with pytest.raises(ob.OvssError, match=rf"image photo, window at \(y, x\) = {place}"):
        label_maps(segmentor, image, batch=6)


def test_nan_names_the_image_of_a_data_set(tiny_vocabulary, voc):
    weights = clip_state_dict(1, layers=3, vocab_size=49408)
    weights["visual.proj"][0] = torch.nan
    clip, dataset = ob.load_clip(state_dict=weights), ob.load_dataset("voc20", voc)
    segmentor = build("sclip", clip, dataset.vocabulary("sclip", "none"), templates="none")
    with pytest.raises(ob.OvssError, match=r"image 2007_000033\b.*, window at \(y, x\) = \(0, 0\)"):
        ob.evaluate(segmentor, dataset, limit=1, runtime=ob.Runtime(batch=4))


def test_counts_do_not_depend_on_readers_or_images_before(tiny_clip, voc):
    dataset = ob.load_dataset("voc20", voc)
    segmentor = build("clearclip", tiny_clip, dataset.vocabulary("clearclip", "none"), templates="none", names="clearclip")

    def per_class(**options):
        return ob.evaluate(segmentor, dataset, **options).data["per_class"]

    ids = [sample.id for sample in dataset.samples]
    expected = per_class(runtime=ob.Runtime(batch=16))
    assert sum(row["true"] for row in expected) > 0
    assert per_class(ids=ids[::-1], runtime=ob.Runtime(batch=16, workers=1)) == expected
    assert per_class(runtime=ob.Runtime(batch=16, workers=4)) == expected
    halves = [per_class(ids=part, runtime=ob.Runtime(batch=16)) for part in (ids[:5], ids[5:])]
    for count in ("correct", "predicted", "true"):
        assert [a[count] + b[count] for a, b in zip(*halves, strict=True)] == [row[count] for row in expected]


def test_errors_of_bad_images_come_instead_of_their_predictions(tiny_clip, tiny_vocabulary):
    def fail():
        raise ob.OvssError("this one cannot be read")

    images = [("a", IMAGES["image0"]), ("bad", fail), ("b", IMAGES["image1"])]
    outcomes = dict(predict([build("clip", tiny_clip, tiny_vocabulary)], images, workers=2))
    assert list(outcomes) == ["a", "bad", "b"]
    assert str(outcomes["bad"]) == "this one cannot be read"
    assert np.array_equal(outcomes["b"][0].label_map.shape, (50, 31))


def test_the_methods_are_short():
    files = [path for path in FILES if path.stem in {"clip", "maskclip", "sclip", "clearclip", "naclip", "gem"}]
    assert len(files) == 6
    assert sum(len(path.read_text().splitlines()) for path in files) < 300
    assert all(len(path.read_text().splitlines()) < 200 for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_methods_know_no_files_data_sets_or_devices(path):
    tree = ast.parse(path.read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{'.' * node.level}{node.module or ''}", *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = {part for name in imported for part in name.split(".")}
    forbidden = {"engine", "files", "datasets", "results", "evaluation", "main", "read_image"}
    forbidden |= {"os", "io", "pathlib", "shutil", "tempfile", "cv2", "PIL", "mmseg", "mmcv", "mmengine", "safetensors"}
    assert not parts & forbidden
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"open", "load", "save", "cuda", "cpu", "device", "origins", "sizes"}
