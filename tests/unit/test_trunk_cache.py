"""The cache of the trunk's tokens: what is kept, what goes first, what is not trusted."""

import os
import time

import numpy as np
import pytest
import torch

import ovss_bench as ob
from ovss_bench.image import image_key
from ovss_bench.inference.trunk_cache import HEADER, TrunkCache, maker_digest

IMAGES = [np.full((4, 5, 3), n, np.uint8) for n in range(6)]
TOKENS = torch.arange(2 * 500 * 8, dtype=torch.float32).view(2, 500, 8)
BYTES = TOKENS.nbytes


def files(folder):
    return sorted(folder.glob("*/*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_put_in_comes_out(tmp_path, dtype):
    cache = TrunkCache(tmp_path, 1e6)
    states = {11: TOKENS.to(dtype), 3: (TOKENS + 1).to(dtype)}
    cache.put("maker", IMAGES[0], states)
    found = TrunkCache(tmp_path, 1e6).get("maker", IMAGES[0], {3, 11})
    assert all(torch.equal(found[block], tokens) and found[block].dtype == dtype for block, tokens in states.items())


def test_another_image_maker_or_block_is_not_found(tmp_path):
    cache = TrunkCache(tmp_path, 1e6)
    cache.put("maker", IMAGES[0], {11: TOKENS})
    assert cache.get("maker", IMAGES[1], {11}) is None
    assert cache.get("other", IMAGES[0], {11}) is None
    assert cache.get("maker", IMAGES[0], {10, 11}) is None


def test_a_maker_is_all_that_tokens_depend_on(tiny_clip, tiny_state_dict):
    keys = [(336, 224), (448, 224)]
    clips = [tiny_clip, tiny_clip.variant("gelu"), tiny_clip.variant(layer_norm_eps=1e-6)]
    clips += [ob.load_clip(state_dict=tiny_state_dict, precision="bf16")]
    clips += [ob.load_clip(state_dict=tiny_state_dict | {"visual.proj": tiny_state_dict["visual.proj"] + 1})]
    assert len({maker_digest(clip, key) for clip in clips for key in keys}) == len(clips) * len(keys)
    assert maker_digest(ob.load_clip(state_dict=tiny_state_dict), keys[0]) == maker_digest(tiny_clip, keys[0])


def test_what_was_unused_for_longest_goes_first(tmp_path):
    size = 3 * (BYTES + HEADER)
    cache = TrunkCache(tmp_path, size)
    for number in range(3):
        cache.put("maker", IMAGES[number], {11: TOKENS})
    for days, number in ((3, 1), (2, 0), (1, 2)):  # before this process began, however long it has tested
        path = cache._path("maker", image_key(IMAGES[number]), 11)
        os.utime(path, (time.time() - days * 86400,) * 2)
    later = TrunkCache(tmp_path, size)
    assert later.get("maker", IMAGES[0], {11}) is not None  # used by this run: stays
    later.put("maker", IMAGES[3], {11: TOKENS})
    later.put("maker", IMAGES[4], {11: TOKENS})
    there = [number for number in range(5) if TrunkCache(tmp_path, size).get("maker", IMAGES[number], {11}) is not None]
    assert there == [0, 3, 4]


def test_files_that_another_process_is_writing_are_left_alone(tmp_path):
    cache = TrunkCache(tmp_path, 1e6)
    cache.put("maker", IMAGES[0], {11: TOKENS})
    (path,) = files(tmp_path)
    (path.parent / f".{path.stem}.abc.safetensors").write_bytes(bytes(100))
    (path.parent / "gone.safetensors").symlink_to("nowhere")  # removed after it was listed
    assert TrunkCache(tmp_path, 1e6).size == path.stat().st_size


def test_a_run_does_not_push_out_its_own_files(tmp_path):
    for _ in range(2):
        cache = TrunkCache(tmp_path, 2.5 * (BYTES + HEADER))
        found = []
        for image in IMAGES:
            found.append(cache.get("maker", image, {11}) is not None)
            if not found[-1]:
                cache.put("maker", image, {11: TOKENS})
        assert len(files(tmp_path)) == 2
    assert found == [True, True, False, False, False, False]
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 2.5 * (BYTES + HEADER)


def test_nor_does_a_later_pass_of_the_same_process(tmp_path):
    limit = 2 * (BYTES + HEADER)
    for first in (0, 2):
        cache = TrunkCache(tmp_path, limit)
        for image in IMAGES[first : first + 2]:
            cache.put("maker", image, {11: TOKENS})
    assert all(TrunkCache(tmp_path, limit).get("maker", image, {11}) is not None for image in IMAGES[:2])


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "other"])
def test_a_damaged_file_is_not_trusted(tmp_path, damage):
    cache = TrunkCache(tmp_path, 1e6)
    cache.put("maker", IMAGES[0], {11: TOKENS})
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes({"flipped": bytes(data), "truncated": data[:-40], "empty": b"", "other": b"not tensors at all"}[damage])
    with pytest.warns(UserWarning, match="is damaged"):
        assert cache.get("maker", IMAGES[0], {11}) is None
    cache.put("maker", IMAGES[0], {11: TOKENS})
    assert torch.equal(cache.get("maker", IMAGES[0], {11})[11], TOKENS)


def test_where_nothing_can_be_written_the_run_goes_on(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ovss_bench.cache.save_file", full)
    cache = TrunkCache(tmp_path, 1e6)
    with pytest.warns(UserWarning, match="keeps nothing more.*No space left"):
        cache.put("maker", IMAGES[0], {11: TOKENS})
    cache.put("maker", IMAGES[1], {11: TOKENS})
    assert files(tmp_path) == []
