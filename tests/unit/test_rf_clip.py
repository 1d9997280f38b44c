"""RF-CLIP: smoothing, the redistribution of attention, the whole method on a wide window in plain steps, texts, the recipe."""

import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.inference.engine import predict
from ovss_bench.ops.image_texts import adjusted_texts
from ovss_bench.segmentors.rf_clip import CHANNELS, refocused
from parity.seeded import clip_state_dict, rgb_image

SMOOTHED = {"channels": (3, 50, 90, 120), "sigma": 1.7}  # some of the patches of a CLIP with random weights


def build(clip, vocabulary, **options):
    return ob.build_segmentor("rf_clip", clip=clip, vocabulary=vocabulary, **(SMOOTHED | options))


def pixels(count=1, height=96, width=144, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def smoothed(tokens, grid, channels, sigma, blend=0.4):
    """Tokens (T, D) of one window, patch by patch."""
    result = tokens.clone()
    for i in range(len(tokens) - 1):
        above = tokens[1 + i] - tokens[1 + i].min()
        if max(float(above[c]) for c in channels) / float(above.sum()) > sigma / tokens.shape[1]:
            y, x = divmod(i, grid[1])
            cells = [(v, u) for v in range(y - 1, y + 2) for u in range(x - 1, x + 2)]
            inside = [1 + v * grid[1] + u for v, u in cells if 0 <= v < grid[0] and 0 <= u < grid[1]]
            result[1 + i] = (1 - blend) * tokens[1 + i] + blend * tokens[inside].sum(0) / 9
    return result


def softmax_of(q, k):
    return (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(2)


def in_plain_steps(segmentor, image):
    """The embeddings (N, E) of the only window (3, H, W) and that of its class token."""
    clip = segmentor.clip
    trunk = clip.trunk(image[None], {0})
    x, grid, depth = trunk.states[0][0], trunk.grid, clip.depth
    outputs, attention = [], []
    for i in range(depth):
        block = clip.block(i, grid)
        _, k, _ = block.qkv(block.ln_1(x[None]))
        attention.append(softmax_of(k[0], k[0]))
        x = smoothed(block(x[None])[0], grid, segmentor.channels, segmentor.sigma)
        outputs.append(x)
    guide = torch.stack(outputs).mean(0)
    directions = F.normalize(guide[1:], dim=1)
    similarity = directions @ directions.T
    similarity[similarity < 0.4] = 0
    last, results = clip.block(-1, grid), []
    for source in (outputs[-2], guide):
        y = last.ln_1(torch.cat([source[:1], similarity @ source[1:]])[None])
        _, k, v = last.qkv(y)
        mean = torch.stack([*attention[:-1], softmax_of(k[0], k[0])]).mean(0)[:, 1:, 1:]
        results.append(last.project((mean @ v[0, :, 1:])[None])[0])
    return clip.head((results[0] + results[1]) / 2), clip.head(x[:1])


@pytest.mark.parametrize("shape", [(96, 144), (144, 96), (16, 64)], ids=str)
def test_the_method_in_plain_steps(shape, tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary, global_semantics_weight=0.3, mean_vector_weight=0.2, h_threshold=0.9)
    image = pixels(1, *shape)
    with torch.inference_mode():
        patches, whole = in_plain_steps(segmentor, image[0])
        cosines = whole @ segmentor.text.T
        text = adjusted_texts(segmentor.text, torch.tensor(segmentor.clusters), patches[None], cosines, 0.2)[0]
        expected = 0.7 * text @ patches.T + 0.3 * cosines.T
    found = segmentor.patch_logits(ob.WindowBatch(image))[0].flatten(1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert 1 < len(set(segmentor.clusters)) < 7


def test_some_patches_are_smoothed_and_the_class_token_is_not(tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary)
    x = torch.randn(2, 1 + 24, 128, generator=torch.Generator().manual_seed(1)) + 2
    found = segmentor.smoothed(x, (4, 6))
    expected = torch.stack([smoothed(window, (4, 6), SMOOTHED["channels"], SMOOTHED["sigma"]) for window in x])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert 0 < segmentor.distracted(x).sum() < 48
    assert torch.equal(found[:, 0], x[:, 0])


def test_without_known_channels_nothing_is_smoothed(tiny_clip, tiny_vocabulary):
    """By default they are those of OpenAI's ViT-B/16 and ViT-L/14, which other widths do not have."""
    segmentor = build(tiny_clip, tiny_vocabulary, channels=None, sigma=0.0)
    assert not segmentor.distracted(torch.randn(2, 10, 128)).any()
    wide = ob.load_clip(state_dict=clip_state_dict(3, width=768, layers=1, vocab_size=100))
    segmentor = build(wide, tiny_vocabulary, channels=None, sigma=2.0)
    x = torch.zeros(1, 4, 768)
    x[0, 1:] = 1
    x[0, 1:, 0] = 0
    x[0, 2, CHANNELS[768][-1]] = 3
    x[0, 3, CHANNELS[768][-1] + 1] = 3
    assert segmentor.distracted(x).tolist() == [[False, True, False]]
    assert all(max(channels) < width for width, channels in CHANNELS.items())


def test_attention_moves_from_sinks_to_the_others():
    attention = torch.randn(2, 2, 7, 7, generator=torch.Generator().manual_seed(4)).mul(2).softmax(-1)
    found, expected = refocused(attention, 0.15, 0.6), attention.clone()
    count = 0
    for b in range(2):
        for head in range(2):
            a = attention[b, head]
            sinks = [j for j in range(1, 7) if float(a[1:, j].sum()) / 7 > 0.15]
            others = [j for j in range(1, 7) if j not in sinks]
            count += len(sinks)
            for i in range(1, 7):
                freed = 0.4 * sum(float(a[i, j]) for j in sinks)
                total = sum(float(a[i, j]) for j in others)
                for j in sinks:
                    expected[b, head, i, j] = 0.6 * a[i, j]
                for j in others:
                    expected[b, head, i, j] = a[i, j] + freed * a[i, j] / (total + 1e-8)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 2, 7))
    assert 0 < count < 24


@pytest.mark.parametrize("options", [{}, {"strategy": "refocus", "refocus_threshold": 0.02}], ids=str)
def test_windows_of_a_batch_do_not_touch_each_other(options, tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary, **options)
    together = segmentor.patch_logits(ob.WindowBatch(pixels(3)))
    alone = torch.cat([segmentor.patch_logits(ob.WindowBatch(window[None])) for window in pixels(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


OTHERS = [{"sigma": 1e3}, {"blend": 0.0}, {"strategy": "refocus", "refocus_threshold": 0.02}, {"similarity": -1.0}]
OTHERS += [{"global_semantics_weight": 0.0}, {"mean_vector_weight": 0.0}]


@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_every_switch_changes_the_result(options, tiny_clip, tiny_vocabulary):
    batch = ob.WindowBatch(pixels())
    complete, without = (build(tiny_clip, tiny_vocabulary, **values).patch_logits(batch) for values in ({}, options))
    assert (complete - without).abs().max() > 1e-4


IMAGE = rgb_image(61, 90, 130)
WINDOWS = {"short_side": 96, "window": 64, "stride": 32, "pamr_steps": 0}


def test_the_whole_image_is_seen_once(tiny_clip, tiny_vocabulary, monkeypatch):
    shapes, embed = [], ob.DenseCLIP.embed_patches

    def embed_patches(self, pixels, *arguments):
        shapes.append(tuple(pixels.shape))
        return embed(self, pixels, *arguments)

    monkeypatch.setattr(ob.DenseCLIP, "embed_patches", embed_patches)
    segmentor = build(tiny_clip, tiny_vocabulary, **WINDOWS)
    list(predict([segmentor], [("a", IMAGE), ("b", IMAGE[::-1].copy())], batch=4))
    whole = [shape for shape in shapes if shape[2:] != (64, 64)]
    assert whole == [(1, 3, 96, 139)] * 2
    assert len(shapes) > 4
    shapes.clear()
    by_window = build(tiny_clip, tiny_vocabulary, image_level="window", **WINDOWS)
    list(predict([by_window], [("a", IMAGE)], batch=4))
    assert {shape[2:] for shape in shapes} == {(64, 64)}


def test_where_the_image_level_comes_from(tiny_clip, tiny_vocabulary):
    options = WINDOWS | {"global_semantics_weight": 1.0}
    found = {}
    for level in ("image", "window"):
        segmentor = build(tiny_clip, tiny_vocabulary, image_level=level, **options)
        found[level] = ob.segment(segmentor, IMAGE).scores
        context = ob.make_context(IMAGE, segmentor)
        with torch.inference_mode():
            expected = segmentor.decision.class_scores(segmentor.of_image(context))
        assert torch.allclose(found[level], expected[:, None, None].expand_as(found[level]), atol=1e-5) == (level == "image")
    whole = [build(tiny_clip, tiny_vocabulary, image_level=level, **options | {"window": "whole"}) for level in found]
    assert torch.equal(*(ob.segment(segmentor, IMAGE).scores for segmentor in whole))


def test_no_trunk_runs_for_it_alone(tiny_clip, tiny_vocabulary, monkeypatch):
    monkeypatch.setattr(ob.DenseCLIP, "trunk", None)
    assert ob.segment(build(tiny_clip, tiny_vocabulary, **WINDOWS), IMAGE).label_map.shape == IMAGE.shape[:2]


@pytest.mark.parametrize("weight", ["visual.conv1.weight", "visual.transformer.resblocks.0.mlp.c_proj.bias", "visual.proj"])
@pytest.mark.parametrize("level", ["image", "window"])
def test_nan_in_the_weights_names_image_and_window(level, weight, tiny_vocabulary):
    weights = clip_state_dict(1, vocab_size=100)
    weights[weight].view(-1)[5] = torch.nan
    segmentor = build(ob.load_clip(state_dict=weights), tiny_vocabulary, image_level=level, **WINDOWS)
    with pytest.raises(ob.OvssError, match=r"non-finite.*image photo.*\(y, x\) = \(0, 0\)"):
        list(predict([segmentor], [("photo", IMAGE)]))


def test_position_and_activation_count(tiny_clip, tiny_vocabulary):
    """Although no trunk is shared, the recipe's values for the image tower have their effect."""
    batch = ob.WindowBatch(pixels())
    expected = build(tiny_clip, tiny_vocabulary).patch_logits(batch)
    for values in ({"position": "size"}, {"activation": "gelu"}, {"layer_norm_eps": 1e-2}):
        assert (build(tiny_clip, tiny_vocabulary, **values).patch_logits(batch) - expected).abs().max() > 1e-5, values


def test_published_settings_are_reached():
    """The settings of docs/methods/rf_clip.md: weight of the image, of the patches, cut of the clusters, threshold."""
    expected = {
        "voc21": (0.1, 0.03, 0.10, 0.1),
        "voc20": (0.4, 0.02, 0.10, 0),
        "context60": (0.25, 0.04, 0.09, 0.1),
        "context59": (0.25, 0.04, 0.09, 0),
        "coco_object": (0.25, 0.01, 0.10, 0.1),
        "coco_stuff": (0.2, 0.02, 0.02, 0),
        "cityscapes": (0.1, 0.03, 0.14, 0),
        "ade20k": (0.3, 0.05, 0.06, 0),
    }
    for name, values in expected.items():
        recipe = ob.compose_recipe("rf_clip", clip="vit_b16", dataset=name)
        own = recipe.hyperparameters
        found = own["global_semantics_weight"], own["mean_vector_weight"], own["h_threshold"], recipe.threshold
        assert found == values, name
        assert own["image_level"] == ("window" if name == "cityscapes" else "image")
        assert (recipe.window == "whole") == (name == "voc21")
        assert (own["sigma"], own["blend"], own["similarity"], own["strategy"], own["channels"]) == (
            5,
            0.4,
            0.4,
            "vanilla",
            None,
        )
        assert (recipe.logit_scale, recipe.pamr_steps, recipe.area_threshold) == (40, 0, 0)
