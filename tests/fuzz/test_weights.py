"""Weights of every kind and format, the caches and folders of maps: damaged files, wrong tensors, and what is no such file."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.models.vision_transformer_sam import VisionTransformerSAM

import ovss_bench as ob
from fuzz.common import VALUES, damaged, inputs, outcome
from ovss_bench.auxiliary.bank import load_bank
from ovss_bench.auxiliary.foreground import load_foreground
from ovss_bench.auxiliary.regions import RegionFolder, load_regions, write_index, write_regions
from ovss_bench.cache import read_entry, write_entry
from ovss_bench.encoders.diffusion import load_diffusion
from ovss_bench.encoders.vision import FeatureFolder, load_vision
from ovss_bench.types import ImageContext, WindowBatch
from parity import seeded
from tiny_networks import shake
from unit.conftest import networks  # noqa: F401
from unit.test_clip import torchscript
from unit.test_diffusion import tiny as tiny_diffusion  # noqa: F401

IMAGE = seeded.rgb_image(1, 30, 40)
VOCABULARY = ob.Vocabulary.from_names(["sand", "cloth"], templates="none")
METADATA = {
    "architecture": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 64},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    },
    "activation": "gelu",
    "heads": 2,
    "layer_norm_eps": 1e-6,
}


def clip_state():
    sizes = {"width": 64, "layers": 2, "resolution": 32, "embed_dim": 16, "text_width": 8, "text_layers": 1}
    return {name: t.half() if t.is_floating_point() else t for name, t in seeded.clip_state_dict(3, **sizes).items()}


def dino_state():
    return seeded.dino_state_dict(3, width=32, layers=2, patch_size=8, resolution=32)


def use_clip(path):
    clip = ob.load_clip(path)
    trunk = clip.trunk(torch.zeros(1, 3, 48, 32))
    with torch.inference_mode():
        clip.head(clip.block(-1, trunk.grid)(trunk.tokens))
    clip.encode_text(["a dog", "a black cat"])


def use_vision(path):
    load_vision(path, heads=None if path.suffix == ".safetensors" else 2).features(torch.zeros(1, 3, 40, 48))


def use_bank(path):
    bank = load_bank(path)
    bank.cosines(bank.search(torch.ones(3, 6), 2), torch.ones(2, 8), VOCABULARY)


def use_foreground(path):
    load_foreground(path, encoder=load_vision(state_dict=dino_state(), heads=2, feature="k"))(IMAGE)


STATES = {
    use_clip: clip_state,
    use_vision: dino_state,
    use_bank: lambda: {"keys": torch.randn(5, 6), "values": torch.randn(5, 8)},
    use_foreground: lambda: {"weight": torch.randn(1, 32, 1, 1), "bias": torch.zeros(1)},
}
WRITERS = {
    "w.safetensors": lambda state, path: save_file(state, path, {name: json.dumps(value) for name, value in METADATA.items()}),
    "w.pt": torch.save,
    "legacy.pth": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "script.pt": lambda state, path: torch.jit.save(torchscript(state), path),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """By use and file name, the bytes of a file that works."""
    folder, files = tmp_path_factory.mktemp("whole"), {}
    for use, state in STATES.items():
        for name, write in WRITERS.items():
            if name == "script.pt" and use is not use_clip:
                continue
            write(state(), folder / name)
            assert outcome(use, folder / name) is None, (use, name)
            files[use, name] = (folder / name).read_bytes()
    return files


@st.composite
def damaged_somewhere(draw, content):
    """Damage anywhere, or where the structure of most formats is: at the beginning, or at the end."""
    part = draw(st.sampled_from([len(content), 300, 3000, -300, -3000]))
    first, last = (content[:part], content[part:])
    return draw(damaged(first)) + last if part > 0 else first + draw(damaged(last))


@inputs(0.06)
@given(draw=st.data())
def test_damaged_weights(whole, tmp_path_factory, draw):
    use, name = draw.draw(st.sampled_from(list(whole)))
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(draw.draw(damaged_somewhere(whole[use, name])))
    outcome(use, path)


STARTS = [b"", b"<!DOCTYPE html><html><body>Sign in</body></html>", b"version https://git-lfs.github.com/spec/v1\n", b"PK\3\4"]
STARTS += [
    b"PK\5\6" + bytes(18),
    b"\x80\2}q\0.",
    b"\x80\2]q\0.",
    b"\x10\0\0\0\0\0\0\0{}",
    b"\2\0\0\0\0\0\0\0{}",
    b"\x1f\x8b\x08",
]


@inputs(0.06)
@given(
    content=st.binary(max_size=60) | st.text(max_size=40).map(str.encode),
    start=st.sampled_from(STARTS),
    use=st.sampled_from(list(STATES)),
    name=st.sampled_from(["w.safetensors", "w.pt", "w.bin"]),
)
def test_what_holds_no_weights(tmp_path_factory, content, start, use, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(start + content)
    assert isinstance(outcome(use, path), ob.OvssError)


CHANGES = {
    "remove": None,
    "rank": lambda tensor: tensor[None],
    "flat": lambda tensor: tensor.flatten(),
    "transposed": lambda tensor: tensor.transpose(0, -1) if tensor.ndim else tensor,
    "half": lambda tensor: tensor[: len(tensor) // 2] if tensor.ndim else tensor,
    "twice": lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor,
    "empty": lambda tensor: tensor[:0] if tensor.ndim else tensor,
    "hollow": lambda tensor: torch.empty(10**9, 0),
    "number": lambda tensor: torch.tensor(3.0),
    "nan": lambda tensor: tensor * float("nan"),
    **{
        str(kind): lambda tensor, kind=kind: tensor.to(kind)
        for kind in (torch.int8, torch.bool, torch.float64, torch.complex64)
    },
}


@inputs(0.08)
@given(
    draw=st.data(),
    use=st.sampled_from(list(STATES)),
    name=st.sampled_from(["w.safetensors", "w.pt"]),
    changes=st.lists(st.sampled_from([*CHANGES, "rename"]), max_size=3),
)
def test_weights_of_wrong_tensors_and_metadata(tmp_path_factory, draw, use, name, changes):
    state, metadata = STATES[use](), json.loads(json.dumps(METADATA))
    for change in changes:
        key = draw.draw(st.sampled_from(sorted(state)))
        tensor = state.pop(key)
        if change == "rename":
            state[draw.draw(st.sampled_from([f"{key}.x", key.replace("0", "999999999"), f"module.{key}", "aux_values"]))] = (
                tensor
            )
        elif change != "remove":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state[key] = CHANGES[change](tensor).contiguous()
        state = state or {"x": torch.zeros(1)}
    part = metadata
    for _ in range(draw.draw(st.integers(0, 2)) if name == "w.safetensors" else 0):
        key = draw.draw(st.sampled_from([*part, "aux_clip"]))
        if isinstance(part.get(key), dict) and draw.draw(st.booleans()):
            part = part[key]
        else:
            part[key] = draw.draw(VALUES)
    path = tmp_path_factory.getbasetemp() / name
    if name == "w.pt":
        torch.save(state, path)
    else:
        save_file(state, path, {key: json.dumps(value) for key, value in metadata.items()})
    outcome(use, path)


@pytest.fixture(scope="module")
def sam_file(tmp_path_factory):
    """An image encoder of SAM as a state dict, with its bytes."""
    path = tmp_path_factory.mktemp("sam") / "sam.pt"
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "neck_chans": 16, "num_classes": 0}
    theirs = VisionTransformerSAM(80, 16, global_attn_indexes=(1,), window_size=3, use_rel_pos=True, **sizes)
    torch.save(shake(theirs).state_dict(), path)
    assert outcome(use_vision, path) is None
    return path


@inputs(0.02)
@given(draw=st.data(), change=st.sampled_from(list(CHANGES)))
def test_sam_of_wrong_tensors(sam_file, tmp_path_factory, draw, change):
    state = torch.load(sam_file)
    key = draw.draw(st.sampled_from(sorted(state)))
    tensor = state.pop(key)
    if change != "remove":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state[key] = CHANGES[change](tensor).contiguous()
    path = tmp_path_factory.getbasetemp() / "sam.pt"
    torch.save(state, path)
    outcome(use_vision, path)


SCENE = ImageContext(IMAGE, IMAGE, torch.zeros(3, 30, 40), (30, 40))


def use_features(folder):
    FeatureFolder(folder)(WindowBatch(torch.zeros(1, 3, 30, 40), contexts=[SCENE]))


def use_regions(folder):
    regions = RegionFolder(folder)(IMAGE)
    assert np.array_equal(regions, MAP)


MAP = np.arange(1200).reshape(30, 40) % 7


@inputs(0.04)
@given(draw=st.data(), which=st.sampled_from(["features", "maps", "index", "entry"]))
def test_damaged_maps_and_indices(tmp_path_factory, draw, which):
    folder = tmp_path_factory.mktemp("maps")
    if which == "entry":
        path, tensors = folder / "key.safetensors", {"features": torch.arange(12.0).view(3, 4)}
        write_entry(path, tensors)
    elif which == "features":
        path = folder / f"{ob.image_key(IMAGE)}.npz"
        np.savez_compressed(path, features=np.ones((4, 3, 4), np.float32))
    else:
        write_regions(folder / "a.npz", MAP)
        index = {"digest": "x", "regions": "slic", "settings": {}, "stand_in": False, "command": "again", "contents": {}}
        write_index(folder, index | {"images": {ob.image_key(IMAGE): "a.npz"}})
        path = folder / ("a.npz" if which == "maps" else "regions.json")
    path.write_bytes(draw.draw(damaged(path.read_bytes())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if which == "entry":
            found = read_entry(path)
            assert found is None or torch.equal(found["features"], tensors["features"])
        else:
            outcome(use_features if which == "features" else use_regions, folder)
    shutil.rmtree(folder)


@inputs(0.02)
@given(draw=st.data(), kind=st.sampled_from(["diffusion", "sam", "sam2"]))
def test_folders_of_networks(tiny_diffusion, networks, tmp_path_factory, draw, kind):  # noqa: F811
    source = tiny_diffusion if kind == "diffusion" else networks[kind]
    folder = tmp_path_factory.mktemp("networks") / "copy"
    shutil.copytree(source, folder)
    file = draw.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    content = file.read_bytes()
    if file.suffix == ".json" and draw.draw(st.booleans()):
        config = json.loads(content)
        config[draw.draw(st.sampled_from(sorted(config)))] = draw.draw(VALUES)
        file.write_text(json.dumps(config))
    elif draw.draw(st.booleans()):
        file.unlink()
    else:
        file.write_bytes(draw.draw(damaged_somewhere(content)))

    def use():
        if kind == "diffusion":
            load_diffusion(folder, attention_layers=[-2])(IMAGE)
        else:
            load_regions({"sam": "sam_vith_07", "sam2": "sam2_8"}[kind], weights=str(folder), points_per_side=2)(IMAGE)

    outcome(use)
    shutil.rmtree(folder.parent)
