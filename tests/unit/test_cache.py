"""A damaged cache never changes a result: damaged entries are recomputed, with a note."""

import json
import os
import warnings
from functools import cache as once
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ovss_bench as ob
from ovss_bench.auxiliary.regions import load_regions
from ovss_bench.auxiliary.sources import FeatureCache
from ovss_bench.cache import read_entry, write_entry
from ovss_bench.datasets.demo.loader import DemoDataset
from ovss_bench.inference.trunk_cache import TrunkCache
from ovss_bench.runs.evaluate import make_job, run_jobs
from ovss_bench.runs.precompute import precompute_regions

IMAGE = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
TOKENS = torch.arange(24.0).view(2, 3, 4)
FAST = {"resize": "none", "window": 48, "stride": 48, "templates": "photo"}


def tiny_demo():
    return DemoDataset("demo", {"seed": 1, "scenes": 2})


@once
def demo_clip():
    return ob.load_clip("demo")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OVSS_CACHE", str(tmp_path))
    return tmp_path


def positions(size):
    """Positions in the header, the middle and the end of a file."""
    return sorted({0, 3, 9, 40, size // 3, size // 2, size - 40, size - 2, size - 1} & set(range(size)))


def flipped(folder, suffix):
    """(file, position) of single flipped bytes, one after another; the files are restored afterwards."""
    for path in sorted(folder.rglob(f"*{suffix}"))[:2]:
        content = path.read_bytes()
        for position in positions(len(content)):
            path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
            yield path, position
            path.write_bytes(content)


def trunk(folder):
    cache = TrunkCache(folder, 1e9)
    found = cache.get("maker", IMAGE, {3})
    if found is None:
        cache.put("maker", IMAGE, {3: TOKENS})
    return found[3] if found else TOKENS


def features(folder):
    return torch.from_numpy(FeatureCache(folder)("maker", IMAGE, lambda: np.arange(99, dtype=np.int32).reshape(9, 11)))


def texts(folder):
    return ob.Vocabulary.from_names(["sand", "cloth"], templates="photo").features(demo_clip())


def scenes(folder):
    dataset = tiny_demo()
    sample = dataset.samples[0]
    image = dataset.image(sample)
    return torch.from_numpy(np.dstack([image, dataset.label(sample, image.shape[:2])]))


def maps(folder):
    dataset = tiny_demo()
    precompute_regions(dataset, "slic", folder / "maps", limit=1, quiet=True)
    return torch.from_numpy(load_regions(folder / "maps")(dataset.image(dataset.samples[0])))


KINDS = {trunk: ".safetensors", features: ".safetensors", texts: ".safetensors", scenes: ".png", maps: ".npz"}


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes_change_nothing(kind, cache):
    expected = kind(cache).clone()
    assert torch.equal(kind(cache), expected)
    noted = tried = 0
    for path, position in flipped(cache / "maps" if kind is maps else cache, KINDS[kind]):
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            assert torch.equal(kind(cache), expected), (path, position)
        tried += 1
        noted += any("damaged" in str(note.message) and str(path.parent) in str(note.message) for note in notes)
        noted += kind is scenes and any(str(path.parents[1]) in str(note.message) for note in notes)
    assert tried > 5
    # In the list of contents of an npz file there are bytes that mean nothing, such as the hour.
    assert noted == tried or (kind is maps and noted > tried // 2)


def test_a_region_map_that_is_another_than_when_it_was_indexed_is_refused(cache):
    maps(cache)
    (path,) = (cache / "maps").glob("*.npz")
    with np.load(path) as file:
        np.savez_compressed(path, instance_mask=file["instance_mask"] % 3)
    dataset = tiny_demo()
    with pytest.raises(ob.OvssError, match=r"is damaged, or has changed since regions.json was made.*rerun tools/regions.py"):
        load_regions(cache / "maps")(dataset.image(dataset.samples[0]))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.view(torch.int32),
        lambda tensor: tensor.view(4, 3, 2),
        lambda tensor: tensor.flatten(),
        lambda tensor: tensor[:, :, :2].contiguous(),
    ],
)
def test_type_and_shape_are_checked_with_the_content(change, tmp_path):
    path = tmp_path / "key.safetensors"
    write_entry(path, {"tokens": TOKENS})
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({"tokens": change(load_file(path)["tokens"].clone())}, path, metadata)
    with pytest.warns(UserWarning, match=r"key.safetensors is damaged \(its checksum is wrong\); it is recomputed"):
        assert read_entry(path) is None


def test_an_entry_under_another_name_is_not_trusted(tmp_path):
    write_entry(tmp_path / "one.safetensors", {"tokens": TOKENS})
    (tmp_path / "one.safetensors").rename(tmp_path / "two.safetensors")
    with pytest.warns(UserWarning, match="checksum"):
        assert read_entry(tmp_path / "two.safetensors") is None
    assert read_entry(tmp_path / "one.safetensors") is None


def test_a_run_counts_the_same_with_damaged_caches(cache, tmp_path):
    runtime = ob.Runtime(trunk_cache=str(tmp_path / "trunk"))

    def run():
        dataset = tiny_demo()
        job = make_job("sclip", demo_clip(), dataset, overrides=FAST)
        (result,) = run_jobs([job], limit=1, runtime=runtime, quiet=True)
        return json.dumps(result.data["per_class"]), dataset.fingerprint

    expected = run()
    for path in sorted(cache.rglob("*.safetensors")):
        content = bytearray(Path(path).read_bytes())
        content[-9] ^= 64  # of the last number but one: its sign or exponent
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged"):
        assert run() == expected


def test_other_users_may_read_entries(tmp_path):
    before = os.umask(0o027)
    try:
        write_entry(tmp_path / "entry.safetensors", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "entry.safetensors").stat().st_mode & 0o777 == 0o640
    assert len(list(tmp_path.iterdir())) == 1
