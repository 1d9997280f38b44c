"""CLIP-DIY: the pyramid of patches, their classification, the foreground map, and lists as hyperparameters."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import ovss_bench as ob
from ovss_bench.config.recipe import compose_recipe
from ovss_bench.files import load_config
from ovss_bench.inference.engine import make_context
from parity.seeded import clip_input, query_features, rgb_image

IMAGE = rgb_image(62, 70, 100)
SMALL = {"foreground": None, "short_side": 64, "patch_sizes": [64, 32], "weights": [1, 1], "scored_at": "original"}


def build(clip, vocabulary, **options):
    return ob.build_segmentor("clip_diy", clip=clip, vocabulary=vocabulary, **(SMALL | options))


def cosines_of(segmentor, image):
    return segmentor.patch_cosines(ob.ImageContext(image, image, torch.empty(0), image.shape[:2]))


def test_patches_are_classified_as_images(tiny_clip, tiny_vocabulary):
    """The pyramid 1 + 9 + 49, row by row; Pillow's resize and the unmodified CLIP for each patch."""
    image = rgb_image(63, 64, 64)
    segmentor = build(tiny_clip, tiny_vocabulary, patch_sizes=[64, 32, 16], weights=[1, 1, 1])
    grids = cosines_of(segmentor, image)
    assert [tuple(grid.shape) for grid in grids] == [(7, 1, 1), (7, 3, 3), (7, 7, 7)]
    for grid, row, column, size in ((0, 0, 0, 64), (1, 0, 2, 32), (1, 2, 1, 32), (2, 3, 6, 16)):
        y, x = row * size // 2, column * size // 2
        patch = Image.fromarray(image[y : y + size, x : x + size]).resize((224, 224), Image.Resampling.BICUBIC)
        with torch.no_grad():
            embedding = F.normalize(tiny_clip.model.encode_image(clip_input(np.array(patch))), dim=-1)
        expected = (embedding @ tiny_vocabulary.given_features.T)[0]
        torch.testing.assert_close(grids[grid][:, row, column], expected, atol=1e-5, rtol=0)


def test_passes_of_any_size_give_the_same(tiny_clip, tiny_vocabulary, monkeypatch):
    segmentor = build(tiny_clip, tiny_vocabulary)
    expected = cosines_of(segmentor, rgb_image(63, 64, 64))
    monkeypatch.setattr("ovss_bench.segmentors.base.IMAGES_PER_PASS", 4)
    for one, other in zip(cosines_of(segmentor, rgb_image(63, 64, 64)), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_maps_are_a_weighted_mean_over_sizes(tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary, weights=[0.5, 2])
    scene = make_context(IMAGE, segmentor)
    whole, patches = segmentor.patch_cosines(scene)
    expected = (0.5 * whole.expand(7, 64, 64) + 2 * F.interpolate(patches[None], (64, 64), mode="bilinear")[0]) / 2
    torch.testing.assert_close(segmentor.image_scores(scene), expected.softmax(0))


def test_the_foreground_weighs_background_against_the_rest(tiny_clip, tiny_vocabulary):
    plain = build(tiny_clip, tiny_vocabulary)
    scene = make_context(IMAGE, plain)
    objects = np.random.RandomState(0).rand(70, 100).astype(np.float32)
    whole, patches = plain.patch_cosines(scene)
    maps = (whole.expand(7, 64, 64) + F.interpolate(patches[None], (64, 64), mode="bilinear")[0]) / 2
    weight = F.interpolate(torch.from_numpy(objects)[None, None], (64, 64), mode="bilinear")[0]
    expected = torch.cat([maps[:3] * (1 - weight), maps[3:] * weight]).softmax(0)
    given = build(tiny_clip, tiny_vocabulary, foreground=lambda _: objects)
    torch.testing.assert_close(given.image_scores(make_context(IMAGE, given)), expected)


def test_without_a_background_class_the_foreground_is_not_asked(tiny_clip):
    def refuse(_):
        raise AssertionError("the foreground was computed")

    vocabulary = ob.Vocabulary.from_features(query_features(31, 7))
    expected = ob.segment(build(tiny_clip, vocabulary), IMAGE)
    assert torch.equal(ob.segment(build(tiny_clip, vocabulary, foreground=refuse), IMAGE).label_map, expected.label_map)


def test_labels_are_decided_on_the_square_and_by_query(tiny_clip):
    vocabulary = ob.Vocabulary.from_features(query_features(31, 7), [1, 0, 2, 1, -1, -1, 0])
    segmentor = build(tiny_clip, vocabulary)
    prediction = ob.segment(segmentor, IMAGE, output_size=(64, 64))
    assert prediction.scores.shape == (7, 64, 64)
    known = torch.tensor([0, 1, 2, 3, 6])
    expected = torch.tensor(vocabulary.group)[known][prediction.scores[known].argmax(0)]
    assert torch.equal(prediction.label_map, expected)
    full = ob.segment(segmentor, IMAGE).label_map
    rows, columns = torch.arange(70) * 64 // 70, torch.arange(100) * 64 // 100
    assert torch.equal(full, expected[rows[:, None], columns])


def test_sizes_beyond_the_image_become_its_short_side(tiny_clip, tiny_vocabulary):
    image = rgb_image(63, 40, 90)
    grids = cosines_of(build(tiny_clip, tiny_vocabulary), image)
    assert [tuple(grid.shape[1:]) for grid in grids] == [(1, 3), (1, 4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0]}, "weights"),
        ({"stride_divisor": 0}, "stride_divisor=0"),
        ({"stride_divisor": 33}, "stride_divisor=33"),
        ({"patch_sizes": [64, -32]}, "patch_sizes"),
        ({"patch_sizes": [64, 32.5]}, "patch_sizes"),
        ({"patch_sizes": []}, "patch_sizes"),
        ({"patch_sizes": 64}, "patch_sizes"),
        ({"patch_sizes": [True, 32]}, "patch_sizes"),
        ({"weights": ["1", "2"]}, "weights"),
        ({"weights": None}, "weights"),
    ],
    ids=repr,
)
def test_bad_values_are_refused_by_name(options, message, tiny_clip, tiny_vocabulary):
    with pytest.raises(ob.OvssError, match=message):
        build(tiny_clip, tiny_vocabulary, **options)


def test_lists_become_tuples():
    recipe = compose_recipe("clip_diy", overrides={"patch_sizes": [9, 8], "weights": (1, 0.5)})
    assert recipe.hyperparameters["patch_sizes"] == (9, 8)
    assert recipe.hyperparameters["weights"] == (1, 0.5)
    assert compose_recipe("clip_diy").hyperparameters["patch_sizes"] == (256, 128, 64)


def test_the_checkpoint_of_the_paper_has_a_configuration():
    entry = load_config("clip", "vit_b32_laion2b")
    assert entry.pop("training")
    assert entry == {"architecture": "ViT-B-32", "pretrained": "laion2b_s34b_b79k", "activation": "gelu"}
