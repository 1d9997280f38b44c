"""SC-CLIP: anomalies, the ablations, degenerate windows, and the recipe."""

import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.errors import OvssError
from parity.seeded import clip_state_dict

PLAIN = {"repair": False, "aggregate": False, "calibrate": False, "multi_level": False}


def build(clip, vocabulary, **options):
    return ob.build_segmentor("scclip", clip=clip, vocabulary=vocabulary, **options)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_each_window_has_anomalies_of_its_own(tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary)
    patches = torch.cat([randn(1, 100, 24), 30 * randn(1, 100, 24, seed=1), randn(1, 100, 24, seed=2)])
    found = segmentor.anomalies(patches)
    assert found.sum(1).tolist() == [5, 5, 5]
    for window, own in zip(patches, found, strict=True):
        assert torch.equal(segmentor.anomalies(window[None])[0], own)


def test_without_all_parts_key_key_attention_of_the_patches_is_left(tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary, **PLAIN)
    batch = ob.WindowBatch(randn(2, 3, 48, 64))
    trunk = segmentor.trunk(batch)
    block, patches = tiny_clip.block(-1, trunk.grid), trunk.tokens[:, 1:]
    _, k, v = block.qkv(block.ln_1(patches))
    expected = block.project(F.scaled_dot_product_attention(k, k, v)) + 0.3 * trunk.tokens[:, :1]
    torch.testing.assert_close(segmentor.patch_logits(batch), segmentor.compare(tiny_clip.project(expected), trunk.grid))


@pytest.mark.parametrize("switch", PLAIN)
def test_every_part_changes_the_result(switch, tiny_clip, tiny_vocabulary):
    batch = ob.WindowBatch(randn(1, 3, 96, 128))
    complete, without = (build(tiny_clip, tiny_vocabulary, **options).patch_logits(batch) for options in ({}, {switch: False}))
    assert (complete - without).abs().max() > 1e-3


def test_windows_of_a_batch_do_not_touch_each_other(tiny_clip, tiny_vocabulary):
    segmentor, pixels = build(tiny_clip, tiny_vocabulary), randn(3, 3, 64, 80)
    together = segmentor.patch_logits(ob.WindowBatch(pixels))
    alone = torch.cat([segmentor.patch_logits(ob.WindowBatch(window[None])) for window in pixels])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (64, 64)])
def test_windows_of_equal_patches_stay_finite(shape, tiny_vocabulary):
    """All distances are 0, all similarities 1."""
    weights = clip_state_dict(11, vocab_size=100)
    weights["visual.positional_embedding"].zero_()
    segmentor = build(ob.load_clip(state_dict=weights), tiny_vocabulary)
    logits = segmentor.patch_logits(ob.WindowBatch(torch.full((2, 3, *shape), 0.5)))
    assert logits.isfinite().all()
    assert not segmentor.anomalies(torch.ones(1, 9, 4)).any()


@pytest.mark.parametrize(
    "index", [{"pre_adjust_idx": 11}, {"post_adjust_idx": -1}, {"multi_end_idx": 12}, {"multi_start_idx": 10}], ids=str
)
def test_indices_beyond_the_blocks_are_refused(index, tiny_clip, tiny_vocabulary):
    with pytest.raises(OvssError, match=f"scclip.*outputs 0 to 10 .*{next(iter(index))}={next(iter(index.values()))}"):
        build(tiny_clip, tiny_vocabulary, **index).patch_logits(ob.WindowBatch(randn(1, 3, 32, 32)))


def test_published_settings_are_reached():
    """The settings of docs/methods/scclip.md."""
    recipe = ob.compose_recipe("scclip", clip="vit_b16", dataset="voc21")
    assert (recipe.short_side, recipe.window, recipe.stride, recipe.names) == (336, 224, 112, "sclip")
    assert (recipe.logit_scale, recipe.threshold, recipe.area_threshold) == (50, 0.15, 0.1)
    settings = {"beta": 0.4, "pre_adjust_idx": 8, "post_adjust_idx": 3, "multi_start_idx": 3, "multi_end_idx": 10}
    settings |= {"res_cls": 0.3, "lof_neighbors": 30, "lof_contamination": 0.05, "temperature": 3}
    assert recipe.hyperparameters == settings | dict.fromkeys(PLAIN, True)
    others = {"context60": (336, 40, 0.15), "coco_object": (336, 55, 0.35), "cityscapes": (560, 40, 0), "ade20k": (336, 40, 0)}
    for dataset, values in others.items():
        recipe = ob.compose_recipe("scclip", clip="vit_b16", dataset=dataset)
        assert (recipe.short_side, recipe.logit_scale, recipe.threshold, recipe.area_threshold) == (*values, 0), dataset
