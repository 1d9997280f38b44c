"""CLIPer: balancing, compensation, decision, and the recipes of both backbones."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.config.recipe import compose_recipe
from ovss_bench.files import CONFIGS
from ovss_bench.inference.engine import make_context
from ovss_bench.ops.attention import strong_attention
from ovss_bench.ops.compose import TILE_BYTES
from ovss_bench.types import ImageContext
from ovss_bench.vocabulary import TEMPLATES, read_names
from parity.seeded import CLIP_MEAN, CLIP_STD, query_features, rgb_image

IMAGE = rgb_image(60, 70, 100)
VFM_METHODS = ("cliper", "corrclip", "corrclip_v2", "proxyclip")
OPEN = {"bkg_thre": 1e-30, "score_threshold": 0.0, "is_normalize": False}


def attention(seed, side=8, heads=2):
    """Two layers of row-stochastic maps (heads, N, N)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(heads, side**2, side**2, generator=generator).mul(2).softmax(-1) for _ in range(2)]


def build(clip, vocabulary, **options):
    return ob.build_segmentor(
        "cliper", clip=clip, vocabulary=vocabulary, **({"diffusion": None, "short_side": 80, "window": "whole"} | options)
    )


def windows(count, height=48, width=64):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def cliper(tiny_clip, tiny_vocabulary):
    return build(tiny_clip, tiny_vocabulary)


def plain_layers(clip, rows, pixels):
    """The official loop with its in-place divisions, head by head: cosines (N, T, h, w), and the last attention (h*w, h*w)."""
    trunk = clip.trunk(pixels, range(clip.depth), "bilinear")
    blocks = [clip.block(i, trunk.grid) for i in range(clip.depth)]
    total = torch.stack([blocks[i].attention(trunk.states[i])[0] for i in range(11)]).sum(0)
    cosines = []
    for embedding in [blocks[i].ln_1(trunk.states[i]) for i in range(11)] + [trunk.tokens]:
        total /= total.sum(1, keepdim=True)
        total /= total.sum(2, keepdim=True)
        values = blocks[-1].qkv(blocks[-1].ln_1(embedding))[2][0]
        maps = []
        for one in total:
            mean = (one + one.T) / 2
            mean = torch.relu(mean - mean.mean(0))
            maps.append(mean / mean.sum(1, keepdim=True))
        heads = torch.stack([one @ value for one, value in zip(maps, values, strict=True)])
        tokens = blocks[-1].project(heads[None])[0, 1:]
        cosines.append((clip.head(tokens) @ rows.T).T.unflatten(1, trunk.grid))
    return torch.stack(cosines), torch.stack(maps).mean(0)[1:, 1:]


