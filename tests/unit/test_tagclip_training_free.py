"""TagCLIP without training: boxes, texts of both stages, tags, Grad-CAM, and what holds without a background."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.config.recipe import compose_recipe
from ovss_bench.encoders.grad_cam import grad_cam
from ovss_bench.errors import OvssError
from ovss_bench.image import resize
from ovss_bench.ops.attention import balanced
from ovss_bench.ops.boxes import in_boxes, tight_box, to_unit_range
from ovss_bench.ops.position import resample_position
from parity.seeded import query_features, rgb_image


def build(clip, vocabulary, **options):
    return ob.build_segmentor("tagclip_training_free", clip=clip, vocabulary=vocabulary, **options)


def contours(stretched, threshold, mode):
    """The official boxes: those of OpenCV's contours."""
    height, width = stretched.shape
    levels = np.expand_dims((stretched * 255).astype(np.uint8), 2)
    _, high = cv2.threshold(levels, int(threshold * np.max(levels)), 255, cv2.THRESH_BINARY)
    found, _ = cv2.findContours(high, mode, cv2.CHAIN_APPROX_SIMPLE)
    inside = np.zeros((height, width), bool)
    for contour in found:
        x, y, w, h = cv2.boundingRect(contour)
        inside[y : min(y + h, height - 1), x : min(x + w, width - 1)] = True
    return inside


@pytest.mark.parametrize("mode", [cv2.RETR_EXTERNAL, cv2.RETR_TREE], ids=["tags", "maps"])
@pytest.mark.parametrize("size", [(20, 31), (9, 9), (1, 6), (1, 1)])
def test_boxes_are_those_of_contours(size, mode):
    random = np.random.RandomState(5)
    for smooth in (0, 1, 2, 3):
        noise = cv2.GaussianBlur(random.rand(*size).astype(np.float32), (0, 0), smooth) if smooth else random.rand(*size)
        one = to_unit_range(noise.astype(np.float32))
        for threshold in (0.3, 0.7, one.mean()):
            assert np.array_equal(in_boxes(one, threshold), contours(one, threshold, mode))


def test_a_ring_and_what_lies_in_it_have_one_box():
    ring = np.zeros((12, 12), np.float32)
    ring[2:9, 2:9] = 1
    ring[4:7, 4:7] = 0
    ring[5, 5] = 1
    assert np.argwhere(in_boxes(ring, 0.5)).min(0).tolist() == [2, 2]
    assert in_boxes(ring, 0.5).sum() == 49
    assert not in_boxes(np.zeros((4, 4), np.float32), 0.5).any()


def test_constant_maps_are_stretched_to_zero():
    maps = np.stack([np.full((3, 4), 0.7), np.arange(12.0).reshape(3, 4)])
    assert np.array_equal(to_unit_range(maps)[0], np.zeros((3, 4)))
    np.testing.assert_allclose(to_unit_range(maps)[1], maps[1] / 11)


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ((1, 3), (2, 4), (slice(1, 4), slice(2, 5))),
        ((1, 5), (2, 6), (slice(1, 5), slice(2, 6))),  # the last row and column are left out
        ((5, 5), (2, 4), None),
        ((1, 3), (6, 6), None),
    ],
)
def test_a_tight_box_leaves_out_the_last_row_and_column(rows, columns, expected):
    members = np.zeros((6, 7), bool)
    for y in rows:
        for x in columns:
            members[y, x] = True
    assert tight_box(members) == expected
    assert tight_box(np.zeros((6, 7), bool)) is None


