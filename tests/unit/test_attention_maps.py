"""Queries, keys and values that the trunk keeps are those recomputed from the kept inputs, with and without the trunk cache."""

import pytest
import torch

import ovss_bench as ob
from ovss_bench.inference.engine import predict
from ovss_bench.inference.trunk_cache import TrunkCache
from parity.seeded import rgb_image
from stand_ins import ON_CLIP, sources_of

SMALL = {"short_side": 80, "window": 64, "stride": 32, "pad_multiple": None, "scored_at": "original"}
IMAGES = {f"image{n}": rgb_image(90 + n, *size) for n, size in enumerate([(100, 120), (90, 90)])}


def build(name, clip, vocabulary, **options):
    crop = {"resize": "keep_ratio"} if ob.compose_recipe(name).resize == "center_crop" else {}
    used = {key: value for key, value in SMALL.items() if key not in ob.SEGMENTORS.get(name).unused()}
    return ob.build_segmentor(name, clip=clip, vocabulary=vocabulary, **(used | crop | sources_of(name) | options))


def windows():
    return ob.WindowBatch(torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(8)))


def label_maps(segmentor, **options):
    return {key: prediction.label_map for key, (prediction,) in predict([segmentor], IMAGES.items(), batch=4, **options)}


def test_the_methods_that_declare_blocks(tiny_clip, tiny_vocabulary):
    declared = {name for name in ON_CLIP if build(name, tiny_clip, tiny_vocabulary).needs_qkv}
    assert {"cliper", "corrclip", "gem", "resclip"} <= declared


@pytest.mark.parametrize("name", ON_CLIP)
def test_maps_are_those_recomputed_from_the_inputs(name, tiny_clip, tiny_vocabulary):
    segmentor = build(name, tiny_clip, tiny_vocabulary)
    trunk = segmentor.trunk(windows())
    assert trunk.qkv.keys() == segmentor.needs_qkv - {tiny_clip.depth - 1}
    for i in segmentor.needs_qkv:
        block, kept = tiny_clip.block(i, trunk.grid), segmentor.clip.qkv(trunk, i)
        for part, expected in zip(kept, block.qkv(block.ln_1(trunk.states[i])), strict=True):
            torch.testing.assert_close(part, expected, atol=1e-6, rtol=0)
        maps = segmentor.clip.attention(trunk, i)
        torch.testing.assert_close(maps, block.attention(trunk.states[i]), atol=1e-6, rtol=0)
        torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
        torch.testing.assert_close(segmentor.clip.attention(trunk, i, slice(1, 2)), maps[1:2], atol=1e-6, rtol=0)


def test_what_is_kept_does_not_change_the_tokens(tiny_clip):
    pixels, depth = windows().pixels, tiny_clip.depth
    plain, full = tiny_clip.trunk(pixels), tiny_clip.trunk(pixels, (), "offset", range(depth))
    assert torch.equal(plain.tokens, full.tokens)
    assert (plain.states, plain.qkv) == ({}, {})
    assert (set(full.states), set(full.qkv)) == (set(range(depth)), set(range(depth - 1)))


def test_no_projection_runs_twice(tiny_clip, tiny_vocabulary, monkeypatch):
    """Neither in the last block nor in those before it: the trunk's own pass is the only one."""
    segmentor, batch = build("resclip", tiny_clip, tiny_vocabulary, use_sfr=False), windows()
    segmentor.trunk(batch)
    calls, qkv = [], type(tiny_clip.block(0, (1, 1))).qkv
    monkeypatch.setattr(type(tiny_clip.block(0, (1, 1))), "qkv", lambda self, y: calls.append(len(y)) or qkv(self, y))
    segmentor.patch_logits(batch)
    assert calls == [1, 1, 1]  # of the last block, once for each window


@pytest.mark.parametrize("name", ["corrclip", "gem", "resclip"])
def test_the_trunk_cache_changes_nothing(name, tiny_clip, tiny_vocabulary, tmp_path):
    segmentor = build(name, tiny_clip, tiny_vocabulary)
    expected = label_maps(segmentor)
    for _ in ("filled", "read"):
        found = label_maps(segmentor, trunk_cache=TrunkCache(tmp_path, 1e9))
        assert all(torch.equal(found[key], expected[key]) for key in IMAGES)


class Early(ob.Segmentor):
    """The last block attends by the mean attention map of the first half of the blocks."""

    attention_maps = 2  # the sum, and the map that is added to it

    @property
    def needs_qkv(self):
        return frozenset(range(self.clip.depth // 2))

    @torch.inference_mode()
    def patch_logits(self, batch):
        trunk = self.trunk(batch)
        block = self.clip.block(-1, trunk.grid)
        mean = sum(self.clip.attention(trunk, i) for i in self.needs_qkv) / len(self.needs_qkv)
        values = block.qkv(block.ln_1(trunk.tokens))[2]
        return self.cosines(block.project(mean @ values), trunk.grid)


def test_the_example_of_the_docs(tiny_clip, tiny_vocabulary, tmp_path):
    segmentor = build("sclip", tiny_clip, tiny_vocabulary)
    segmentor = Early(tiny_clip, tiny_vocabulary, segmentor.recipe)
    batch = windows()
    found, trunk = segmentor.patch_logits(batch), batch.trunk
    maps = [tiny_clip.block(i, trunk.grid).attention(trunk.states[i]) for i in range(tiny_clip.depth // 2)]
    last = tiny_clip.block(-1, trunk.grid)
    with torch.inference_mode():
        mixed = last.project(torch.stack(maps).mean(0) @ last.qkv(last.ln_1(trunk.tokens))[2])
        torch.testing.assert_close(found, segmentor.cosines(mixed, trunk.grid), atol=1e-5, rtol=0)
    expected = label_maps(segmentor)
    for _ in ("filled", "read"):
        found = label_maps(segmentor, trunk_cache=TrunkCache(tmp_path, 1e9))
        assert all(torch.equal(found[key], expected[key]) for key in IMAGES)


def test_queries_and_values_alone(tiny_clip):
    tokens, grid = tiny_clip.embed_patches(windows().pixels)
    block = tiny_clip.block(0, grid)
    queries, _, values = block.qkv(tokens)
    torch.testing.assert_close(block.queries(tokens), queries, rtol=0, atol=1e-6)
    torch.testing.assert_close(block.values(tokens), values, rtol=0, atol=1e-6)
