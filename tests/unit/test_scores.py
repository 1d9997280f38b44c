"""From cosines to labels, against the dense product of the official codes (CLIP's softmax, SCLIP's area threshold)."""

import pytest
import torch
import torch.nn.functional as F

from ovss_bench.ops.scores import Decision
from ovss_bench.vocabulary import Vocabulary

GROUPS = {
    "one_each": [0, 1, 2, 3],
    "synonyms": [0, 0, 0, 1, 2, 2, 3],
    "unsorted": [2, 0, 1, 0, 3, 2, 0],
    "distractors": [0, 0, 1, 2, -1, 3, -1, -1],
    "distractors_first": [-1, 1, 0, -1, 2],
    "class_without_query": [0, 0, 2, 3],
    "single": [0],
}


def vocabulary_of(group, background=False):
    return Vocabulary.from_features(torch.eye(len(group)), group, background=background)


def cosines_of(group, height=40, width=50, seed=0):
    return torch.rand(len(group), height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5


def labelled(cosines, vocabulary, scale, threshold):
    ordered = cosines[vocabulary.by_class[1]]
    decision = Decision(vocabulary, scale, threshold)
    labels = decision.from_cosines([ordered.movedim(0, -1).clone(memory_format=torch.contiguous_format)])
    for size in (1, 2, len(ordered)):
        parts = [part.movedim(0, -1) for part in ordered.clone().split(size)]
        assert torch.equal(decision.from_cosines(parts), labels), size
    return labels


def official_scores(cosines, group, scale):
    """SCLIP's clip_segmentor.py: softmax, times a one-hot mask (C, Q), maximum over the queries."""
    probabilities = (cosines * scale).softmax(0)
    one_hot = torch.stack([torch.tensor([g == c for g in group]) for c in range(max(group) + 1)])
    return (probabilities[None] * one_hot[..., None, None]).amax(1)


@pytest.mark.parametrize("scale", [1, 40, 100.0])
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_class_scores_equal_the_dense_product(group, scale):
    cosines = cosines_of(group)
    expected = official_scores(cosines, group, scale)
    torch.testing.assert_close(Decision(vocabulary_of(group), scale).class_scores(cosines), expected, rtol=0, atol=1e-14)
    in_single = Decision(vocabulary_of(group), scale).class_scores(cosines.float())
    torch.testing.assert_close(in_single, expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.9, 1.1])
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_label_agrees_with_the_class_scores(group, threshold):
    cosines, vocabulary = cosines_of(group), vocabulary_of(group, background=True)
    scores = official_scores(cosines, group, 10)
    expected = torch.where(scores.amax(0) < threshold, 0, scores.argmax(0))
    assert torch.equal(labelled(cosines, vocabulary, 10, threshold), expected)
    decision = Decision(vocabulary, 10, threshold)
    assert torch.equal(decision.from_scores(decision.class_scores(cosines)), expected)


@pytest.mark.parametrize("group", [[0, 1, 2], [2, 1, 0], [1, 0, 0]], ids=str)
def test_equal_queries_give_the_first_class(group):
    cosines = torch.full((3, 4, 5), 0.25)
    vocabulary = vocabulary_of(group)
    decision = Decision(vocabulary, 40)
    assert (decision.from_scores(decision.class_scores(cosines)) == 0).all()
    assert (labelled(cosines, vocabulary, 40, 0) == 0).all()


@pytest.mark.parametrize("background", [0, 2])
def test_the_background_class_gets_what_is_below_the_threshold(background):
    group = [0, 1, 2, 3]
    vocabulary = vocabulary_of(group, background)
    cosines = torch.zeros(4, 1, 3)
    cosines[3, 0, 1:] = torch.tensor([0.05, 1.0])
    assert labelled(cosines, vocabulary, 10, 0.5).tolist() == [[background, background, 3]]


def test_a_score_at_the_threshold_stays():
    decision = Decision(vocabulary_of([0, 1], background=True), threshold=0.5)
    assert decision.from_scores(torch.tensor([[0.25], [0.5]])).tolist() == [1]


def official_area_threshold(scores, share, background):
    """SCLIP's code in words: count, compare, multiply by zero."""
    winners = scores.argmax(0)
    counts = {c: int((winners == c).sum()) for c in range(len(scores)) if c != background}
    result = scores.clone()
    for c, count in counts.items():
        if count <= share * sum(counts.values()):
            result[c] *= 0
    return result


@pytest.mark.parametrize("background", [0, 3])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_area_threshold_equals_the_plain_loop(seed, share, background):
    coarse = torch.rand(1, 6, 5, 6, generator=torch.Generator().manual_seed(seed)) * torch.tensor(
        [1.2, 1.0, 0.8, 1.1, 0.4, 1]
    ).view(1, 6, 1, 1)
    scores = F.interpolate(coarse, (37, 41), mode="nearest")[0]
    expected = official_area_threshold(scores, share, background)
    decision = Decision(vocabulary_of(range(6), background), area_threshold=share)
    assert torch.equal(decision.without_small_classes(scores), expected)


def test_area_threshold_without_any_foreground_leaves_the_background():
    scores = torch.zeros(3, 4, 4)
    scores[0] = 1
    decision = Decision(vocabulary_of([0, 1, 2], background=True), area_threshold=0.1)
    assert torch.equal(decision.without_small_classes(scores), scores)


@pytest.mark.parametrize("threshold", [0.0, 0.3])
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_a_bias_is_added_to_the_cosines_and_minus_infinity_removes_queries(group, threshold):
    cosines, vocabulary = cosines_of(group), vocabulary_of(group, background=True)
    decision = Decision(vocabulary, 10, threshold)
    bias = torch.linspace(-0.3, 0.3, len(group), dtype=torch.float64)
    bias[: len(group) - 1 : 2] = -torch.inf  # also of a whole first part
    if all(c < 0 for c, b in zip(group, bias.tolist(), strict=True) if b > -torch.inf):
        bias[group.index(max(group))] = 0
    expected = decision.from_scores(decision.class_scores(cosines + bias[:, None, None]))
    order = vocabulary.by_class[1]
    for size in (1, 2, len(group)):
        parts = [part.movedim(0, -1) for part in cosines[order].split(size)]
        assert torch.equal(decision.from_cosines(parts, bias[order]), expected), size
