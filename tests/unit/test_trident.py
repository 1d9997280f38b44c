"""Trident where the reference outputs do not reach: splicing, SAM's correlation and the prompts against plain loops."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.ops.attention import cosine_matrix, proxy_attention
from ovss_bench.ops.sam_prompts import class_prompts
from parity.seeded import clip_input, rgb_image
from stand_ins import sam, vfm


@pytest.fixture
def build(tiny_clip, tiny_vocabulary):
    small = {"short_side": 96, "window": 64, "stride": 32, "vfm": vfm, "sam": sam}

    def of(**options):
        return ob.build_segmentor("trident", clip=tiny_clip, vocabulary=tiny_vocabulary, **small | options)

    return of


@pytest.mark.parametrize(
    ("size", "expected"),
    [((96, 128), (96, 128)), ((96, 130), (112, 144)), ((30, 100), (64, 112)), ((32, 48), (64, 64)), ((100, 96), (112, 112))],
)
def test_the_image_is_enlarged_to_whole_patches_and_a_window(size, expected, build):
    assert build().enlarged(torch.zeros(3, *size)).shape[1:] == expected


def test_windows_share_the_mean_of_their_cosines(build):
    own = build()
    pixels = torch.cat([clip_input(rgb_image(seed, 64, 64)) for seed in (1, 2, 3)])
    features = vfm(ob.WindowBatch(pixels)).flatten(2).transpose(1, 2)
    similarity = cosine_matrix(features)
    mean = torch.stack([each.mean() for each in similarity]).mean()
    trunk = own.clip.trunk(pixels)
    block = own.clip.block(-1, trunk.grid)
    values = block.value_map(trunk.tokens, (8, 8))
    expected = []
    for s, v in zip(similarity, values, strict=True):
        weights = 3 * (s - 1.2 * mean)
        weights[(weights < 0) & ~torch.eye(64, dtype=torch.bool)] = -torch.inf
        expected.append(block.project((weights.softmax(-1) @ v)[None, None])[0].T.unflatten(1, (8, 8)))
    torch.testing.assert_close(own.window_features(pixels), torch.stack(expected), atol=1e-5, rtol=0)
    assert not torch.equal(proxy_attention(similarity), proxy_attention(similarity, mean=mean))


def test_overlapping_windows_are_averaged(build):
    own = build()
    own.window_features = lambda pixels: torch.arange(len(pixels)).float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    canvas = own.spliced(torch.zeros(3, 64, 96))[0]  # two windows, at 0 and 32, of two cells a patch
    assert canvas.shape == (8, 12)
    assert canvas[0].tolist() == [0.0] * 4 + [0.5] * 4 + [1.0] * 4


@pytest.mark.parametrize(("cos_fac", "refine_neg_cos"), [(1.2, True), (-0.5, False), (-0.5, True), (50.0, True)])
def test_the_correlation_head_by_head(cos_fac, refine_neg_cos, build):
    own = build(cos_fac=cos_fac, refine_neg_cos=refine_neg_cos)
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2, 5, 3, 4, generator=generator) + 0.5
    attention = torch.randn(2, 12, 12, generator=generator).softmax(-1)
    canvas = torch.randn(6, 3, 4, generator=generator)
    c = torch.stack([cosine_matrix(head.flatten(1).T) for head in values])
    t = cos_fac * c.mean((0, 2))
    if not refine_neg_cos:
        t[t < 0] = 0.6
    t[t > 0.9] = 0.9
    m = (attention * (c > t[None, :, None])).mean(0)
    expected = (m / m.sum(1, keepdim=True) @ canvas.flatten(1).T).T.view(6, 3, 4)
    found = own.correlated(canvas, SimpleNamespace(values=values, attention=attention))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_halves_see_themselves_only(build):
    own, seen = build(halves=True), []
    own.sam = lambda image: seen.append(image.shape) or sam(image)
    image = rgb_image(2, 60, 90)
    context = ob.ImageContext(image, image, torch.zeros(3, 60, 90), (60, 90))
    canvas = torch.randn(4, 6, 9, generator=torch.Generator().manual_seed(3))
    changed = canvas.clone()
    changed[..., 4:] += 1
    one, other = own.aggregated(canvas, context), own.aggregated(changed, context)
    assert seen[:2] == [(64, 48, 3), (64, 48, 3)]
    assert one.shape == (4, 6, 16)
    assert torch.equal(one[..., :8], other[..., :8])
    assert not torch.equal(one[..., 8:], other[..., 8:])


def test_without_sam_features_are_classified_as_they_are_spliced(build):
    image = rgb_image(5, 96, 128)
    own = build(sam=None)
    context = ob.make_context(image, own)
    features = own.spliced(own.enlarged(context.pixels))
    expected = own.compare(own.clip.project(features.flatten(1).T[None]), features.shape[1:])
    torch.testing.assert_close(own.cosines_of(context.pixels, context), expected)
    labels = ob.segment(own, image).label_map
    assert torch.equal(labels, own.decision.from_scores(own.image_scores(context)))


LABELS = np.array([[0, 0, 1, 1], [0, 2, 1, 3], [2, 0, 3, 1]])
SCORES = np.stack([np.where(c == LABELS, 0.5 + 0.01 * np.arange(12).reshape(3, 4), 0.1 * c) for c in range(3)])


def test_components_become_boxes_and_points():
    """By the corners, too, parts are connected; class 3 is beyond the scores."""
    found = {c: (boxes.tolist(), points.tolist()) for c, boxes, points in class_prompts(LABELS, SCORES, 0.2, 1)}
    assert found[0] == ([[0, 0, 1, 2]], [[1, 2]])
    assert found[1] == ([[2, 0, 3, 2]], [[3, 2]])
    assert found[2] == ([[0, 1, 1, 2]], [[0, 2]])
    assert set(found) == {0, 1, 2}


def test_small_components_and_weak_classes_are_no_prompts():
    assert [(c, len(boxes)) for c, boxes, _ in class_prompts(LABELS, SCORES, 0.2, 2)] == [(0, 1), (1, 1), (2, 1)]
    assert [c for c, *_ in class_prompts(LABELS, 0.1 * SCORES, 0.2, 1)] == []


def refined(own, decode, scores, labels):
    image = np.zeros((*labels.shape, 3), np.uint8)
    context = ob.ImageContext(image, image, torch.zeros(3, *labels.shape), labels.shape)
    context.by_products |= {"scores": scores, "sam": SimpleNamespace(decode=decode)}
    return own.correct(labels, context)


def test_masks_win_by_probability_times_score_and_others_keep_their_labels(build):
    own = build(sam_refine=True, minimal_area=1, coarse_thresh=0.1)
    labels = torch.zeros(64, 64, dtype=torch.int64)
    labels[:, 32:] = 1
    scores = torch.full((4, 64, 64), 0.0)
    scores[0], scores[1] = 0.6, 0.4
    scores[:2, :, 32:] = scores[:2, :, 32:].flip(0)
    prompts = []

    def decode(boxes, points, prompt):
        prompts.append((boxes, prompt))
        logits = torch.full((1, 64, 64), -5.0)
        if len(prompts) == 1:
            logits[:, :32, :48] = 3.0  # class 0 reaches into class 1
        else:
            logits[:, :, 40:] = 3.0
        return logits, torch.tensor([0.95])

    found = refined(own, decode, scores, labels)
    expected = labels.clone()
    expected[:32, 32:40] = 0  # only the mask of class 0 is there; from 40 on, both are, and class 1 has the higher score
    assert torch.equal(found, expected)
    assert prompts[0][0].tolist() == [[0, 0, 15 * 32, 31 * 32]]
    assert prompts[0][1].shape == (256, 256)
    torch.testing.assert_close(prompts[0][1].max(), torch.tensor(0.003))


def test_masks_of_low_predicted_quality_change_nothing(build):
    own = build(sam_refine=True, minimal_area=1, coarse_thresh=0.0)
    labels = torch.arange(4).repeat_interleave(16).expand(64, 64).contiguous()
    scores = F.one_hot(labels, 4).movedim(-1, 0).float()
    found = refined(own, lambda boxes, *_: (torch.ones(len(boxes), 64, 64), torch.full((len(boxes),), 0.8)), scores, labels)
    assert torch.equal(found, labels)


def test_windows_off_the_patches_are_refused(build):
    with pytest.raises(ob.OvssError, match=r"window=60, stride=32: trident joins windows patch by patch"):
        build(window=60)
