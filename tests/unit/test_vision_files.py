"""Vision encoders by name and from files: the entries, every published format, precision, mistakes."""

import argparse
import json

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM

import ovss_bench as ob
from ovss_bench.encoders import vision
from ovss_bench.encoders.vision import load_vision
from ovss_bench.files import CONFIGS, config_names, load_config
from ovss_bench.image import normalize
from parity import seeded
from tiny_networks import SIZES, as_map, close, images, loaded, shake, vit

NAMES = config_names("vision")
PUBLISHED = {  # the same architectures by timm's names
    "dino_vits8": "vit_small_patch8_224",
    "dino_vits8_300ep": "vit_small_patch8_224",
    "dino_vits16": "vit_small_patch16_224",
    "dino_vitb8": "vit_base_patch8_224",
    "dino_vitb16": "vit_base_patch16_224",
    "mae_vitb16": "vit_base_patch16_224",
    "sam_vitb": "samvit_base_patch16",
    "sam_vitl": "samvit_large_patch16",
    "sam2_hiera_large": "sam2_hiera_large",
} | {
    f"dinov{version}_vit{size[0]}{patch}{reg}": f"vit_{size}_patch{patch}_{'reg4_' if reg else ''}dinov{version}"
    for size in ("small", "base", "large")
    for version, patch, reg in ((2, 14, ""), (2, 14, "_reg"), (3, 16, ""))
}


@pytest.fixture(scope="module")
def weights():
    """A tiny DINO: patch 8, positions for 4x4 patches."""
    return seeded.dino_state_dict(3, **SIZES)


# The entries of configs/vision.


def test_every_entry_is_a_published_architecture():
    assert set(PUBLISHED) == set(NAMES) - {"demo"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_sizes_of_an_entry_are_those_of_its_architecture(name):
    entry = load_config("vision", name)
    with torch.device("meta"):
        state = timm.create_model(PUBLISHED[name], num_classes=0).state_dict()
    if name.startswith("sam2"):
        state = {f"image_encoder.trunk.{key}": tensor for key, tensor in state.items() if not key.startswith("head")}
        for i, channels in enumerate((1152, 576)):
            state[f"image_encoder.neck.convs.{i}.conv.weight"] = torch.empty(256, channels, 1, 1, device="meta")
            state[f"image_encoder.neck.convs.{i}.conv.bias"] = torch.empty(256, device="meta")
    model, _ = vision._build(state, entry)
    found = {"patch": model.patch_size, "width": model.width, "depth": model.depth, "heads": model.heads}
    assert found | {"architecture": model.architecture} == {key: entry[key] for key in [*found, "architecture"]}
    assert entry.get("position") == getattr(model, "position", None)


def small(entry):
    """Random weights of an entry's kind in the official naming, and the entry with their sizes."""
    if entry["architecture"] == "sam":
        options = {"global_attn_indexes": (1,), "use_rel_pos": True, "num_classes": 0, "neck_chans": 8, "window_size": 2}
        state = VisionTransformerSAM(64, 16, embed_dim=32, depth=2, num_heads=2, **options).state_dict()
        state = {f"image_encoder.{name.replace('mlp.fc', 'mlp.lin')}": tensor for name, tensor in state.items()}
    else:
        state = seeded.dino_state_dict(5, width=32, layers=2, patch_size=entry["patch"], resolution=4 * entry["patch"])
        if entry["file"].startswith("dinov"):
            state["mask_token"] = torch.zeros(1, 32)
            state |= {f"blocks.{i}.ls{j}.gamma": torch.full((32,), 0.5) for i in (0, 1) for j in (1, 2)}
        if "reg4" in entry["file"]:
            state["register_tokens"] = torch.ones(1, 4, 32)
        if "position" not in entry:
            state["storage_tokens"] = torch.ones(1, 4, 32)
            del state["pos_embed"]
    return state, entry | {"width": 32, "depth": 2, "heads": 2}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "sam2_hiera_large"])  # it has a test of its own
