"""ResCLIP: the strategies without its parts, residual attention, the labels and ties of the feedback, and the recipe."""

import math

import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.errors import OvssError
from ovss_bench.ops.compose import TILE_BYTES
from ovss_bench.ops.pamr import PAMR
from ovss_bench.ops.vote import tally
from parity.seeded import query_features

OFF = {"use_rcs": False, "use_sfr": False}
GRIDS = [(4, 4), (3, 7), (6, 2), (1, 5), (1, 1), (7, 8)]


def build(clip, vocabulary, name="resclip", **options):
    return ob.build_segmentor(name, clip=clip, vocabulary=vocabulary, **options)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels_of(grid, seed=0, classes=2):
    return torch.randint(0, classes, grid, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("strategy", "residual", "method"),
    [
        ("resclip", None, "naclip"),
        ("naclip", None, "naclip"),
        ("clearclip", None, "clearclip"),
        ("sclip", None, "sclip"),
        ("vanilla", True, "clip"),
    ],
)
def test_without_its_parts_the_strategy_is_left(strategy, residual, method, tiny_clip, tiny_vocabulary):
    batch = ob.WindowBatch(randn(2, 3, 48, 64))
    actual = build(tiny_clip, tiny_vocabulary, strategy=strategy, residual=residual, **OFF).patch_logits(batch)
    expected = build(tiny_clip, tiny_vocabulary, method).patch_logits(batch)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strategy", ["resclip", "clearclip", "sclip", "vanilla"])
@pytest.mark.parametrize("part", [{"use_rcs": False}, {"use_sfr": False}, {"delete_same_entity": False}, {"sfr_pamr_steps": 0}])
def test_every_part_changes_the_result(part, strategy, tiny_clip):
    vocabulary = ob.Vocabulary.from_features(query_features(35, 40))
    batch = ob.WindowBatch(randn(1, 3, 96, 96))
    options = {"strategy": strategy, "temp_thd": 0.0}
    complete, without = (build(tiny_clip, vocabulary, **options | more).patch_logits(batch) for more in ({}, part))
    assert (complete - without).abs().max() > 1e-5


@pytest.mark.parametrize("strategy", ["resclip", "sclip"])
def test_residual_attention_is_a_weighted_sum(strategy, tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary, strategy=strategy, rcs_tau=1.5, rcs_lambda=0.25, rcs_first=2, rcs_last=3)
    trunk = segmentor.trunk(ob.WindowBatch(randn(1, 3, 48, 64)))
    maps = [tiny_clip.block(i, trunk.grid).attention(trunk.states[i]) for i in (2, 3)]
    middle = segmentor.middle_attention(trunk)
    torch.testing.assert_close(middle, (maps[0] + maps[1]) / 2)
    block = tiny_clip.block(-1, trunk.grid)
    q, k, _ = block.qkv(block.ln_1(trunk.tokens))
    own = segmentor.attention(q, k, trunk.grid, None, None)
    torch.testing.assert_close(own.sum(-1), torch.full(own.shape[:-1], 2.0 if strategy == "sclip" else 1.0))
    joint = segmentor.attention(q, k, trunk.grid, middle, None)
    torch.testing.assert_close(joint, 1.5 * (0.75 * own + 0.25 * middle))


def test_feedback_joins_the_products_before_the_softmax(tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary, strategy="clearclip", use_rcs=False, sfr_tau=1.8, sfr_lambda=0.6)
    q, k, feedback = randn(1, 2, 13, 8), randn(1, 2, 13, 8, seed=1), randn(13, 13, seed=2)
    expected = (1.8 * (0.4 * q @ q.transpose(-2, -1) / math.sqrt(8) + 0.6 * feedback)).softmax(-1)
    torch.testing.assert_close(segmentor.attention(q, k, (3, 4), None, feedback), expected)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("classes", [1, 2, 4])