def test_grad_cam_is_that_of_hooks_and_autograd(tiny_clip, monkeypatch):
    """By the whole last block, with a gradient from a pass of its own for each text that has a map."""
    pixels = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    text = query_features(4, 5)
    trunk, passes, grad = tiny_clip.trunk(pixels), [], torch.autograd.grad
    with torch.inference_mode(), monkeypatch.context() as patched:
        patched.setattr(torch.autograd, "grad", lambda *args, **options: passes.append(1) or grad(*args, **options))
        found = grad_cam(tiny_clip, trunk, text, 20.0, 3)
    assert len(passes) == len(found) == 3
    block = tiny_clip.block(-1, trunk.grid)
    tokens = trunk.tokens.clone()
    for number in range(3):
        y = block.ln_1(tokens).requires_grad_()
        q, k, v = block.qkv(y)
        x = tokens + block.project((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v)
        x = x + block.mlp(block.ln_2(x))
        embedding = tiny_clip.model.visual.ln_post(x)[0, 1:].mean(0) @ tiny_clip.model.visual.proj
        probability = (20 * (embedding / embedding.norm()) @ text.T).softmax(0)[number]
        (gradient,) = torch.autograd.grad(probability, y)
        weight = gradient[0, 1:].mean(0)
        expected = (y[0, 1:] * weight).sum(1).relu().view(trunk.grid).detach()
        torch.testing.assert_close(found[number], expected, rtol=1e-3, atol=1e-7)
    assert found.max() > 1e-6


def test_region_embeddings_see_the_region_only(tiny_clip):
    """With everything inside they are CLIP's own; another batch, or other patches outside, change nothing in the first block's
    class token, and the mask does change the result."""
    pixels = torch.randn(10, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    everything = torch.ones(10, 14, 14, dtype=torch.bool)
    expected = tiny_clip.embeddings(tiny_clip.trunk(pixels))
    torch.testing.assert_close(tiny_clip.region_embeddings(pixels, everything), expected, rtol=0, atol=1e-5)
    half = everything.clone()
    half[:, :7] = False
    found = tiny_clip.region_embeddings(pixels, half)
    assert (found - expected).abs().max() > 1e-3
    tokens, grid = tiny_clip.embed_patches(pixels[:1])
    for index in range(tiny_clip.depth):
        block = tiny_clip.block(index, grid)
        q, k, v = block.qkv(block.ln_1(tokens))
        logits = q @ k.mT * q.shape[-1] ** -0.5
        logits[:, :, 0, 1:] += torch.where(half[0].flatten(), 0.0, -1000.0)
        tokens = tokens + block.project(logits.softmax(-1) @ v)
        tokens = tokens + block.mlp(block.ln_2(tokens))
    torch.testing.assert_close(found[:1], tiny_clip.head(tokens[:, :1])[:, 0], rtol=0, atol=1e-5)


def test_balancing_is_a_loop_of_divisions():
    maps = torch.rand(6, 6, generator=torch.Generator().manual_seed(3))
    expected = maps.double().numpy()
    for _ in range(3):
        expected = expected / expected.sum(0)
        expected = expected / expected.sum(1)[:, None]
    np.testing.assert_allclose(balanced(maps).numpy(), (expected + expected.T) / 2, rtol=1e-5)


def test_positions_are_rounded_and_sides_go_up_to_a_patch():
    table = torch.randn(10, 4, generator=torch.Generator().manual_seed(4))
    plain, rounded = (resample_position(table, (5, 4), (3, 3), rule) for rule in ("bilinear", "bilinear_fp16"))
    assert torch.equal(plain.half().float(), rounded)
    assert torch.equal(resample_position(table, (3, 3), (3, 3), "bilinear_fp16"), table)
    assert resize(rgb_image(1, 33, 64), "up_to_patch", 336, 2048, 16).shape == (48, 64, 3)
    image = rgb_image(2, 32, 48)
    assert np.array_equal(resize(image, "up_to_patch", 336, 2048, 16), image)


@pytest.mark.parametrize("layers", [{"first_layer": 9, "last_layer": 8}, {"last_layer": 12}, {"cam_first": -1}])
def test_layers_are_those_of_the_tower(layers, tiny_clip, tiny_vocabulary):
    with pytest.raises(OvssError, match=f"{next(iter(layers))}=.*layers 0 to 11"):
        build(tiny_clip, tiny_vocabulary, **layers)


def test_tags_are_above_the_middle_of_the_range(tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary)
    assert segmentor.tags(np.array([0.1, 0.5, 0.31, 0.3])) == [1, 2]
    assert segmentor.tags(np.array([0.2, 0.2, 0.2])) == [0]


def test_the_texts_of_the_maps(tmp_path):
    clip = ob.load_clip("demo")
    layers = {"first_layer": 2, "last_layer": 4, "cam_first": 2, "cam_last": 4}

    def text(names, background, **options):
        vocabulary = ob.Vocabulary.from_names(names, background=background, templates="photo")
        return build(clip, vocabulary, **layers, **options).cam_text

    def expected(names):
        prompts = [f"a clean origami {name}." for name in names]
        return F.normalize(clip.encode_text(prompts), dim=-1)

    file = tmp_path / "texts.txt"
    file.write_text("red >=red cloth\nblue >=blue cloth,striped\n")
    names = [["sand", "grass"], ["red", "scarlet"], "blue"]
    other = ["red cloth", "red cloth", "blue cloth,striped", "sand", "grass"]
    torch.testing.assert_close(text(names, True, cam_texts=str(file)), expected(other))
    torch.testing.assert_close(text(names, True), expected(["red", "scarlet", "blue", "sand", "grass"]))
    torch.testing.assert_close(text(["red", "blue"], False), expected(["red", "blue", "background"]))
    own = build(clip, ob.Vocabulary.from_features(query_features(3, 2, clip.encode_text(["red"]).shape[1])), **layers)
    torch.testing.assert_close(own.cam_text, torch.cat([own.text, expected(["background"])]))


@pytest.mark.parametrize("background", [True, False])
def test_only_tags_win_pixels(background, tiny_clip):
    vocabulary = ob.Vocabulary.from_features(query_features(31, 6), [0, 1, 2, 2, 3, 4], background=background)
    segmentor = build(tiny_clip, vocabulary)
    image = rgb_image(7, 90, 120)
    context = ob.make_context(image, segmentor)
    scores = segmentor.image_scores(context)
    tagged = {*context.by_products["classes"], *([0] if background else [])}
    assert set(ob.segment(segmentor, image).label_map.unique().tolist()) <= tagged
    absent = [c for c in range(5) if c not in tagged]
    assert absent
    assert not scores[absent].any()
    if background:
        torch.testing.assert_close(scores[0], 1 - scores[1:].amax(0), rtol=0, atol=1e-3)


def test_the_crf_changes_labels_and_gives_probabilities(tiny_clip, tiny_vocabulary):
    image = rgb_image(8, 60, 70)
    plain, refined = (ob.segment(build(tiny_clip, tiny_vocabulary, crf=crf), image) for crf in (False, True))
    torch.testing.assert_close(refined.scores.sum(0), torch.ones(60, 70))
    assert (plain.label_map != refined.label_map).any()


def test_published_settings():
    voc, coco, stuff = (
        compose_recipe("tagclip_training_free", clip="vit_b16", dataset=name) for name in ("voc21", "coco_object", "coco_stuff")
    )
    names = ("tag_threshold", "first_layer", "last_layer", "cam_first", "cam_last", "box_threshold")
    values = [tuple(recipe.hyperparameters[name] for name in names) for recipe in (voc, coco, stuff)]
    assert values == [(0.5, 8, 10, 4, 10, 0.4), (0.5, 8, 10, 4, 11, 0.7), (0.1, 0, 10, 4, 11, 0.7)]
    assert {(recipe.resize, recipe.position, recipe.templates, recipe.precision) for recipe in (voc, coco, stuff)} == {
        ("up_to_patch", "bilinear_fp16", "maskclip85", "fp32")
    }