def test_an_entry_loads_from_its_official_file(name, monkeypatch, tmp_path):
    state, entry = small(load_config("vision", name))
    torch.save({"model": state} if "mae" in name else state, tmp_path / entry["file"])
    monkeypatch.setenv("OVSS_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(vision, "load_config", lambda group, other: entry if other == name else load_config(group, other))
    features = [load_vision(source).features(images(48, 48)) for source in (name, entry["file"], tmp_path / entry["file"])]
    expected = (4, 4) if entry["architecture"] == "sam" else (48 // entry["patch"],) * 2
    assert features[0].shape[2:] == expected
    assert features[0].isfinite().all()
    assert all(torch.equal(other, features[0]) for other in features[1:])


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_an_entry_names_its_source(name):
    lines = (CONFIGS / "vision" / f"{name}.yaml").read_text().splitlines()
    values = [line for line in lines if not line.startswith("#")]
    assert all(line.partition(" #")[2].strip() for line in values)
    assert {"licence", "architecture", "file"} <= yaml.safe_load("\n".join(values)).keys()


# Formats.

WRITERS = {
    "plain.pth": torch.save,
    "mae.pth": lambda state, path: torch.save({"model": state, "args": argparse.Namespace(lr=1.0)}, path),
    "dino.pth": lambda state, path: torch.save(training(state), path),
    "timm.safetensors": lambda state, path: save_file(state | {"head.weight": torch.zeros(3, 32)}, path),
    "half.safetensors": save_file,
}


def training(state):
    """A checkpoint as DINO's training code writes it."""
    teacher = {f"backbone.{name}": tensor for name, tensor in state.items()} | {"head.mlp.0.weight": torch.zeros(2, 2)}
    student = {f"module.{name}": torch.zeros_like(tensor) for name, tensor in teacher.items()}
    return {"student": student, "teacher": teacher, "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=1.0)}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_weights(name, weights, tmp_path):
    state = {key: tensor.half().float() for key, tensor in weights.items()}
    WRITERS[name]({key: t.half() for key, t in state.items()} if "half" in name else state, tmp_path / name)
    encoder = load_vision(tmp_path / name, heads=2)
    assert encoder.digest == loaded(state).digest
    assert encoder.name == name


def test_registers_in_three_namings(weights):
    """timm keeps the class token's position in the class token."""
    official = weights | {"register_tokens": torch.ones(1, 4, 32), "mask_token": torch.zeros(1, 32)}
    official |= {f"blocks.{i}.ls{j}.gamma": torch.full((32,), 0.5) for i in range(3) for j in (1, 2)}
    theirs = official | {"reg_token": official["register_tokens"]}
    theirs |= {"cls_token": weights["cls_token"] + weights["pos_embed"][:, :1], "pos_embed": weights["pos_embed"][:, 1:]}
    theirs = {name: tensor for name, tensor in theirs.items() if name not in ("register_tokens", "mask_token")}
    assert loaded(theirs).digest == loaded(official).digest
    model = vit(reg_tokens=4, no_embed_class=True, init_values=1.0)
    model.load_state_dict(theirs)
    with torch.no_grad():
        expected = model.eval().forward_features(images(32, 32))[:, 5:]
    close(loaded(official).features(images(32, 32)), as_map(expected, (4, 4)))


def test_the_demo_knows_its_heads(monkeypatch, tmp_path):
    model = VisionTransformer(40, 4, embed_dim=16, depth=2, num_heads=4, num_classes=0)
    half = {name: tensor.half() for name, tensor in shake(model).state_dict().items()}
    save_file(half, tmp_path / "demo_vision.safetensors", {"heads": "4", "layer_norm_eps": "1e-6"})
    monkeypatch.setenv("OVSS_WEIGHTS", str(tmp_path))
    encoder = load_vision("demo")
    assert (encoder.name, encoder.patch_size, encoder.model.heads, encoder.model.position) == ("demo", 4, 4, "offset")
    model.load_state_dict({name: tensor.float() for name, tensor in half.items()})
    with torch.no_grad():
        expected = model.eval().forward_features(images(40, 40))[:, 1:]
    close(encoder.features(images(40, 40)), as_map(expected, (10, 10)))
    assert encoder.features(images(56, 56)).shape[2:] == (14, 14)


# What comes in and goes out.


def test_windows_are_renormalised(weights):
    image = seeded.rgb_image(7, 40, 32)
    encoder = loaded(weights)
    features = encoder(ob.WindowBatch(normalize(image, "clip_exact")[None]))
    close(features, encoder.features(normalize(image, "imagenet")[None]))
    assert (features.shape, features.dtype) == ((1, 32, 5, 4), torch.float32)


def test_chunks_change_nothing(weights, monkeypatch):
    encoder, pixels = loaded(weights), images(32, 32, count=5)
    whole = encoder.features(pixels)
    for budget in (1, 40):  # one image at a time, and two
        monkeypatch.setitem(vision.TOKENS, "cpu", budget)
        sizes = []
        handle = encoder.model.patch_embed.register_forward_pre_hook(
            lambda module, inputs, kept=sizes: kept.append(len(inputs[0]))
        )
        close(encoder.features(pixels), whole)
        handle.remove()
        assert sizes == ([1] * 5 if budget == 1 else [2, 2, 1])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["plain", "rotary", "sam"])
def test_lower_precision_stays_close(precision, kind, weights):
    state, options = dict(weights), {"heads": 2}
    if kind == "rotary":
        del state["pos_embed"]
    if kind == "sam":
        state, options = small(load_config("vision", "sam_vitb"))[0], {}
    exact, low = (load_vision(state_dict=state, **options, precision=name) for name in ("fp32", precision))
    features = [encoder.features(images(32, 48)) for encoder in (exact, low)]
    assert features[1].dtype == torch.float32
    assert (features[0] - features[1]).abs().max() < 0.05 * features[0].abs().max()
    assert exact.digest != low.digest


def test_the_digest_follows_weights_and_settings(weights):
    changes = [{}, {"heads": 4}, {"layer_norm_eps": 1e-5}, {"position": "size"}, {"feature": "k"}, {"feature": "v"}]
    digests = [loaded(weights, **change).digest for change in changes]
    digests.append(loaded(weights | {"norm.bias": weights["norm.bias"] + 1e-6}).digest)
    assert len(set(digests)) == len(digests)
    assert digests[0] == loaded(weights, layer_norm_eps=1e-6, position="offset", feature="tokens").digest


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "dino_vitb9"}, r"unknown vision 'dino_vitb9'. Did you mean .*dino_vitb8"),
        ({"name": "/nowhere/dino.pth"}, r"weights /nowhere/dino\.pth do not exist"),
        ({}, r"unknown vision 'None'"),
        ({"feature": "qk"}, r"unknown feature 'qk'.*q\+k"),
        ({"position": "bicubic"}, r"unknown position 'bicubic'"),
        ({"precision": "fp61"}, r"unknown precision 'fp61'"),
    ],
    ids=str,
)
def test_bad_names_are_refused(arguments, message):
    with pytest.raises(ob.OvssError, match=message):
        load_vision(**arguments)