def test_sight_equals_the_plain_loop(grid, classes, tiny_clip, tiny_vocabulary):
    """Section 4, step 6b and c: of the samples of the longest line, only as many as the pair is patches apart."""
    labels = labels_of(grid, classes, classes)
    patches = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    longest = max(grid) - 1
    expected = torch.ones(len(patches), len(patches))
    for i, (y, x) in enumerate(patches):
        for j, (v, u) in enumerate(patches):
            distance = max(abs(y - v), abs(x - u))
            shares = torch.linspace(0, 1, longest + 1)[: distance + 1]
            points = [((1 - t) * torch.tensor([y, x]) + t * torch.tensor([v, u])).round().long() for t in shares]
            if any(labels[tuple(point)] != labels[y, x] for point in points):
                expected[i, j] = math.exp(-distance / longest)
    torch.testing.assert_close(build(tiny_clip, tiny_vocabulary).sight(labels), expected)


@pytest.mark.parametrize(
    ("grid", "other", "pair", "seen"),
    [((1, 31), (0, 8), [(0, 0), (0, 15)], True), ((21, 2), (5, 1), [(10, 1), (0, 0)], False)],
    ids=["31", "21"],
)
def test_the_samples_are_those_of_linspace(grid, other, pair, seen, tiny_clip, tiny_vocabulary):
    """Half way between two patches the last bit of the share decides: k / 30 and k / 20 would be rounded to the other patch."""
    labels = torch.zeros(grid, dtype=torch.int64)
    labels[other] = 1
    (first, second), width = [y * grid[1] + x for y, x in pair], max(grid) - 1
    distance = max(abs(a - b) for a, b in zip(*pair, strict=True))
    expected = 1.0 if seen else math.exp(-distance / width)
    assert float(build(tiny_clip, tiny_vocabulary).sight(labels)[first, second]) == pytest.approx(expected)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("sigma", [0.4, 1.0, 5.0])
def test_ties_are_smoothed_along_the_flattened_index(grid, sigma, tiny_clip, tiny_vocabulary):
    """Step 6a, d and e, without the path test."""
    labels = labels_of(grid).flatten()
    count = len(labels)
    size = min(count, int(6 * sigma + 1))
    half = (size + (size % 2 == 0)) // 2
    weights = {x: math.exp(-(x**2) / (2 * sigma**2)) for x in range(-half, half + 1)}
    expected = torch.zeros(count, count)
    for i in range(count):
        for j in range(count):
            near = [(j + x, weight) for x, weight in weights.items() if 0 <= j + x < count]
            expected[i, j] = sum(weight for other, weight in near if labels[other] == labels[i]) / sum(weights.values())
    expected = expected / expected.sum(1, keepdim=True)
    segmentor = build(tiny_clip, tiny_vocabulary, gaussian_std=sigma, delete_same_entity=False)
    torch.testing.assert_close(segmentor.feedback(labels.view(grid)), expected)


def test_a_patch_takes_the_most_frequent_query_of_its_pixels(tiny_clip):
    vocabulary = ob.Vocabulary.from_features(query_features(36, 6))
    segmentor = build(tiny_clip, vocabulary, temp_thd=0.2, logit_scale=30, sfr_pamr_steps=0)
    cosines, pixels = 0.3 * randn(6, 3, 4), randn(3, 52, 70)  # beyond 3 x 4 patches of 16 pixels
    probability, labels = (30 * F.interpolate(cosines[None], (52, 70), mode="bilinear")[0]).softmax(0).max(0)
    labels[probability < 0.2] = 0
    expected = [
        [labels[16 * y : 16 * y + 16, 16 * x : 16 * x + 16].flatten().bincount().argmax() for x in range(4)] for y in range(3)
    ]
    assert segmentor.patch_labels(cosines, pixels).tolist() == torch.tensor(expected).tolist()
    assert (build(tiny_clip, vocabulary, temp_thd=1.1, sfr_pamr_steps=0).patch_labels(cosines, pixels) == 0).all()


