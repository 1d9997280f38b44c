"""CLIPtrase: the correlation, the vote, the order of the queries, windows, and the recipes; and the vote inside regions."""

import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.ops.vote import majority_vote
from ovss_bench.segmentors.cliptrase import medians
from parity.seeded import query_features, rgb_image

IMAGE = rgb_image(71, 90, 130)


def build(clip, vocabulary, **options):
    return ob.build_segmentor("cliptrase", clip=clip, vocabulary=vocabulary, **({"short_side": 96} | options))


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("skip", [None, -7, 3, 99])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
def test_the_vote_equals_the_plain_loop(dtype, skip):
    labels = torch.randint(0, 5, (23, 31), generator=generator(0))
    regions = torch.tensor([-7, 0, 3, 1000, 8])[torch.randint(0, 5, (23, 31), generator=generator(1))].to(dtype)
    expected = labels.clone()
    for region in regions.unique():
        inside = regions == region
        if region != skip:
            expected[inside] = labels[inside].bincount().argmax()
    assert torch.equal(majority_vote(labels, regions, skip), expected)


def test_of_equally_frequent_labels_the_smallest_wins():
    labels = torch.tensor([[3, 3, 1, 1, 0], [4, 2, 2, 4, 7]])
    regions = torch.tensor([[5, 5, 5, 5, 5], [6, 6, 6, 6, 6]])
    assert majority_vote(labels, regions).tolist() == [[1] * 5, [2] * 5]
    assert majority_vote(labels, regions, skip=5).tolist() == [[3, 3, 1, 1, 0], [2] * 5]


def test_the_correlation_equals_the_mean_of_all_cosines(tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary)
    trunk = segmentor.trunk(ob.WindowBatch(torch.randn(2, 3, 48, 64, generator=generator(2))))
    state = trunk.states[10]
    block = tiny_clip.block(10, trunk.grid)  # the eleventh of twelve
    cosines = [F.cosine_similarity(u[1, :, :, None], u[1, :, None], dim=-1) for u in block.qkv(block.ln_1(state))]
    mean = torch.stack(cosines).mean((0, 1))
    expected = torch.relu(mean[1:, 1:] - mean[:1, 1:])
    torch.testing.assert_close(segmentor.correlation(state[1]), expected, rtol=0, atol=1e-6)
    plain = build(tiny_clip, tiny_vocabulary, denoise=False).correlation(state[1])
    torch.testing.assert_close(plain, mean[1:, 1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("background", "order"), [(None, [2, 5, 0, 6, 1, 4]), (0, [0, 6, 1, 4, 2, 5]), (2, [2, 5, 0, 6, 1, 4])], ids=str
)
def test_queries_compete_alone_the_background_s_last(background, order, tiny_clip):
    group = [1, 2, 0, -1, 2, 0, 1]
    vocabulary = ob.Vocabulary.from_features(query_features(31, 7), group, background=background)
    segmentor = build(tiny_clip, vocabulary)
    cosines = torch.randn(7, 4, 5, generator=generator(3))
    assert segmentor.order == order
    scores = segmentor.scores(cosines)
    assert torch.equal(scores, 100 * cosines[order])
    best = cosines.index_fill(0, torch.tensor([3]), -torch.inf).argmax(0)  # the distractor is nobody's
    assert torch.equal(segmentor.decide(scores, None), torch.tensor(group)[best])
    tie = segmentor.decide(torch.zeros(6, 1, 1), None)
    assert tie.item() == group[order[0]]


def test_thresholds_of_the_recipe_have_no_part(tiny_clip, tiny_vocabulary):
    with pytest.raises(ob.OvssError, match=r"threshold=0.9 \(from argument\) has no effect on cliptrase"):
        build(tiny_clip, tiny_vocabulary, threshold=0.9)


def test_the_class_token_weighs_the_queries(tiny_clip, tiny_vocabulary):
    batch = ob.WindowBatch(torch.randn(2, 3, 48, 64, generator=generator(4)))
    plain, weighting = (build(tiny_clip, tiny_vocabulary, cls_weighting=on) for on in (False, True))
    trunk = plain.trunk(batch)
    x = plain.last_block(tiny_clip.block(-1, trunk.grid), trunk.tokens)
    weights = tiny_clip.head(x[:, 0]) @ plain.text.T
    cosines = plain.patch_logits(batch)
    torch.testing.assert_close(weighting.patch_logits(batch), cosines * weights[..., None, None])
    torch.testing.assert_close(weighting.scores(cosines[0]), 100**2 * cosines[0][weighting.order])


def test_noise_alone_leaves_the_labels(tiny_clip, tiny_vocabulary):
    expected = ob.segment(build(tiny_clip, tiny_vocabulary, vote=False), IMAGE).label_map
    assert torch.equal(ob.segment(build(tiny_clip, tiny_vocabulary, eps=1e-3), IMAGE).label_map, expected)


def test_every_region_gets_one_label(tiny_clip, tiny_vocabulary):
    vocabulary = ob.Vocabulary.from_features(query_features(35, 40))
    voting, plain = (build(tiny_clip, vocabulary, short_side=160, eps=0.4, min_samples=2, vote=vote) for vote in (True, False))
    scene = ob.make_context(IMAGE, voting)
    correlation = voting.correlation(voting.state(scene))
    clusters = voting.clusters(correlation)
    regions = voting.voting_regions(correlation, clusters, scene)
    assert clusters.unique().tolist() == list(range(-1, 10))
    assert regions.shape == (160, 160)
    labels = ob.segment(plain, IMAGE).label_map
    assert torch.equal(ob.segment(voting, IMAGE).label_map, majority_vote(labels, regions))


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 11])
@pytest.mark.parametrize("shape", [(3, 20, 17), (2, 4, 3), (1, 1, 9)])  # also maps smaller than the squares
def test_medians_equal_scipys(shape, side):
    maps = torch.randn(shape, generator=generator(6)).numpy()
    assert (medians(maps, side) == scipy.ndimage.median_filter(maps, (1, side, side))).all()


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, [(96, 96)]),
        ({"vote": False}, [(96, 96)]),
        ({"resize": "none", "window": 64, "stride": 32, "vote": False}, [(64, 64)]),
        ({"resize": "none", "window": 64, "stride": 32}, [(64, 64), (96, 144)]),  # of 90 x 130 pixels
        ({"resize": "none"}, [(90, 130), (96, 144)]),
    ],
)
def test_regions_take_one_pass_of_the_whole_image(options, passes, tiny_clip, tiny_vocabulary, monkeypatch):
    shapes, original = [], ob.DenseCLIP.trunk

    def trunk(self, pixels, *arguments):
        shapes.append(tuple(pixels.shape[2:]))
        return original(self, pixels, *arguments)

    monkeypatch.setattr(ob.DenseCLIP, "trunk", trunk)
    prediction = ob.segment(build(tiny_clip, tiny_vocabulary, **options), IMAGE)
    assert shapes == passes
    assert prediction.label_map.shape == (IMAGE.shape[:2] if "resize" in options else (96, 96))