@pytest.mark.parametrize(("heads", "message"), [(None, "do not determine it"), (5, "5 do not divide")])
def test_heads_must_be_known_and_fit(heads, message, weights):
    with pytest.raises(ob.OvssError, match=f"(?s){message}.*heads=NUMBER"):
        loaded(weights, heads=heads)


def test_the_published_widths_have_heads_of_64_channels():
    state = seeded.dino_state_dict(1, width=384, layers=1, patch_size=16, resolution=32)
    assert load_vision(state_dict=state).model.heads == 6


@pytest.mark.parametrize(
    "change",
    [
        {"blocks.1.attn.qkv.weight": None},
        {"blocks.1.norm2.bias": None},
        {"blocks.0.mlp.fc2.weight": None},
        {"patch_embed.proj.weight": None},
        {"cls_token": None},
        {"norm.weight": None},
        {"pos_embed": torch.zeros(1, 13, 32)},
        {"blocks.2.norm1.weight": torch.zeros(16)},
        {"something.else": torch.zeros(3)},
        {"blocks.999999999.norm1.weight": torch.zeros(32)},
        {"cls_token": torch.zeros(2, 1, 32)},
        {"cls_token": torch.zeros(32)},
        {"register_tokens": torch.zeros(2, 3, 32)},
        {"norm.weight": torch.zeros(32, dtype=torch.int8)},
        {"patch_embed.proj.weight": torch.zeros(32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_tensors_that_do_not_fit_are_refused(change, weights):
    state = {name: tensor for name, tensor in (weights | change).items() if tensor is not None}
    with pytest.raises(ob.OvssError, match=r"weights of vision encoder 'state_dict' do not fit"):
        loaded(state)


@pytest.mark.parametrize(
    ("key", "value"),
    [("heads", [2]), ("heads", 0), ("heads", "2"), ("heads", True), ("layer_norm_eps", 3), ("layer_norm_eps", {})],
)
def test_bad_metadata_are_refused(key, value, weights, tmp_path):
    save_file(weights, tmp_path / "w.safetensors", {name: json.dumps(v) for name, v in ({"heads": 2} | {key: value}).items()})
    with pytest.raises(ob.OvssError, match=f"do not fit: {key}="):
        load_vision(tmp_path / "w.safetensors")


def test_another_models_weights_under_an_entrys_name_are_refused(weights, monkeypatch, tmp_path):
    torch.save(weights, tmp_path / "dino_vitbase8_pretrain.pth")
    monkeypatch.setenv("OVSS_WEIGHTS", str(tmp_path))
    with pytest.raises(ob.OvssError, match=r"dino_vitb8.*width 32 instead of 768"):
        load_vision("dino_vitb8", heads=2)


def test_sam_has_one_feature_and_fixed_positions():
    state, _ = small(load_config("vision", "sam_vitb"))
    for options, message in (
        ({"feature": "k"}, "image embedding only"),
        ({"position": "size"}, "never resamples"),
        ({"heads": 3}, "heads 2 instead of 3"),
    ):
        with pytest.raises(ob.OvssError, match=message):
            load_vision(state_dict=state, **options)


def test_images_smaller_than_a_patch_are_refused(weights):
    with pytest.raises(ob.OvssError, match="image of 7x32 pixels is smaller than a patch"):
        loaded(weights).features(images(7, 32))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and empty caches."""
    monkeypatch.setattr(vision.huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(vision.huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("OVSS_WEIGHTS", raising=False)


@pytest.mark.parametrize("name", ["dino_vitb8", "dinov3_vitl16", "sam2_hiera_large"])
def test_weights_that_cannot_be_downloaded(name, offline):
    file, source = load_config("vision", name)["file"], "https://(huggingface.co/timm|dl.fbaipublicfiles.com)/"
    with pytest.raises(ob.OvssError, match=f"{file}, are not on .*from {source}.*vfm=/path/to/{file}.*OVSS_WEIGHTS"):
        load_vision(name)


def test_torch_hubs_cache_is_used(weights, offline, monkeypatch, tmp_path):
    entry = load_config("vision", "dino_vitb8") | {"width": 32, "depth": 3, "heads": 2}
    monkeypatch.setattr(vision, "load_config", lambda group, name: entry)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(weights, tmp_path / "hub" / "checkpoints" / entry["file"])
    assert load_vision("dino_vitb8").digest == loaded(weights).digest