@pytest.mark.parametrize("rows", [1, 7, 10**6])
def test_pixels_are_labelled_in_the_order_of_pamr_and_in_parts(rows, tiny_clip, monkeypatch):
    """Equal to labels of full-size maps; more queries than PAMR refines at a time."""
    cosines, pixels = 0.3 * randn(70, 3, 4), randn(3, 52, 70)
    refined = PAMR(pixels, 10, (8, 16))(F.interpolate(cosines[None], (52, 70), mode="bilinear")[0])
    probability, labels = (30 * refined).softmax(0).max(0)
    least = float(probability.median())
    labels[probability < least] = 0
    tiles = labels[:48, :64].unfold(0, 16, 16).unfold(1, 16, 16).flatten(2)
    vocabulary = ob.Vocabulary.from_features(query_features(36, 70))
    segmentor = build(tiny_clip, vocabulary, temp_thd=least, logit_scale=30, sfr_pamr_steps=10, pamr_dilations=(8, 16))
    monkeypatch.setitem(TILE_BYTES, "cpu", 4 * 70 * rows)
    result = segmentor.patch_labels(cosines, pixels)
    assert result.unique().numel() > 3
    assert torch.equal(result, tally(tiles, 70).argmax(-1))


def test_windows_of_a_batch_do_not_touch_each_other(tiny_clip, tiny_vocabulary):
    segmentor, pixels = build(tiny_clip, tiny_vocabulary), randn(3, 3, 64, 80)
    together = segmentor.patch_logits(ob.WindowBatch(pixels))
    alone = torch.cat([segmentor.patch_logits(ob.WindowBatch(window[None])) for window in pixels])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_the_first_pass_knows_the_logit_scale(tiny_clip):
    vocabulary = ob.Vocabulary.from_features(query_features(35, 12))
    segmentor, batch = build(tiny_clip, vocabulary), ob.WindowBatch(randn(1, 3, 96, 96))
    other = segmentor.with_recipe(segmentor.recipe.override(logit_scale=5.0))  # all probabilities fall below temp_thd
    assert (segmentor.patch_logits(batch) - other.patch_logits(batch)).abs().max() > 1e-5


@pytest.mark.parametrize("blocks", [{"rcs_first": -1}, {"rcs_last": 12}, {"rcs_first": 9}], ids=str)
def test_blocks_that_do_not_exist_are_refused(blocks, tiny_clip, tiny_vocabulary):
    with pytest.raises(OvssError, match=f"{next(iter(blocks))}={next(iter(blocks.values()))}.*0 to 11"):
        build(tiny_clip, tiny_vocabulary, **blocks).patch_logits(ob.WindowBatch(randn(1, 3, 32, 32)))


@pytest.mark.parametrize(
    ("dataset", "window", "threshold", "temp_thd", "rcs", "sfr"),
    [
        ("voc21", "whole", 0.1, 0.5, (2.0, 0.3), (2.2, 0.7)),
        ("voc20", "whole", 0, 0.1, (2.0, 0.6), (2.1, 0.6)),
        ("context60", 224, 0.1, 0.3, (2.0, 0.3), (1.8, 0.7)),
        ("context59", 224, 0, 0.25, (2.0, 0.4), (1.8, 0.7)),
        ("coco_object", 224, 0.1, 0.11, (2.0, 0.4), (1.8, 0.7)),
        ("coco_stuff", 224, 0, 0.11, (2.0, 0.4), (1.8, 0.7)),
        ("cityscapes", 224, 0, 0.1, (2.0, 0.2), (2.1, 0.6)),
        ("ade20k", 224, 0, 0.25, (2.0, 0.3), (2.1, 0.7)),
    ],
)
def test_published_settings_are_reached(dataset, window, threshold, temp_thd, rcs, sfr):
    """The settings of docs/methods/resclip.md."""
    recipe = ob.compose_recipe("resclip", clip="vit_b16", dataset=dataset)
    own = recipe.hyperparameters
    assert (recipe.window, recipe.stride, recipe.threshold, own["temp_thd"]) == (window, 112, threshold, temp_thd)
    assert (own["rcs_tau"], own["rcs_lambda"]) == rcs
    assert (own["sfr_tau"], own["sfr_lambda"]) == sfr
    assert (recipe.short_side, recipe.logit_scale, recipe.pamr_steps) == (560 if dataset == "cityscapes" else 336, 40, 0)