def test_both_halves_of_the_readme_s_table():
    small, large = (ob.compose_recipe(name, clip="vit_b16", dataset="voc21") for name in ("cliptrase", "cliptrase_336"))
    own = small.hyperparameters, large.hyperparameters
    assert [(recipe.short_side, recipe.window, recipe.resize, recipe.scored_at) for recipe in (small, large)] == [
        (side, "whole", "center_crop", "resized") for side in (224, 336)
    ]
    assert [(values["eps"], values["min_samples"]) for values in own] == [(0.7, 3), (1.1, 7)]
    assert [(values["ratio"], values["median"], values["cls_weighting"]) for values in own] == [(4, 7, False)] * 2
    assert (small.logit_scale, small.normalize, small.names) == (100, "clip_exact", "cliptrase")
    assert ob.compose_recipe("cliptrase", dataset="voc20").hyperparameters["cls_weighting"]


@pytest.mark.parametrize("name", ["eps", "min_samples", "ratio", "median"])
def test_values_that_cluster_nothing_are_refused(name, tiny_clip, tiny_vocabulary):
    with pytest.raises(ob.OvssError, match=f"{name}=0 of cliptrase"):
        build(tiny_clip, tiny_vocabulary, **{name: 0})


def test_of_equally_frequent_labels_the_background_loses(tiny_clip, tiny_vocabulary, monkeypatch):
    segmentor = build(tiny_clip, tiny_vocabulary)
    monkeypatch.setattr(type(segmentor), "voting_regions", lambda *_: torch.zeros(2, 2, dtype=torch.int64))
    scene = ob.make_context(IMAGE, segmentor)
    assert segmentor.vocabulary.background == 0
    for labels, expected in (([[0, 3], [3, 0]], 3), ([[0, 2], [3, 0]], 0), ([[1, 2], [2, 1]], 1)):
        assert segmentor.correct(torch.tensor(labels), scene).unique().tolist() == [expected]