def test_layers_are_balanced_once_more_each(cliper, tiny_clip):
    pixels = windows(1)
    expected, attention = plain_layers(tiny_clip, cliper.rows, pixels)
    cosines, between = cliper.layers(ob.WindowBatch(pixels), cliper.rows)
    torch.testing.assert_close(cosines[:, 0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(between[0], attention, atol=1e-6, rtol=0)


@pytest.mark.parametrize("layer", [-1, -2, 3])  # -2: the recipe of ViT-L/14
@pytest.mark.parametrize("fused", [True, False])
def test_without_fusion_the_selected_layer_stands_alone(layer, fused, tiny_clip, tiny_vocabulary):
    pixels = windows(1)
    segmentor = build(tiny_clip, tiny_vocabulary, select_layer=layer, fuse_feature=fused, attention_thr=0.5)
    cosines, attention = plain_layers(tiny_clip, segmentor.rows, pixels)
    maps = (segmentor.recipe.logit_scale * cosines).softmax(1)[:, :4]
    for one in maps[layer]:
        one[one < 0.5 * one.max()] = 0
    expected = torch.stack([(one.flatten() @ attention).view_as(one) for one in maps[layer]])
    if fused:
        expected = expected + maps.mean(0)
    torch.testing.assert_close(segmentor.segmentation(pixels[0]), expected, atol=1e-5, rtol=0)


def test_windows_of_a_batch_do_not_mix(cliper):
    pixels = windows(3)
    together, between = cliper.layers(ob.WindowBatch(pixels), cliper.rows)
    for number in range(3):
        alone, own = cliper.layers(ob.WindowBatch(pixels[number : number + 1]), cliper.rows)
        torch.testing.assert_close(together[:, number], alone[:, 0], atol=1e-5, rtol=0)
        torch.testing.assert_close(between[number], own[0], atol=1e-6, rtol=0)


def test_text_rows_are_foreground_background_and_the_mean(cliper):
    text = query_features(31, 7)
    mean = F.normalize(text[3:].mean(0), dim=0)
    torch.testing.assert_close(cliper.rows, torch.cat([text[3:], text[:3], mean[None]]))


def test_distractors_are_background_words(tiny_clip, tiny_vocabulary):
    features = query_features(31, 7)
    other = ob.Vocabulary.from_features(features, [-1, -1, -1, 0, 1, 1, 2])
    with_background, without = (ob.segment(build(tiny_clip, vocabulary), IMAGE) for vocabulary in (tiny_vocabulary, other))
    torch.testing.assert_close(with_background.scores, without.scores)
    expected = with_background.label_map - 1
    expected[expected == -1] = 3  # no class
    assert torch.equal(without.label_map, expected)


@pytest.mark.parametrize("options", [{"window": 64, "stride": 24}, {"window": 72, "stride": 32}])
def test_windows_must_be_whole_patches(options, tiny_clip, tiny_vocabulary):
    with pytest.raises(ob.OvssError, match=rf"window={options['window']}, stride={options['stride']}.*multiples of the patch"):
        build(tiny_clip, tiny_vocabulary, **options)


def cut(a, threshold):
    a = a / (a.max(0).values + 1e-5)
    a = torch.where(a < threshold, 0, a)
    return a / (a.sum(1, keepdim=True) + 1e-5)


@pytest.mark.parametrize("refinement", ["SFSA", "mean", "selection"])
@pytest.mark.parametrize("side", [6, 8])
def test_compensation_multiplies_the_maps_in_their_order(refinement, side, cliper, tiny_clip, tiny_vocabulary):
    maps, given = torch.rand(4, 5, 7), attention(side, side)
    before = [layer.clone() for layer in given]
    segmentor = build(tiny_clip, tiny_vocabulary, diffusion=lambda _: given, refinement=refinement, selection=2)
    heads = [cut(head, segmentor.attention_thr) for layer in given for head in layer]
    product = {"SFSA": torch.linalg.multi_dot(heads), "mean": sum(heads) / 4, "selection": heads[2]}[refinement]
    m = F.interpolate(maps[None], (side, side), mode="bilinear")[0].flatten(1).T
    result = segmentor.compensate(maps, make_context(IMAGE, segmentor))
    torch.testing.assert_close(result, (product @ m).T.view(4, side, side))
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))


def test_attention_is_applied_in_parts(monkeypatch):
    heads, maps = attention(8)[0][0], torch.rand(64, 5)
    monkeypatch.setitem(TILE_BYTES, "cpu", 4 * 64 * 7)  # seven rows at a time
    torch.testing.assert_close(strong_attention(heads, maps, 0.3), cut(heads, 0.3) @ maps)
    assert (cut(heads, 0.3) == 0).float().mean() > 0.2


@pytest.mark.parametrize("sources", [{}, {"diffusion": lambda _: attention(5)}, {"window": 64, "stride": 32}])
def test_a_class_that_is_left_out_early_could_not_win(sources, tiny_clip, tiny_vocabulary):
    """The planes are those of all classes, without the ones whose final peak is too low."""
    every = build(tiny_clip, tiny_vocabulary, **OPEN | sources)
    context = make_context(IMAGE, every)
    maps = every.segmentation(context.pixels)
    before = maps.amax((1, 2))
    after = (every.compensate(maps, context) if every.diffusion else maps).amax((1, 2))
    peak, planes = (before + after) / 2, every.image_scores(context)
    assert (after <= before * 1.000001).all()
    for bound in peak.sort().values.tolist():
        some = build(tiny_clip, tiny_vocabulary, **OPEN | sources | {"score_threshold": bound * 1.001})
        left = planes * (peak > bound * 1.001)[:, None, None]
        torch.testing.assert_close(some.image_scores(make_context(IMAGE, some)), left)


