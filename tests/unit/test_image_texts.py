"""Texts adjusted to each window: the clusters of queries, and which text moves where."""

import pytest
import torch
import torch.nn.functional as F

from ovss_bench.ops.image_texts import adjusted_texts, query_clusters
from parity.seeded import query_features


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def together(clusters):
    return {frozenset(i for i, c in enumerate(clusters) if c == number) for number in set(clusters)}


def on_a_circle(*degrees):
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_complete_linkage_looks_at_the_farthest_pair():
    """30, 40 and 50 degrees apart: 1 - cos is 0.13, 0.23 and 0.36, of the ends 0.66 and more."""
    text = on_a_circle(0, 30, 70, 120)
    assert together(query_clusters(text, 0.1, "complete")) == {frozenset({i}) for i in range(4)}
    assert together(query_clusters(text, 0.14, "complete")) == {frozenset({0, 1}), frozenset({2}), frozenset({3})}
    assert together(query_clusters(text, 0.37, "complete")) == {frozenset({0, 1}), frozenset({2, 3})}
    assert together(query_clusters(text, 1.6, "complete")) == {frozenset(range(4))}


@pytest.mark.parametrize("linkage", ["complete", "ward"])
def test_clusters_count_from_zero_and_agree_with_a_plain_agglomeration(linkage):
    """Lance and Williams' updates of the distances, and merges as long as the closest pair is not beyond the cut."""
    text = query_features(5, 25, 16)
    squared = linkage == "ward"
    distance = 1 - text.double() @ text.double().T
    between = {frozenset((i, j)): float(distance[i, j]) for i in range(25) for j in range(i)}
    members = {i: [i] for i in range(25)}
    cut = 0.8
    while True:
        pair = min(between, key=between.get)
        if between[pair] > cut:
            break
        a, b = sorted(pair)
        for c in members.keys() - pair:
            ac, bc, ab = (between[frozenset(p)] for p in ((a, c), (b, c), (a, b)))
            na, nb, nc = len(members[a]), len(members[b]), len(members[c])
            ward = (((na + nc) * ac**2 + (nb + nc) * bc**2 - nc * ab**2) / (na + nb + nc)) ** 0.5
            between[frozenset((a, c))] = ward if squared else max(ac, bc)
        members[a] += members.pop(b)
        between = {p: value for p, value in between.items() if b not in p}
    found = query_clusters(text, cut, linkage)
    assert together(found) == {frozenset(each) for each in members.values()}
    assert set(found) == set(range(len(members)))
    assert 1 < len(members) < 25


def test_one_query_is_a_cluster():
    assert query_clusters(query_features(5, 1, 16), 0.1, "complete") == [0]


@pytest.mark.parametrize("patches", [30, 2, 1])
def test_the_best_query_of_each_cluster_moves_to_its_patches(patches):
    text, places, image = unit(6, 8), unit(3, patches, 8, seed=1), unit(3, 6, seed=2)
    clusters = [2, 0, 0, 1, 2, 0]
    found = adjusted_texts(text, torch.tensor(clusters), places, image, 0.3)
    expected = text.repeat(3, 1, 1)
    for window in range(3):
        for cluster in range(3):
            members = [q for q in range(6) if clusters[q] == cluster]
            q = max(members, key=lambda q: float(image[window, q]))
            order = sorted(range(patches), key=lambda i: -float(places[window, i] @ text[q]))[:2]
            target = F.normalize(places[window, order].mean(0), dim=0)
            expected[window, q] = F.normalize(0.7 * text[q] + 0.3 * target, dim=0)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert ((found - text).abs().amax(2) > 1e-3).sum(1).tolist() == [3, 3, 3]


def test_of_equal_queries_the_first_moves():
    text = unit(1, 8).expand(3, 8)
    found = adjusted_texts(text, torch.zeros(3, dtype=torch.int64), unit(1, 9, 8, seed=3), torch.full((1, 3), 0.2), 0.5)
    assert ((found - text).abs().amax(2) > 1e-3).tolist() == [[True, False, False]]
