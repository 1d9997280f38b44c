"""Vision encoders against timm's and transformers' own forward passes, and position rules."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

import ovss_bench as ob
from ovss_bench.encoders import vision
from ovss_bench.encoders.vision import OncePerImage, load_vision
from ovss_bench.files import load_config
from ovss_bench.ops.position import resample_position
from ovss_bench.ops.windows import SlidingWindow
from parity import seeded
from parity.reference import Reference
from tiny_networks import SIZES, as_map, close, images, loaded, shake, vit


@pytest.fixture(scope="module")
def weights():
    """A tiny DINO: patch 8, positions for 4x4 patches."""
    return seeded.dino_state_dict(3, **SIZES)


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


# Once per image


def windows_of(image, side, stride, pad="none"):
    """The windows of an image, as methods get them."""
    context = ob.ImageContext(image, image, seeded.clip_input(image)[0], image.shape[:2])
    windows = SlidingWindow.of(*image.shape[:2], side, stride, 8, pad)
    origins = torch.tensor(windows.origins)
    pixels = torch.stack(windows.cut(context.pixels))
    return ob.WindowBatch(pixels, origins, torch.zeros(len(pixels), dtype=torch.int64), [context])


@pytest.fixture
def once(weights):
    return OncePerImage(loaded(weights))


def test_features_of_windows_are_cut_from_those_of_the_image(once):
    """On windows that begin at a patch they are the image's own, elsewhere between two."""
    image, calls = seeded.rgb_image(5, 48, 72), []
    once.encoder = lambda batch, encoder=once.encoder: calls.append(len(batch.pixels)) or encoder(batch)
    batch = windows_of(image, 32, 20)
    whole = once.encoder(ob.WindowBatch(seeded.clip_input(image)))[0]
    found = once(batch)
    assert calls == [1, 1]
    assert batch.origins.tolist() == [[0, 0], [0, 20], [0, 40], [16, 0], [16, 20], [16, 40]]
    for (top, left), window in zip(batch.origins.tolist(), found, strict=True):
        rows, first = slice(top // 8, top // 8 + 4), left // 8
        expected = whole[:, rows, first : first + 4]
        if left % 8:  # 20 pixels are two patches and a half
            expected = (expected + whole[:, rows, first + 1 : first + 5]) / 2
        close(window, expected)


def test_a_window_that_is_the_image_has_its_features(once):
    batch = windows_of(seeded.rgb_image(5, 40, 64), 64, 64)
    close(once(batch), once.encoder(ob.WindowBatch(batch.pixels)))


def test_padded_windows_have_the_nearest_features(once):
    batch = windows_of(seeded.rgb_image(5, 43, 64), 64, 64, "center")
    whole = once.of_image(batch.contexts[0])
    assert batch.origins.tolist() == [[-2, 0]]
    assert whole.shape[2:] == (6, 8)
    close(once(batch)[0, :, 0], whole[0, :, 0])
    close(once(batch)[0, :, 1], whole[0, :, 0] / 4 + whole[0, :, 1] * 3 / 4)


def test_the_name_says_that_it_runs_once_per_image(once, tmp_path):
    once_more = load_vision("demo@image")
    assert isinstance(once_more, OncePerImage)
    assert once_more.digest != load_vision("demo").digest
    with pytest.raises(ob.OvssError, match=r"vfm=.*@image: a folder holds features of whole images\. Leave @image out"):
        load_vision(f"{tmp_path}@image")
    with pytest.raises(ob.OvssError, match="no_such"):
        load_vision("no_such@image")
    with pytest.raises(ob.OvssError, match="number of heads for a width of"):
        load_vision("demo@image", heads=5)  # options reach the encoder