@pytest.mark.parametrize("background", [0.0, 1e-30])
@pytest.mark.parametrize("share", [0.5, 1.5])  # of the highest peak: some classes are left, or none
def test_the_classes_that_are_left_decide_alone(share, background, tiny_clip, tiny_vocabulary):
    """As all planes do; where a step refines planes, all of them are computed."""
    every = build(tiny_clip, tiny_vocabulary, **OPEN)
    peak = share * float(every.segmentation(make_context(IMAGE, every).pixels).max())
    segmentor = build(tiny_clip, tiny_vocabulary, **OPEN | {"score_threshold": peak, "bkg_thre": background})
    context = make_context(IMAGE, segmentor)
    left, few = segmentor.planes(context)
    planes, (labels, best) = segmentor.image_scores(context), segmentor.image_labels(context)
    assert len(few) < len(planes) == 4
    assert (len(few) > 0) == (share < 1)
    assert torch.equal(planes[left], few)
    assert torch.equal(labels, segmentor.decide(planes, context))
    assert torch.equal(best, planes.amax(0))
    segmentor.__class__ = type("Refined", (type(segmentor),), {"refine_scores": lambda self, planes, _: planes})
    assert segmentor.image_labels(context) is None


def test_diffusion_maps_may_be_arrays_of_half_precision(tiny_clip, tiny_vocabulary):
    given = [layer.half() for layer in attention(3)]
    scores = [
        ob.segment(build(tiny_clip, tiny_vocabulary, diffusion=lambda _, maps=maps: maps, **OPEN), IMAGE).scores
        for maps in ([layer.numpy() for layer in given], [layer.float() for layer in given])
    ]
    assert torch.equal(*scores)


@pytest.mark.parametrize("selection", [4, -5])
def test_a_selection_beyond_the_maps_is_refused(selection, tiny_clip, tiny_vocabulary):
    options = {"diffusion": lambda _: attention(1), "refinement": "selection", "selection": selection}
    segmentor = build(tiny_clip, tiny_vocabulary, **options)
    with pytest.raises(ob.OvssError, match=rf"selection={selection}: .* 4 maps"):
        ob.segment(segmentor, IMAGE)


def test_the_official_selection_is_the_second_head(tiny_clip, tiny_vocabulary):
    maps, given = torch.rand(4, 8, 8), attention(2)
    segmentor = build(tiny_clip, tiny_vocabulary, diffusion=lambda _: given, refinement="selection")
    expected = (cut(given[0][1], segmentor.attention_thr) @ maps.flatten(1).T).T.view(4, 8, 8)
    torch.testing.assert_close(segmentor.compensate(maps, make_context(IMAGE, segmentor)), expected)


class Encoder:
    """A stand-in for a vision encoder of patches of 16 pixels: mean colours, and the pixels that it has seen."""

    patch_size = 16

    def __call__(self, batch):
        self.seen = batch.pixels
        return F.avg_pool2d(batch.pixels, self.patch_size)


