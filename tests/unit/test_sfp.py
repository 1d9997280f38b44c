"""SFP: outliers by each detector, the whole method on a wide window in plain steps, the ablations, and the recipe."""

import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.errors import OvssError
from parity.seeded import clip_state_dict

DETECTORS = ("attention", "norm", "lof")


def build(clip, vocabulary, **options):
    return ob.build_segmentor("sfp", clip=clip, vocabulary=vocabulary, **options)


def pixels(count=1, height=96, width=144, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def attention_outliers(clip, trunk):
    """The ten patches that the class token attends to most, of those that attend less to themselves: one set per window."""
    state = trunk.states[clip.depth - 2]
    found = []
    for window in clip.block(-2, trunk.grid).attention(state).mean(1):
        candidates = [i for i in range(len(window) - 1) if 0.3 * 5 * window[0, 1 + i] > window[1 + i, 1 + i]]
        found.append(set(sorted(candidates, key=lambda i: -float(window[0, 1 + i]))[:10]))
    return found


def numbers(mask):
    return [{i for i, is_outlier in enumerate(window) if is_outlier} for window in mask.tolist()]


def filled(patches, outliers, grid):
    """Patches (N, D) of one window after the fill."""
    result = patches.clone()
    for i in outliers:
        y, x = divmod(i, grid[1])
        around = [(v, u) for v in range(y - 1, y + 2) for u in range(x - 1, x + 2) if (v, u) != (y, x)]
        inside = [v * grid[1] + u for v, u in around if 0 <= v < grid[0] and 0 <= u < grid[1]]
        sound = [j for j in inside if j not in outliers]
        result[i] = patches[sound].mean(0) if sound else 0
    return result


def averaged(patches, similarity):
    return similarity @ patches / (similarity.sum(1, keepdim=True) + 1e-6)


def cut_cosines(patches):
    unit = F.normalize(patches, dim=1)
    cosines = unit @ unit.T
    return torch.where(cosines < 0.4, torch.zeros(()), cosines)


def in_plain_steps(segmentor, trunk, outliers):
    """The embeddings (N, E) of the only window: blocks 9, 4 and 4 to 10 of twelve."""
    block, states = segmentor.clip.block(-1, trunk.grid), {b: state[0] for b, state in trunk.states.items()}
    last = trunk.tokens[0]
    by_middle = cut_cosines(filled(states[9][1:], outliers, trunk.grid))
    by_early = cut_cosines(states[4][1:])
    sharp = 3 * (by_middle - by_middle.mean())
    itself = torch.eye(len(sharp), dtype=torch.bool)  # counts even for a patch filled with 0, which is similar to none
    sharp = torch.where((sharp < 0) & ~itself, -torch.inf, sharp).softmax(1)
    first = averaged(filled(last[1:], outliers, trunk.grid), by_middle)
    q, k, v = (part[0] for part in block.qkv(block.ln_1(first[None])))
    by_keys, by_queries = ((x @ x.transpose(1, 2) / x.shape[2] ** 0.5).softmax(2) for x in (k, q))
    first = block.project(((by_keys + by_queries + sharp) / 3 @ v)[None])[0] + 0.3 * last[0]
    levels = sum(states[b] for b in range(4, 11))
    v = block.qkv(block.ln_1(levels[None, 1:]))[2][0]
    second = block.project((sharp @ v)[None])[0] + 0.3 * levels[0]
    return segmentor.clip.project((averaged(first, by_early) + averaged(second, by_early))[None])


def test_outliers_of_windows_that_are_not_square(tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary)
    trunk = segmentor.trunk(ob.WindowBatch(pixels(3)))
    expected = attention_outliers(segmentor.clip, trunk)
    assert numbers(segmentor.outliers(trunk)) == expected
    assert all(expected)


def test_the_largest_patches_are_outliers(tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary, detector="norm", max_outliers=4)
    trunk = segmentor.trunk(ob.WindowBatch(pixels(2)))
    norms = trunk.tokens[:, 1:].norm(dim=2)
    assert numbers(segmentor.outliers(trunk)) == [set(window.topk(4).indices.tolist()) for window in norms]


def test_few_candidates_are_all_outliers(tiny_clip, tiny_vocabulary):
    """And without any, the patches stay as they are."""
    batch = ob.WindowBatch(pixels())
    none = build(tiny_clip, tiny_vocabulary, cls_factor=0.0)
    assert not none.outliers(none.trunk(batch)).any()
    expected = build(tiny_clip, tiny_vocabulary, purify=False).patch_logits(batch)
    torch.testing.assert_close(none.patch_logits(batch), expected, atol=1e-6, rtol=0)
    every = build(tiny_clip, tiny_vocabulary, cls_factor=1e6, max_outliers=1000)
    assert every.outliers(every.trunk(batch)).all()
    assert every.patch_logits(batch).isfinite().all()


@pytest.mark.parametrize("shape", [(96, 144), (144, 96), (16, 64)], ids=str)
def test_the_method_in_plain_steps(shape, tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary)
    batch = ob.WindowBatch(pixels(1, *shape))
    trunk = segmentor.trunk(batch)
    with torch.inference_mode():
        embeddings = in_plain_steps(segmentor, trunk, attention_outliers(segmentor.clip, trunk)[0])
        expected = segmentor.compare(embeddings, trunk.grid)
    torch.testing.assert_close(segmentor.patch_logits(batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("detector", DETECTORS)
def test_windows_of_a_batch_do_not_touch_each_other(detector, tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary, detector=detector)
    together = segmentor.patch_logits(ob.WindowBatch(pixels(3)))
    alone = torch.cat([segmentor.patch_logits(ob.WindowBatch(window[None])) for window in pixels(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"purify": False}, {"multi_level": False}, {"detector": "norm"}, {"detector": "lof"}], ids=str
)
def test_every_switch_changes_the_result(options, tiny_clip, tiny_vocabulary):
    batch = ob.WindowBatch(pixels())
    complete, without = (build(tiny_clip, tiny_vocabulary, **values).patch_logits(batch) for values in ({}, options))
    assert (complete - without).abs().max() > 1e-3


@pytest.mark.parametrize("detector", DETECTORS)
def test_windows_of_equal_patches_stay_finite(detector, tiny_vocabulary):
    weights = clip_state_dict(11, vocab_size=100)
    weights["visual.positional_embedding"].zero_()
    segmentor = build(ob.load_clip(state_dict=weights), tiny_vocabulary, detector=detector)
    assert segmentor.patch_logits(ob.WindowBatch(torch.full((2, 3, 48, 64), 0.5))).isfinite().all()


@pytest.mark.parametrize(
    "given", [{"reference_block": 12}, {"auxiliary_block": 0}, {"last_level": 12}, {"first_level": 11}], ids=str
)
def test_blocks_that_the_clip_does_not_have_are_refused(given, tiny_clip, tiny_vocabulary):
    with pytest.raises(OvssError, match=f"sfp can use the blocks 1 to 11 .*{next(iter(given))}={next(iter(given.values()))}"):
        build(tiny_clip, tiny_vocabulary, **given).patch_logits(ob.WindowBatch(pixels()))


def test_a_quantile_is_a_share(tiny_clip, tiny_vocabulary):
    with pytest.raises(OvssError, match=r"lof_quantile=1\.5 of sfp: expected a share"):
        build(tiny_clip, tiny_vocabulary, detector="lof", lof_quantile=1.5)


def test_published_settings_are_reached():
    """The settings of docs/methods/sfp.md."""
    found = {name: ob.compose_recipe("sfp", clip="vit_b16", dataset=name) for name in ("voc21", "context60", "coco_object")}
    values = {name: (r.short_side, r.logit_scale, r.threshold, r.area_threshold) for name, r in found.items()}
    assert values == {"voc21": (336, 50, 0.15, 0.1), "context60": (336, 40, 0.15, 0), "coco_object": (336, 55, 0.35, 0)}
    for name, side in {"voc20": 336, "context59": 336, "coco_stuff": 336, "ade20k": 384, "cityscapes": 560}.items():
        recipe = ob.compose_recipe("sfp", clip="vit_b16", dataset=name)
        assert (recipe.short_side, recipe.logit_scale, recipe.threshold, recipe.window) == (side, 40, 0, 224), name
    own = ob.SEGMENTORS.get("sfp").hyperparameters()
    assert found["voc21"].hyperparameters == own  # the defaults are the published values
