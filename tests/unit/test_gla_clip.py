"""GLA-CLIP and attention over all windows: formulas patch by patch, ablations, and what all windows together change."""

import math

import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.inference.engine import predict
from ovss_bench.ops.across_windows import attend_by_rows
from parity.seeded import rgb_image
from stand_ins import vfm

SMALL = {"short_side": 80, "window": 64, "stride": 32, "pad_multiple": None}


@pytest.fixture
def build(tiny_clip, tiny_vocabulary):
    return lambda **options: ob.build_segmentor(
        "gla_clip", clip=tiny_clip, vocabulary=tiny_vocabulary, **SMALL | {"vfm": vfm} | options
    )


def random(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_anchor(keys, i, rho, iterations):
    """The proxy of one patch and the size of its last set, by loops."""
    q, near = keys[i], []
    for _ in range(iterations):
        near = [j for j in range(len(keys)) if float(q @ keys[j]) > rho] or [i]
        q = F.normalize(sum(keys[j] for j in near) / (len(near) + 1e-6), dim=0)
    return q, len(near)


def plain_row(cosines, shift, scale):
    logits = [scale * (float(c) - shift * max(float(cosines.mean()), 0)) for c in cosines]
    least = min(max(logits), 0)
    weights = [math.exp(each) if each >= least else 0 for each in logits]
    return torch.tensor(weights) / sum(weights)


@pytest.mark.parametrize(("rho", "iterations"), [(0.3, 2), (0.55, 1), (0.999999, 2)])
def test_attention_patch_by_patch(build, rho, iterations):
    keys = F.normalize(random(30, 4), dim=1)
    segmentor = build(rho=rho, iterations=iterations)
    found = torch.cat([segmentor.attention(keys, slice(start, start + 7), 5) for start in range(0, 30, 7)])
    for i in range(30):
        q, count = plain_anchor(keys, i, rho, iterations)
        expected = plain_row(keys @ q, 1 + 0.3 * math.log(6), 1 + 30 / count)
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=0)


def test_without_iterations_keys_are_counted_but_queries_stay(build):
    keys = F.normalize(random(20, 4), dim=1)
    anchors, counts = build(iterations=0, rho=0.4).anchors(keys, slice(5, 12))
    assert torch.equal(anchors, keys[5:12])
    assert counts.tolist() == [sum(float(keys[i] @ k) > 0.4 for k in keys) for i in range(5, 12)]


def test_a_masked_row_keeps_its_highest_entry(build):
    keys = F.normalize(torch.ones(6, 3) + 0.1 * random(6, 3), dim=1)  # all alike: everything is below u times the mean
    rows = build().attention(keys, slice(0, 6), 4)
    assert (rows.sort(1).values == torch.tensor([0.0, 0, 0, 0, 0, 1])).all()


def test_without_extension_every_window_is_alone_and_proxies_meet_proxies(build):
    segmentor, batch = build(extension=False, rho=0.3), ob.WindowBatch(random(3, 3, 64, 64))
    keys = segmentor.keys(vfm(batch))
    values = random(*keys.shape[:2], 8, seed=4)
    for window, v in zip(keys, values, strict=True):
        anchors = torch.stack([plain_anchor(window, i, 0.3, 2)[0] for i in range(len(window))])
        expected = torch.stack([plain_row(anchors @ q, 1.2, 3.0) for q in anchors]) @ v
        torch.testing.assert_close(segmentor.attend(window, v, 1), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(segmentor.image_logits(batch), segmentor.patch_logits(batch), atol=1e-6, rtol=0)


def test_values_are_those_of_the_last_block_without_the_class_token(build, tiny_clip):
    """Logits from open_clip's own parts, for two windows that see each other."""
    segmentor, batch = build(), ob.WindowBatch(random(2, 3, 64, 64))
    found, trunk = segmentor.image_logits(batch), batch.trunk
    last, visual = tiny_clip.model.visual.transformer.resblocks[-1], tiny_clip.model.visual
    width = visual.proj.shape[0]
    with torch.inference_mode():
        v = F.linear(last.ln_1(trunk.tokens), last.attn.in_proj_weight[-width:], last.attn.in_proj_bias[-width:])[:, 1:]
        v = F.interpolate(v.transpose(1, 2).unflatten(2, (4, 4)), (8, 8), mode="bilinear").flatten(2).transpose(1, 2)
        keys = F.normalize(vfm(batch).flatten(2), dim=1).transpose(1, 2).flatten(0, 1)
        attention = segmentor.attention(keys, slice(0, 128), 2)
        features = visual.ln_post(last.attn.out_proj(attention @ v.flatten(0, 1))) @ visual.proj
        expected = (F.normalize(features, dim=1) @ segmentor.text.T).view(2, 8, 8, -1).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_windows_see_each_other_and_a_window_alone_is_an_image_of_one(build):
    segmentor, pixels = build(), random(3, 3, 64, 64)
    together, alone = segmentor.image_logits(ob.WindowBatch(pixels)), segmentor.patch_logits(ob.WindowBatch(pixels))
    assert (together - alone).abs().amax((1, 2, 3)).min() > 1e-3
    for window, expected in zip(pixels, alone, strict=True):
        torch.testing.assert_close(segmentor.image_logits(ob.WindowBatch(window[None]))[0], expected, atol=1e-5, rtol=0)


def test_an_image_gets_the_attention_of_all_its_windows(build):
    """The whole pipeline against its parts: windows cut by hand, logits, interpolation, average."""
    segmentor, image = build(scored_at="resized"), rgb_image(4, 80, 112)
    context = ob.make_context(image, segmentor)
    corners = [(y, x) for y in (0, 16) for x in (0, 32, 48)]
    windows = torch.stack([context.pixels[:, y : y + 64, x : x + 64] for y, x in corners])
    logits = F.interpolate(segmentor.image_logits(ob.WindowBatch(windows)), (64, 64), mode="bilinear")
    total, count = torch.zeros(7, 80, 112), torch.zeros(80, 112)
    for (y, x), each in zip(corners, logits, strict=True):
        total[:, y : y + 64, x : x + 64] += each
        count[y : y + 64, x : x + 64] += 1
    ((_, (prediction,)),) = predict([segmentor], [("a", image)], keep_scores=True, batch=4)
    expected = segmentor.decision.class_scores(total / count)
    torch.testing.assert_close(prediction.scores, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("part_bytes", [1, 4 * 50 * 7, 10**9])
def test_rows_in_parts(part_bytes):
    weights, values, seen = random(50, 50).softmax(1), random(50, 3, seed=5), []

    def some(rows):
        seen.append(weights[rows].shape[0])
        return weights[rows]

    torch.testing.assert_close(attend_by_rows(some, values, part_bytes), weights @ values)
    assert sum(seen) == 50
    assert max(seen) == {1: 1, 1400: 7, 10**9: 50}[part_bytes]