@pytest.mark.parametrize("size", [(70, 100), (64, 47), (9, 40)])
def test_a_vision_encoder_replaces_diffusion(size, tiny_clip, tiny_vocabulary):
    """Section 5.1, ablation options: the image at its own size, rounded down to the encoder's patches, whatever CLIP sees."""
    image, maps = rgb_image(62, *size), torch.rand(4, 5, 7)
    segmentor = build(tiny_clip, tiny_vocabulary, vfm=(encoder := Encoder()))
    height, width = (max(side // 16, 1) * 16 for side in size)
    colours = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    colours = F.interpolate(colours, (height, width), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
    features = F.avg_pool2d((colours - mean) / std, 16)[0]
    unit = features.flatten(1).T / features.flatten(1).norm(dim=0)[:, None]
    weights = 3 * (unit @ unit.T - 1.2 * (unit @ unit.T).mean())
    weights[(weights < 0) & ~torch.eye(len(weights), dtype=torch.bool)] = -torch.inf  # the diagonal: see `proxy_attention`
    m = F.interpolate(maps[None], features.shape[1:], mode="bilinear")[0].flatten(1).T
    result = segmentor.compensate(maps, make_context(image, segmentor))
    torch.testing.assert_close(encoder.seen, (colours - mean) / std, atol=1e-5, rtol=0)
    torch.testing.assert_close(result, (weights.softmax(1) @ m).T.view(4, *features.shape[1:]), atol=1e-5, rtol=0)


def test_diffusion_comes_before_a_vision_encoder(tiny_clip, tiny_vocabulary):
    def planes(**sources):
        return ob.segment(build(tiny_clip, tiny_vocabulary, **sources, **OPEN), IMAGE).scores

    assert (planes(vfm=Encoder()) - planes()).abs().max() > 1e-3
    assert torch.equal(planes(vfm=Encoder(), diffusion=lambda _: attention(5)), planes(diffusion=lambda _: attention(5)))


def test_the_vision_encoder_of_cliper_is_in_fp32_and_others_follow_clip(tiny_state_dict, tiny_vocabulary):
    clip = ob.load_clip(state_dict=tiny_state_dict, precision="bf16")
    loaded = {name: ob.build_segmentor(name, clip=clip, vocabulary=tiny_vocabulary, vfm="demo") for name in VFM_METHODS}
    precision = {name: segmentor.vfm.named[3] for name, segmentor in loaded.items()}
    assert precision == dict.fromkeys(VFM_METHODS, "bf16") | {"cliper": "fp32"}


def test_halves_are_images_of_their_own(tiny_clip, tiny_vocabulary):
    image, given = rgb_image(61, 60, 120), attention(7)
    seen = []
    segmentor = build(tiny_clip, tiny_vocabulary, short_side=64, diffusion=lambda i: seen.append(i) or given, halves=True)
    scene = make_context(image, segmentor)
    result = segmentor.image_scores(scene)
    assert result.shape == (4, 60, 120)
    assert [(i == image[:, 60 * n : 60 * n + 60]).all() for n, i in enumerate(seen)] == [True, True]
    single = segmentor.with_recipe(
        replace(segmentor.recipe, hyperparameters=segmentor.recipe.hyperparameters | {"halves": False})
    )
    for n in range(2):
        half = ImageContext(image[:, 60 * n :][:, :60], None, scene.pixels[..., 64 * n : 64 * n + 64], (60, 60))
        torch.testing.assert_close(result[..., 60 * n : 60 * n + 60], single.image_scores(half))


def test_thresholds_leave_pixels_to_the_background_or_to_no_class(tiny_clip, tiny_vocabulary):
    foreground = ob.Vocabulary.from_features(query_features(31, 7))
    for vocabulary, nothing in ((tiny_vocabulary, 0), (foreground, 7)):
        scores = ob.segment(build(tiny_clip, vocabulary, **OPEN), IMAGE).scores
        assert (scores > 0).all()
        none = ob.segment(build(tiny_clip, vocabulary, **OPEN | {"score_threshold": 50.0}), IMAGE)
        assert (none.scores == 0).all()
        assert (none.label_map == nothing).all()
        bound = float(scores.max(0).values.median())
        some = ob.segment(build(tiny_clip, vocabulary, **OPEN | {"bkg_thre": bound}), IMAGE)
        assert torch.equal(some.scores, scores * (scores >= bound))
        assert torch.equal(some.label_map == nothing, scores.max(0).values < bound)


@pytest.mark.parametrize("stretched", [True, False])
def test_without_a_threshold_the_background_has_a_score_of_its_own(stretched, tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary, **OPEN | {"bkg_thre": 0, "is_normalize": stretched})
    prediction = ob.segment(segmentor, IMAGE)
    background = (1 - prediction.scores.max(0).values) ** 2
    best = torch.cat([background[None], prediction.scores]).argmax(0)
    assert torch.equal(prediction.label_map, torch.tensor([0, 1, 2, 2, 3])[best])
    assert (best == 0).any() or not stretched  # scores may exceed 1 where they are not


def test_synonyms_are_classes_until_the_decision(tiny_clip, tiny_vocabulary):
    prediction = ob.segment(build(tiny_clip, tiny_vocabulary, **OPEN), IMAGE)
    assert prediction.scores.shape == (4, 70, 100)
    assert torch.equal(prediction.label_map, torch.tensor([1, 2, 2, 3])[prediction.scores.argmax(0)])


def test_without_foreground_everything_is_background(tiny_clip):
    vocabulary = ob.Vocabulary.from_features(query_features(31, 3), [0, 0, 0], background=True)
    prediction = ob.segment(build(tiny_clip, vocabulary), IMAGE)
    assert prediction.scores.shape == (0, 70, 100)
    assert (prediction.label_map == 0).all()


@pytest.mark.parametrize(("layer", "options"), [(12, {}), (-13, {}), (12, {"fuse_feature": False})])
def test_a_layer_that_the_encoder_does_not_have_is_refused(layer, options, tiny_clip, tiny_vocabulary):
    with pytest.raises(ob.OvssError, match=f"select_layer={layer}"):
        ob.segment(build(tiny_clip, tiny_vocabulary, select_layer=layer, **options), IMAGE)


def test_half_precision_keeps_the_maps_in_float(tiny_state_dict, tiny_vocabulary):
    exact, half = (
        ob.segment(
            build(ob.load_clip(state_dict=tiny_state_dict, precision=precision), tiny_vocabulary, window=64, stride=32), IMAGE
        )
        for precision in ("fp32", "bf16")
    )
    assert half.scores.dtype == torch.float32
    assert half.scores.isfinite().all()
    assert (half.label_map == exact.label_map).float().mean() > 0.9


# docs/methods/cliper.md: templates, size, select_layer, logit_scale, attention_thr, score_thr, bkg_thre, is_normalize
TABLE = {
    ("vit_b16", "voc21"): ("car15", 336, -1, 100, 0.1, 0.7, 0.6, True),
    ("vit_b16", "voc20"): ("car15", 336, -1, 100, 0.1, 0, 0.001, False),
    ("vit_b16", "context60"): ("car15", 336, -1, 100, 0.2, 0.45, 0.45, False),
    ("vit_b16", "context59"): ("car15", 336, -1, 100, 0.2, 0.3, 0.3, False),
    ("vit_b16", "coco_object"): ("imagenet80", 336, -1, 50, 0.2, 0.3, 0.3, False),
    ("vit_b16", "coco_stuff"): ("car15", 336, -1, 50, 0.2, 0.1, 0.1, False),
    ("vit_b16", "ade20k"): ("car15", 336, -1, 100, 0.2, 0.3, 0.3, False),
    ("vit_b16", "cityscapes"): ("imagenet80", 560, -1, 100, 0.35, 0, 0.0001, False),
    ("vit_l14", "voc21"): ("car15", 336, -2, 50, 0.1, 0.5, 0.4, True),
    ("vit_l14", "voc20"): ("car15", 336, -1, 70, 0.2, 0.1, 0.0001, False),
    ("vit_l14", "context60"): ("imagenet80", 336, -2, 50, 0.2, 0.3, 0.3, False),
    ("vit_l14", "context59"): ("car15", 336, -2, 100, 0.2, 0.45, 0.45, False),
    ("vit_l14", "coco_object"): ("imagenet80", 336, -2, 50, 0.1, 0.5, 0.5, False),
    ("vit_l14", "coco_stuff"): ("imagenet80", 336, -2, 50, 0.2, 0.2, 0.2, False),
    ("vit_l14", "ade20k"): ("imagenet80", 336, -1, 50, 0.2, 0.2, 0.2, False),
    ("vit_l14", "cityscapes"): ("car15", 448, -1, 100, 0.35, 0, 0.0001, False),
    ("vit_h14_laion2b", "voc21"): ("car15", 336, -2, 100, 0.1, 0.7, 0.6, True),
}


@pytest.mark.parametrize(("clip", "dataset"), TABLE)
def test_the_recipe_follows_backbone_and_data_set(clip, dataset):
    recipe = compose_recipe("cliper", clip=clip, dataset=dataset)
    own = ("select_layer", "attention_thr", "score_threshold", "bkg_thre", "is_normalize")
    layer, threshold, score, background, stretched = (recipe.hyperparameters[name] for name in own)
    found = (recipe.templates, recipe.short_side, layer, recipe.logit_scale, threshold, score, background, stretched)
    assert found == TABLE[clip, dataset]
    assert recipe.hyperparameters["halves"] == (dataset == "cityscapes")


def test_values_of_a_clip_on_a_data_set_win_and_say_so():
    recipe = compose_recipe("cliper", clip="vit_l14", dataset="voc20")
    origin = "configs/segmentor/cliper.yaml per_clip_dataset.vit_l14.voc20"
    assert (recipe.logit_scale, recipe.origins["logit_scale"]) == (70, origin)
    assert recipe.origins["short_side"] == "configs/segmentor/cliper.yaml recipe"
    given = compose_recipe("cliper", clip="vit_l14", dataset="voc20", overrides={"logit_scale": 9})
    assert given.logit_scale == 9


def test_names_and_templates():
    assert len(TEMPLATES["car15"]) == len(set(TEMPLATES["car15"])) == 15
    assert [template for template in TEMPLATES["car15"] if not template.endswith(".")] == [
        "This is a photo of a {}",
        "There is a {} in the scene",
        "There is the {} in the scene",
        "a photo of a {} in the scene",
    ]
    with_background, none = read_names(CONFIGS / "names" / "voc21" / "cliper.txt")
    without, words = read_names(CONFIGS / "names" / "voc20" / "cliper.txt")
    assert with_background == [words, *without]
    assert none == []
    assert len(words) == 25
    assert without[14] == ["person with clothes, people, human"]
