"""Vision encoders against timm's and transformers' own forward passes, every published format, position rules, bad weights."""

import argparse
import json

import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

import ovss_bench as ob
from ovss_bench.encoders import vision
from ovss_bench.encoders.vision import load_vision
from ovss_bench.files import CONFIGS, config_names, load_config
from ovss_bench.image import normalize
from ovss_bench.ops.position import resample_position
from parity import seeded
from parity.reference import Reference

NAMES = config_names("vision")
SIZES = {"width": 32, "layers": 3, "patch_size": 8, "resolution": 32}
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


def shake(model, seed=1):
    """Random values everywhere, also where an initialisation leaves zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim == 1 else 0.15))
    return model.eval()


def images(*size, count=2):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(2))


def as_map(tokens, grid):
    return tokens.transpose(1, 2).unflatten(2, grid)


def close(actual, expected, atol=2e-5):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=atol)


def vit(size=(32, 32), **options):
    return VisionTransformer(size, 8, embed_dim=32, depth=3, num_heads=2, num_classes=0, global_pool="", **options)


def loaded(state, **options):
    return load_vision(state_dict=dict(state), **({"heads": 2} | options))


# Against other codes.


@pytest.mark.parametrize("feature", ["tokens", "q", "k", "v", "q+k"])
def test_a_plain_vit_agrees_with_timm(feature, weights):
    theirs, kept = vit(), []
    theirs.load_state_dict(weights)
    theirs.blocks[-1].attn.qkv.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        tokens = theirs.eval().forward_features(images(32, 32))
    parts = dict(zip(["q", "k", "v"], kept[0].chunk(3, -1), strict=True)) | {"tokens": tokens}
    expected = sum(parts[part] for part in feature.split("+"))[:, 1:]
    encoder = loaded(weights, feature=feature)
    assert (encoder.feature, encoder.patch_size) == (feature, 8)
    close(encoder.features(images(32, 32)), as_map(expected, (4, 4)))


@pytest.mark.parametrize("array", ["dino_tokens", "dino_tokens_336"])
def test_dino_agrees_with_the_official_code(array):
    reference = Reference("proxyclip_dino")
    if array not in reference.arrays:
        pytest.skip("this set has no such array")
    about = reference.info["vfm"]
    state = seeded.dino_state_dict(reference.seed("vfm", about["args"]["seed"]), width=about["args"]["width"])
    encoder = load_vision(state_dict=state, heads=about["num_heads"], layer_norm_eps=about["layernorm_eps"])
    side, step = (336, 6) if array.endswith("_336") else (reference.case["square"][0], 4)
    pixels = seeded.clip_input(seeded.rgb_image(reference.seed("square_image", 21), side, side))
    tokens = encoder(ob.WindowBatch(pixels))[0].permute(1, 2, 0)[::step, ::step]
    close(tokens, torch.from_numpy(reference.arrays[array]), 1e-4)


@pytest.mark.parametrize("position", ["offset", "size", "antialias", "bilinear"])
@pytest.mark.parametrize("size", [(48, 48), (16, 64), (24, 40), (28, 38)], ids=str)
def test_positions_are_resampled_by_the_named_rule(position, size, weights):
    """(16, 64) has as many patches as are stored, but is no square: DINO resamples then too. (28, 38) lose their edges."""
    grid = (size[0] // 8, size[1] // 8)
    table = weights["pos_embed"][0]
    options = {"scale_factor": [(n + 0.1) / 4 for n in grid]} if position == "offset" else {"size": grid}
    mode = "bilinear" if position == "bilinear" else "bicubic"
    patches = table[1:].T.reshape(1, 32, 4, 4)
    patches = F.interpolate(patches, mode=mode, antialias=position == "antialias", **options).flatten(2)[0].T
    theirs = vit((8 * grid[0], 8 * grid[1]))
    theirs.load_state_dict(weights | {"pos_embed": torch.cat([table[:1], patches])[None]})
    pixels = images(*size)
    with torch.no_grad():
        tokens = theirs.eval().forward_features(pixels[..., : 8 * grid[0], : 8 * grid[1]])
    close(loaded(weights, position=position).features(pixels), as_map(tokens[:, 1:], grid))


def test_clip_keeps_positions_where_only_the_number_of_patches_agrees():
    table = torch.randn(17, 4)
    assert resample_position(table, (2, 8), (4, 4), "offset") is table
    assert resample_position(table, (2, 8), (4, 4), "offset", same=False) is not table


@pytest.mark.parametrize("size", [(32, 32), (48, 24)], ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_dinov2_with_registers_agrees_with_transformers(size, gated):
    """Their resampling is the official one for these models, so any size will do."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
    config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=4, use_swiglu_ffn=gated)
    theirs = shake(transformers.Dinov2WithRegistersModel(config))
    with torch.no_grad():
        expected = theirs(images(*size)).last_hidden_state[:, 5:]
    encoder = loaded(theirs.state_dict())
    assert encoder.model.position == "antialias"
    close(encoder.features(images(*size)), as_map(expected, (size[0] // 8, size[1] // 8)), 1e-4)


def test_dino_and_dinov2_agree_with_transformers(weights, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
    models = [
        transformers.ViTModel(transformers.ViTConfig(**sizes, intermediate_size=64, layer_norm_eps=1e-6)),
        transformers.Dinov2Model(transformers.Dinov2Config(**sizes)),
    ]
    for theirs in map(shake, models):
        theirs.save_pretrained(tmp_path)  # in the naming of the files on the hub, which is not that in memory
        with torch.no_grad():
            expected = theirs(images(32, 32)).last_hidden_state[:, 1:]
        encoders = [load_vision(tmp_path / "model.safetensors", heads=2), loaded(theirs.state_dict())]
        close(encoders[0].features(images(32, 32)), as_map(expected, (4, 4)), 1e-4)
        assert encoders[0].digest == encoders[1].digest


def dinov3(transformers, **options):
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "intermediate_size": 64}
    config = transformers.DINOv3ViTConfig(**sizes, num_register_tokens=4, layer_norm_eps=1e-5, **options)
    return shake(transformers.DINOv3ViTModel(config))


@pytest.mark.parametrize("size", [(32, 32), (48, 24)], ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_dinov3_agrees_with_transformers(size, gated, tmp_path):
    theirs = dinov3(pytest.importorskip("transformers"), use_gated_mlp=gated, hidden_act="silu" if gated else "gelu")
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(images(*size)).last_hidden_state[:, 5:]
    encoder = load_vision(tmp_path / "model.safetensors", heads=2)
    close(encoder.features(images(*size)), as_map(expected, (size[0] // 8, size[1] // 8)), 1e-4)
    assert encoder.digest == loaded(theirs.state_dict()).digest


def test_dinov3_in_the_official_naming_and_in_timms():
    """There the keys' bias is masked, and the periods of the rotations are stored, rounded; timm stores no biases at all."""
    theirs = timm.create_model("vit_small_patch16_dinov3_qkvb", embed_dim=32, depth=3, num_heads=2, num_classes=0)
    shake(theirs)
    state, official = theirs.state_dict(), {"mask_token": torch.ones(1, 32)}
    names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    for name, tensor in state.items():
        if name.endswith("q_bias"):
            block = name.removesuffix("q_bias")
            biases = [tensor, torch.full((32,), 9.0), state[f"{block}v_bias"]]
            official[f"{block}qkv.bias"] = torch.cat(biases)
            official[f"{block}qkv.bias_mask"] = torch.cat([torch.ones(32), torch.zeros(32), torch.ones(32)])
        elif not name.endswith("v_bias"):
            official[next((name.replace(mine, own) for mine, own in names.items() if mine in name), name)] = tensor
    ours = loaded(state)
    assert ours.digest == loaded(official).digest
    with torch.no_grad():
        expected = theirs.forward_features(images(48, 80))[:, 5:]
    close(ours.features(images(48, 80)), as_map(expected, (3, 5)), 1e-4)
    periods = (100 ** (torch.arange(4) / 4)).bfloat16()
    rounded = loaded(official | {"rope_embed.periods": periods})
    assert 0 < (rounded.features(images(48, 80)) - ours.features(images(48, 80))).abs().max() < 0.1
    plain = {name: tensor for name, tensor in state.items() if not name.endswith("_bias")}
    zero = {name: torch.zeros_like(tensor) if name.endswith("_bias") else tensor for name, tensor in state.items()}
    assert loaded(plain).digest == loaded(zero).digest


def test_mae_is_stretched_to_a_square_and_needs_no_decoder(weights):
    state = weights | {"mask_token": torch.zeros(1, 1, 32), "decoder_embed.weight": torch.zeros(4, 32)}
    state |= {"decoder_blocks.0.norm1.weight": torch.ones(4), "decoder_pos_embed": torch.zeros(1, 17, 4)}
    encoder = loaded(state)
    assert (encoder.model.position, encoder.model.square) == ("size", True)
    stretched = F.interpolate(images(32, 48), (48, 48), mode="bilinear")
    close(encoder.features(images(32, 48)), loaded(weights, position="size").features(stretched))


def test_mae_in_transformers_naming(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    decoder = {f"decoder_{name}": value for name, value in small.items()}
    config = transformers.ViTMAEConfig(**sizes, **decoder, intermediate_size=64, mask_ratio=0.0, layer_norm_eps=1e-6)
    theirs = shake(transformers.ViTMAEForPreTraining(config))
    theirs.save_pretrained(tmp_path)
    order = torch.arange(16.0).expand(2, -1)  # their shuffle, undone
    with torch.no_grad():
        expected = theirs.vit(images(32, 32), noise=order).last_hidden_state[:, 1:]
    encoder = load_vision(tmp_path / "model.safetensors", heads=2)
    assert encoder.model.square
    close(encoder.features(images(32, 32)), as_map(expected, (4, 4)), 1e-4)


SAM = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 80, "patch_size": 16}


def test_sam_agrees_with_transformers(tmp_path):
    """Windows of 3x3 on a grid of 5x5, so that they are padded."""
    transformers = pytest.importorskip("transformers")
    options = {"window_size": 3, "global_attn_indexes": [1, 3], "output_channels": 16, "mlp_dim": 64}
    theirs = shake(transformers.SamVisionModel(transformers.SamVisionConfig(**SAM, **options)))
    theirs.save_pretrained(tmp_path)
    pixels = images(50, 90)
    with torch.no_grad():
        expected = theirs(F.interpolate(pixels, (80, 80), mode="bilinear")).last_hidden_state
    encoder = load_vision(tmp_path / "model.safetensors")
    assert (encoder.model.heads, encoder.model.depth) == (2, 4)
    close(encoder.features(pixels), expected, 1e-4)


def test_sam_in_metas_naming_agrees_with_timm():
    options = {"global_attn_indexes": (1, 3), "window_size": 3, "use_rel_pos": True, "neck_chans": 16, "num_classes": 0}
    norm = {"norm_layer": lambda *args, **kwargs: nn.LayerNorm(*args, eps=1e-6, **kwargs)}
    theirs = shake(VisionTransformerSAM(80, 16, embed_dim=32, depth=4, num_heads=2, **options, **norm))
    state = {f"image_encoder.{name.replace('mlp.fc', 'mlp.lin')}": tensor for name, tensor in theirs.state_dict().items()}
    state |= {"prompt_encoder.no_mask_embed.weight": torch.zeros(1, 16), "mask_decoder.iou_token.weight": torch.zeros(1, 16)}
    encoder = load_vision(state_dict=state)
    with torch.no_grad():
        expected = theirs.forward_features(images(80, 80))
    close(encoder.features(images(80, 80)), expected)
    assert (encoder.patch_size, encoder.features(images(30, 40)).shape[2:]) == (16, (5, 5))


@pytest.fixture
def tiny_sam2(monkeypatch):
    """An entry for a tiny SAM 2, and transformers' model of that size."""
    transformers = pytest.importorskip("transformers")
    trunk = transformers.Sam2HieraDetConfig(
        hidden_size=16,
        num_attention_heads=1,
        blocks_per_stage=[1, 2, 3, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 4, 2],
        global_attention_blocks=[4],
        image_size=[128, 128],
    )
    channels = {"backbone_channel_list": [128, 64, 32, 16], "fpn_hidden_size": 16}
    config = transformers.Sam2VisionConfig(
        backbone_config=trunk, **channels, backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]]
    )
    settings = {"heads": 1, "windows": [8, 4, 4, 2], "whole_blocks": [4], "input": 128}
    entry = load_config("vision", "sam2_hiera_large") | {"width": 16, "depth": 7, "heads": 1, "sam2": settings}
    monkeypatch.setattr(vision, "load_config", lambda group, name: entry)
    return shake(transformers.Sam2VisionModel(config))


def test_sam2_agrees_with_transformers(tiny_sam2, tmp_path):
    tiny_sam2.save_pretrained(tmp_path)
    pixels = images(100, 70)
    with torch.no_grad():
        expected = tiny_sam2(F.interpolate(pixels, (128, 128), mode="bilinear")).fpn_hidden_states[-1]
    encoder = load_vision(tmp_path / "model.safetensors")
    close(encoder.features(pixels), expected, 1e-4)
    names = {"backbone.": "trunk.", "projection": "proj", "layer_norm": "norm", "proj_in": "layers.0", "proj_out": "layers.1"}
    official = {"memory_encoder.fuser.proj.weight": torch.zeros(1), "image_encoder.neck.position_encoding.x": torch.zeros(1)}
    for name, tensor in tiny_sam2.state_dict().items():
        for mine, own in names.items():
            name = name.replace(mine, own)
        head, _, tail = name.rpartition(".")
        official[f"image_encoder.{head}.conv.{tail}" if "neck.convs" in name else f"image_encoder.{name}"] = tensor
    torch.save({"model": official}, tmp_path / "sam2.pt")
    assert load_vision(tmp_path / "sam2.pt").digest == encoder.digest


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
        handle = encoder.model.register_forward_pre_hook(lambda module, inputs, kept=sizes: kept.append(len(inputs[0])))
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


@pytest.mark.parametrize(("heads", "message"), [(None, "cannot be told"), (5, "5 do not divide")])
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
