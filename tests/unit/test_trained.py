"""Checkpoints of trained networks: wrappers, sizes from shapes, and tensors that do not fit."""

import shutil

import pytest
import torch

import ovss_bench as ob
from ovss_bench.encoders import checkpoints
from ovss_bench.encoders.trained import read_trained
from stand_ins import METHODS, sources_of

REQUIRED = {"head.weight": ("D", 4), "blocks.*.qkv.weight": ("3D", "D"), "blocks.*.qkv.bias": ("3D",)}


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(1)
    sizes = {"head.weight": (6, 4)}
    for i in range(2):
        sizes |= {f"blocks.{i}.qkv.weight": (18, 6), f"blocks.{i}.qkv.bias": (18,)}
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


def saved(content, path):
    torch.save(content, path)
    return path


def error(state, path, **options):
    with pytest.raises(ob.OvssError) as raised:
        read_trained(saved(state, path / "trained.pt"), REQUIRED, **options)
    message = str(raised.value)
    assert str(path / "trained.pt") in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_wrappers_and_prefix(state, wrapper, prefix, tmp_path):
    content = {prefix + name: tensor.double() for name, tensor in state.items()}
    content = content if wrapper is None else {wrapper: content, "optimizer": {"lr": 0.1}, "epoch": 3}
    read, sizes = read_trained(saved(content, tmp_path / "trained.pt"), REQUIRED)
    assert sizes == {"D": 6, "blocks.*": 2}
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert read[name].dtype == torch.float32
        assert read[name].equal(tensor)


def test_every_missing_tensor_is_named(state, tmp_path):
    for name in state:
        message = error({other: tensor for other, tensor in state.items() if other != name}, tmp_path)
        assert f"{name} is missing" in message


def test_missing_blocks_are_named(state, tmp_path):
    only = {"head.weight": state["head.weight"]}
    assert "blocks.0.qkv.weight is missing; blocks.0.qkv.bias is missing" in error(only, tmp_path)
    gap = {name.replace("blocks.1", "blocks.2"): tensor for name, tensor in state.items()}
    assert "blocks.1.qkv.weight is missing" in error(gap, tmp_path)


def test_every_tensor_of_another_shape_is_named(state, tmp_path):
    for name, tensor in state.items():
        assert name in error(state | {name: tensor[:-1]}, tmp_path)
        message = error(state | {name: tensor[None]}, tmp_path)
        assert f"{name} has the shape {(1, *tensor.shape)}" in message


def test_unexpected_tensors_are_named_unless_ignorable(state, tmp_path):
    extra = state | {"other.0.weight": torch.zeros(1), "other.step": torch.tensor(3)}
    message = error(extra, tmp_path)
    assert "other.0.weight is unexpected; other.step is unexpected" in message
    assert "other.step is unexpected" in error(extra, tmp_path, ignorable=["other.*.weight"])
    read, _ = read_trained(tmp_path / "trained.pt", REQUIRED, ignorable=["other.*"])
    assert read.keys() == state.keys()


def test_of_a_group_of_optional_tensors_there_are_all_or_none(state, tmp_path):
    optional = [{"text.weight": ("E", "D"), "text.bias": ("E",)}, {"scale": ()}]
    assert read_trained(saved(state, tmp_path / "without.pt"), REQUIRED, optional=optional)[0].keys() == state.keys()
    full = state | {"text.weight": torch.ones(5, 6), "text.bias": torch.ones(5)}
    read, sizes = read_trained(saved(full, tmp_path / "with.pt"), REQUIRED, optional=optional)
    assert read.keys() == full.keys()
    assert sizes["E"] == 5
    assert "text.bias is missing" in error(state | {"text.weight": torch.ones(5, 6)}, tmp_path, optional=optional)
    assert "text.bias has the shape (6,)" in error(full | {"text.bias": torch.ones(6)}, tmp_path, optional=optional)
    assert "scale has the shape (1,)" in error(full | {"scale": torch.ones(1)}, tmp_path, optional=optional)


def test_all_problems_are_in_one_error(state, tmp_path):
    del state["blocks.1.qkv.bias"]
    message = error(state | {"more": torch.ones(1), "head.weight": torch.ones(6, 3)}, tmp_path)
    assert all(name in message for name in ("blocks.1.qkv.bias", "more", "head.weight"))
    many = error(state | {f"more{i}": torch.ones(1) for i in range(50)}, tmp_path)
    assert many.endswith("; and 43 more.")


def test_whole_numbers_are_no_weights(state, tmp_path):
    assert "head.weight is torch.int64" in error(state | {"head.weight": torch.ones(6, 4, dtype=torch.int64)}, tmp_path)


def test_code_in_a_checkpoint_is_not_run(state, tmp_path):
    assert "cannot be read safely" in error(state | {"head.weight": print}, tmp_path)


TRAINED = [name for name in METHODS if "checkpoint" in ob.SEGMENTORS.get(name).hyperparameters()]


@pytest.mark.parametrize("name", TRAINED)
def test_a_checkpoint_is_read_once(name, tiny_clip, tiny_vocabulary, tmp_path, monkeypatch):
    read, paths = checkpoints._read, []
    monkeypatch.setattr(checkpoints, "_read", lambda path: paths.append(path) or read(path))
    sources = sources_of(name)
    sources["checkpoint"] = shutil.copy(sources["checkpoint"], tmp_path)  # no other test has its network
    ob.build_segmentor(name, clip=tiny_clip, vocabulary=tiny_vocabulary, **sources)
    assert [*map(str, paths)] == [sources["checkpoint"]]
