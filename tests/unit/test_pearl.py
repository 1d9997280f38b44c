"""PEARL: alignment and propagation against plain computations, the ablations, and one pass of the whole image."""

import math

import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.ops.laplacian import certainty, laplacian, laplacian_smoothing, neighbour_weights, text_gains
from ovss_bench.ops.polar import polar


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(clip, vocabulary, **options):
    return ob.build_segmentor("pearl", clip=clip, vocabulary=vocabulary, **options)


@pytest.mark.parametrize("solver", ["polar", "svd"])
def test_attention_of_each_head_written_out(solver, tiny_clip, tiny_vocabulary):
    q, k, v = randn(3, 2, 2, 10, 16)
    own = build(tiny_clip, tiny_vocabulary, align_solver=solver, alpha_kk=0.3)
    found = own.mix(q, k, v, (3, 3))
    for window in range(2):
        for head in range(2):
            one, two, three = q[window, head], k[window, head], v[window, head]
            weights = torch.tensor([0.0, *(row.norm() for row in one[1:])])
            weights /= weights.sum() + 1e-6
            qc, kc = (x - sum(w * row for w, row in zip(weights, x, strict=True)) for x in (one, two))
            correlation = sum(torch.outer(a, b) for a, b in zip(kc, qc, strict=True))
            u, singular, vh = torch.linalg.svd(correlation)
            if solver == "polar":  # the same polynomial of each singular value
                scaled = singular.square() / singular.square().square().sum().sqrt()
                y, z = scaled + 1e-6, torch.ones_like(singular)
                for _ in range(5):
                    factor = (3 - z * y) / 2
                    y, z = y * factor, z * factor
                u = u * (scaled.sqrt() * z)
            logits = (one @ (two @ u @ vh).T + 0.3 * kc @ kc.T) / 4
            torch.testing.assert_close(found[window, head], logits.softmax(-1) @ three, rtol=1e-4, atol=1e-5)


def test_five_steps_shrink_weak_directions_and_many_give_the_rotation():
    u, _, vh = torch.linalg.svd(randn(2, 8, 8))
    singular = torch.tensor([9.0, 8, 7, 6, 5, 4, 3, 0.3])
    matrix = u * singular @ vh
    torch.testing.assert_close(polar(matrix, 40), u @ vh, rtol=0, atol=1e-2)
    few = torch.linalg.svdvals(polar(matrix, 5))
    assert (few[:, -1] < 0.7).all()
    torch.testing.assert_close(few[:, 0], torch.ones(2), rtol=0, atol=1e-3)


def test_the_vanilla_strategy_is_the_last_block_of_clearclip_with_queries_and_keys(tiny_clip, tiny_vocabulary):
    q, k, v = randn(3, 1, 2, 10, 16)
    found = build(tiny_clip, tiny_vocabulary, strategy="vanilla").mix(q, k, v, (3, 3))
    torch.testing.assert_close(found, (q @ k.transpose(-2, -1) / 4).softmax(-1) @ v)


def test_gains_are_the_diagonal_of_the_similarities():
    text = F.normalize(randn(5, 8), dim=-1)
    matrix = (text @ text.T / 0.5).softmax(-1) + 10 * torch.eye(5)
    expected = (matrix / (matrix.sum(-1, keepdim=True) + 1e-6)).diagonal()
    torch.testing.assert_close(text_gains(text), expected)
    assert expected.min() > 0.9


def dense_system(guide, probabilities, gains):
    """Operator (N, N) and confidence (N,) of the cells, edge by edge."""
    _, height, width = guide.shape
    grey = 0.299 * guide[0] + 0.587 * guide[1] + 0.114 * guide[2]

    def agreement(one, other):
        return min(max(sum(float(gains[c] * probabilities[c][one] * probabilities[c][other]) for c in range(len(gains))), 0), 1)

    cells = [(y, x) for y in range(height) for x in range(width)]
    matrix = torch.zeros(len(cells), len(cells))
    for dy, dx in ((0, 1), (1, 0)):
        pairs = [((y, x), (y + dy, x + dx)) for y, x in cells if y + dy < height and x + dx < width]
        differences = [float((grey[a] - grey[b]).abs()) for a, b in pairs]
        mean = sum(differences) / len(differences)
        for (a, b), difference in zip(pairs, differences, strict=True):
            weight = min(math.exp(-5 * difference / (mean + 1e-6)) * (1 + agreement(a, b)), 1)
            i, j = cells.index(a), cells.index(b)
            matrix[i, i] += weight
            matrix[j, j] += weight
            matrix[i, j] -= weight
            matrix[j, i] -= weight
    confidence = [max(float(probabilities[:, y, x].max()), 0.05) ** 2 * (1 + agreement((y, x), (y, x))) for y, x in cells]
    return matrix + torch.diag(torch.tensor(confidence)), torch.tensor(confidence)


def test_the_system_equals_a_dense_one_and_many_iterations_solve_it():
    """Cells of 2 x 3 pixels; a row and two columns are left over."""
    maps, guide, gains = randn(4, 13, 17), randn(3, 13, 17, seed=1), torch.tensor([0.9, 1.0, 0.95, 0.92])
    pooled, small = (F.avg_pool2d(x[:, :12, :15], (2, 3)) for x in (maps, guide))
    matrix, confidence = dense_system(small, pooled.softmax(0), gains)
    cells = pooled.flatten(1)
    down, across = (neighbour_weights(small, pooled.softmax(0), gains, 5.0, axis) for axis in (1, 2))
    certain = certainty(pooled.softmax(0), gains, 0.05)
    torch.testing.assert_close(certain.flatten(), confidence)
    found = certain * pooled + laplacian(pooled, down, across)
    torch.testing.assert_close(found.flatten(1), cells @ matrix.T)
    expected = torch.linalg.solve(matrix.double(), (confidence * cells).T.double()).T.float().view(4, 6, 5)
    smooth = laplacian_smoothing(maps, guide, gains, grid=6, iterations=300)
    torch.testing.assert_close(smooth, F.interpolate(expected[None], (13, 17), mode="bilinear")[0], rtol=0, atol=1e-4)


def test_the_threads_do_not_change_the_result():
    maps, guide, gains = randn(9, 160, 160), randn(3, 160, 160, seed=1), torch.ones(9)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(laplacian_smoothing(maps, guide, gains))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (1, 1)])
def test_images_of_one_row_or_column(size):
    maps = randn(3, *size)
    smooth = laplacian_smoothing(maps, randn(3, *size, seed=1), torch.ones(3))
    assert smooth.shape == maps.shape
    assert smooth.isfinite().all()


def test_without_the_propagation_nothing_is_refined(tiny_clip, tiny_vocabulary):
    assert not build(tiny_clip, tiny_vocabulary, tlp=False).refines
    with pytest.raises(ob.OvssError, match="grid=0 of pearl"):
        build(tiny_clip, tiny_vocabulary, grid=0)
