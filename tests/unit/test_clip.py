"""`load_clip` from every format, DenseCLIP against open_clip's own forward, and bad weights."""

import json
import pickle
from pathlib import Path

import huggingface_hub.constants
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ovss_bench as ob
from ovss_bench.encoders.text import TEXT_TOKENS, text_tower
from parity.seeded import clip_state_dict

SIZES = {"width": 64, "layers": 3, "resolution": 64, "embed_dim": 32, "vocab_size": 49408}
ARCHITECTURE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def weights():
    return clip_state_dict(3, **SIZES)


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def register(folder, name, **changes):
    """A small architecture under its own name in open_clip; returns its random weights."""
    config = ARCHITECTURE | changes
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(5)
    return open_clip.create_model(name).eval()


def torchscript(state_dict):
    """An archive as OpenAI's: a traced module tree with these parameters, and the sizes as buffers."""

    class Root(nn.Module):
        def forward(self, x):
            return x + self.logit_scale

    root = Root()
    for name, tensor in state_dict.items():
        *folders, leaf = name.split(".")
        module = root
        for folder in folders:
            if folder not in module._modules:
                module.add_module(folder, nn.Module())
            module = module._modules[folder]
        if tensor.is_floating_point():
            module.register_parameter(leaf, nn.Parameter(tensor.clone(), requires_grad=False))
        else:
            module.register_buffer(leaf, tensor.clone())
    return torch.jit.trace(root, torch.zeros(1))


WRITERS = {
    "weights.pt": torch.save,
    "wrapped.pth": lambda state, path: torch.save({"epoch": 3, "state_dict": state}, path),
    "distributed.pt": lambda state, path: torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path),
    "legacy.bin": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "weights.safetensors": save_file,
    "script.pt": lambda state, path: torch.jit.save(torchscript(state), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_weights(name, weights, tmp_path):
    WRITERS[name](weights, tmp_path / name)
    expected, clip = ob.load_clip(state_dict=weights), ob.load_clip(tmp_path / name)
    assert clip.weights_digest == expected.weights_digest
    loaded = clip.model.state_dict()
    for key, tensor in weights.items():
        if key not in ("input_resolution", "context_length", "vocab_size"):
            assert torch.equal(loaded[key], tensor), key
    assert (clip.patch_size, clip.stored_grid, clip.depth, clip.activation) == (16, (4, 4), 3, "quick_gelu")


def test_the_digest_follows_the_weights(weights):
    digests = {ob.load_clip(state_dict=clip_state_dict(seed, **SIZES)).weights_digest for seed in (3, 4)}
    one = weights | {"visual.ln_post.bias": weights["visual.ln_post.bias"] + 1e-6}
    assert len(digests | {ob.load_clip(state_dict=one).weights_digest}) == 3


def test_half_precision_files_keep_their_values(weights, tmp_path):
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    save_file(half, tmp_path / "half.safetensors")
    loaded = ob.load_clip(tmp_path / "half.safetensors").model.state_dict()
    assert torch.equal(loaded["visual.proj"], half["visual.proj"].float())


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_all_tokens_equal_open_clips_own_forward(activation, weights, images):
    clip = ob.load_clip(state_dict=weights, activation=activation)
    vision = ARCHITECTURE["vision_cfg"] | {"head_width": 64}
    text = ARCHITECTURE["text_cfg"] | {"layers": 2, "heads": 1}
    theirs = open_clip.CLIP(32, vision, text, quick_gelu=activation == "quick_gelu").eval()
    theirs.load_state_dict({k: v for k, v in weights.items() if k in theirs.state_dict()})
    theirs.visual.output_tokens = True
    trunk = clip.trunk(images, keep=(0, 2))
    tokens = clip.block(-1, trunk.grid)(trunk.tokens)
    with torch.no_grad():
        pooled, patches = theirs.visual(images)
        torch.testing.assert_close(clip.project(tokens)[:, 0], pooled, rtol=0, atol=1e-5)
        torch.testing.assert_close(clip.project(tokens)[:, 1:], patches @ theirs.visual.proj, rtol=0, atol=1e-5)
        text = clip.tokenizer(["a photo of a cat.", "a dog"])
        expected = theirs.encode_text(text, normalize=True)
    torch.testing.assert_close(clip.encode_text(["a photo of a cat.", "a dog"]), expected, rtol=0, atol=1e-6)
    assert trunk.grid == (4, 4)
    assert set(trunk.states) == {0, 2}
    assert torch.equal(trunk.states[2], trunk.tokens)


@pytest.mark.parametrize("quick", [False, True])
def test_an_open_clip_architecture_with_weights_from_a_file(quick, images, tmp_path):
    model = register(tmp_path, f"tiny-vit-{quick}", **({"quick_gelu": True} if quick else {}))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    clip = ob.load_clip(f"tiny-vit-{quick}", pretrained=tmp_path / "weights.pt")
    assert clip.activation == ("quick_gelu" if quick else "gelu")
    trunk = clip.trunk(images)
    with torch.no_grad():
        expected = model.encode_image(images)
    result = clip.project(clip.block(-1, trunk.grid)(trunk.tokens))[:, 0]
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_an_openai_archive_keeps_its_activation_under_a_plain_architecture(tmp_path):
    model = register(tmp_path, "tiny-vit-archive")
    torch.jit.save(torchscript(model.state_dict()), tmp_path / "archive.pt")
    assert ob.load_clip("tiny-vit-archive", pretrained=tmp_path / "archive.pt").activation == "quick_gelu"


def test_a_separate_text_tower(images, tmp_path):
    model = register(tmp_path, "tiny-custom-text", custom_text=True)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    clip = ob.load_clip("tiny-custom-text", pretrained=tmp_path / "weights.pt")
    with torch.no_grad():
        expected = model.encode_text(clip.tokenizer(["a cat"]), normalize=True)
    torch.testing.assert_close(clip.encode_text(["a cat"]), expected, rtol=0, atol=1e-6)


def test_the_activation_goes_with_the_weights(weights, images):
    def tokens(clip):
        return clip.trunk(images).tokens

    default = tokens(ob.load_clip(state_dict=weights))
    assert torch.equal(default, tokens(ob.load_clip(state_dict=weights, activation="quick_gelu")))
    exact = ob.load_clip(state_dict=weights, activation="gelu")
    assert (default - tokens(exact)).abs().max() > 1e-3
    assert torch.equal(default, tokens(exact.variant(activation="quick_gelu")))
    assert not torch.equal(default, tokens(ob.load_clip(state_dict=weights, layer_norm_eps=1e-2)))


def test_the_demo_knows_its_architecture_and_activation():
    clip = ob.load_clip("demo")
    assert (clip.name, clip.patch_size) == ("demo", 8)
    assert clip.encode_text(["a striped red cloth"]).norm().item() == pytest.approx(1, abs=1e-5)


class Executed:
    """Unpickling it creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: Path(path).write_bytes(pickle.dumps(content, 2))])
@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: {"state_dict": e}, lambda e: {"visual.proj": e}])
def test_nothing_is_executed_by_loading(write, wrap, tmp_path):
    write(wrap(Executed(tmp_path / "marker")), tmp_path / "evil.pt")
    with pytest.raises(ob.OvssError, match=r"evil\.pt cannot be read safely"):
        ob.load_clip(tmp_path / "evil.pt")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {"epoch": 3}, {"state_dict": None}, {}], ids=repr)
def test_files_that_hold_no_state_dict_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ob.OvssError):
        ob.load_clip(tmp_path / "other.pt")


@pytest.mark.parametrize("keep", [0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("name", WRITERS)
def test_truncated_files_are_refused(name, keep, weights, tmp_path):
    WRITERS[name](weights, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ob.OvssError, match=name):
        ob.load_clip(tmp_path / name)


@pytest.mark.parametrize(
    "missing",
    [
        "visual.conv1.weight",
        "visual.proj",
        "visual.ln_post.bias",
        "visual.positional_embedding",
        "text_projection",
        "ln_final.weight",
    ],
)
def test_incomplete_weights_are_refused(missing, weights):
    with pytest.raises(ob.OvssError, match=r"do not fit|are not a CLIP ViT"):
        ob.load_clip(state_dict={name: tensor for name, tensor in weights.items() if name != missing})


def test_weights_of_another_size_are_refused(weights, tmp_path):
    register(tmp_path, "tiny-other")
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(ob.OvssError, match=r"(?s)'tiny-other' do not fit.*resblocks"):
        ob.load_clip("tiny-other", pretrained=tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "vision",
    [
        {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        ARCHITECTURE["vision_cfg"] | {"pool_type": "avg"},
        ARCHITECTURE["vision_cfg"] | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4},
    ],
    ids=["resnet", "average", "attention"],
)
def test_encoders_that_are_no_plain_vit_are_refused(vision, tmp_path, request):
    name = f"tiny-{request.node.callspec.id}"
    model = register(tmp_path, name, vision_cfg=vision)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ob.OvssError, match=rf"'{name}' is not a plain CLIP ViT"):
        ob.load_clip(name, pretrained=tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "ViT-B16"}, r"unknown clip 'ViT-B16'.*ViT-B-16"),
        ({"name": "vit_b61"}, r"unknown clip 'vit_b61'.*vit_b16"),
        ({"name": "/nowhere/weights.pt"}, r"/nowhere/weights\.pt"),
        ({"name": "ViT-B-16", "pretrained": "/nowhere/weights.pt"}, r"/nowhere/weights\.pt do not exist"),
        ({"name": "vit_b16", "pretrained": "weights.safetensors"}, r"weights\.safetensors do not exist"),
        ({"name": "ViT-B-16", "pretrained": "openay"}, r"'openay'.*openai"),
        ({"name": "ViT-B-16"}, r"needs weights.*openai"),
        ({"name": "demo", "precision": "fp61"}, r"fp61.*fp16"),
        ({"name": "demo", "activation": "quick"}, r"quick.*quick_gelu"),
        ({}, r"unknown clip"),
    ],
    ids=str,
)
def test_bad_names_are_refused(arguments, message):
    with pytest.raises(ob.OvssError, match=message):
        ob.load_clip(**arguments)


@pytest.mark.parametrize("name", ["vit_b32", "vit_l14_laion2b"])
def test_weights_that_cannot_be_downloaded(name, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    with pytest.raises(ob.OvssError, match=r"could not be downloaded from https://.*weights=/path/to/file"):
        ob.load_clip(name)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_stays_close(precision, weights, images):
    exact, low = (ob.load_clip(state_dict=weights, precision=name) for name in ("fp32", precision))
    assert (low.precision, low.weights_digest) == (precision, exact.weights_digest)
    heads = [clip.head(clip.block(-1, (4, 4))(clip.trunk(images).tokens)) for clip in (exact, low)]
    assert heads[1].dtype == torch.float32
    assert (heads[0] - heads[1]).abs().max() < 0.05


def texts_of(clip, monkeypatch, prompts):
    """What `encode_text` gives, what open_clip gives for the prompts one by one and whole, and the shapes of the passes."""
    shapes, tower = [], text_tower(clip.model).transformer
    with torch.no_grad():
        expected = torch.cat([clip.model.encode_text(clip.tokenizer([prompt]), normalize=True) for prompt in prompts])
    tower.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape[:2])))
    monkeypatch.setitem(TEXT_TOKENS, "cpu", 64)
    counted = []
    found = clip.encode_text(prompts, counted.append)
    assert sum(counted) == len(prompts)
    return found, expected, shapes


PROMPTS = ["a photo of a cat.", "a photo of a very long name of some thing.", "a photo of a dog.", "x " * 90]
PROMPTS += ["a photo of a cat.", "a photo of a Cat."]


def test_texts_are_cut_after_their_last_token_and_encoded_once(weights, monkeypatch):
    found, expected, shapes = texts_of(ob.load_clip(state_dict=weights), monkeypatch, PROMPTS)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    # "Cat" is the same tokens as "cat"; a pass has at most 64 tokens, or one text.
    assert shapes == [(1, 77), (3, 13)]


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ({}, True),
        ({"pool_type": "eos", "eos_id": 49407}, True),
        ({"no_causal_mask": True, "pool_type": "last"}, False),  # SigLIP
        ({"no_causal_mask": True}, False),  # MobileCLIP
        ({"pool_type": "last"}, False),
        ({"embed_cls": True}, False),  # CoCa
        ({"proj_type": "none", "width": 32, "heads": 1}, True),
        ({"proj_bias": True}, True),
    ],
    ids=str,
)
def test_text_towers_that_see_what_lies_behind_are_not_cut(text, cut, monkeypatch, tmp_path):
    name = f"tiny-text-{abs(hash(str(text)))}"
    model = register(tmp_path, name, custom_text=True, text_cfg=ARCHITECTURE["text_cfg"] | text)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    clip = ob.load_clip(name, pretrained=tmp_path / "weights.pt")
    found, expected, shapes = texts_of(clip, monkeypatch, PROMPTS)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert (min(length for _, length in shapes) < 20) == cut


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"architecture": [1, 2]}, r"architecture in the metadata is \[1, 2\]"),
        ({"architecture": 7}, "architecture in the metadata is 7"),
        ({"architecture": ARCHITECTURE | {"text_cfg": 3}}, "text_cfg in the metadata is 3"),
        ({"architecture": ARCHITECTURE | {"text_cfg": {"hf_model_name": "some/model"}}}, "text_cfg hf_model_name"),
        ({"architecture": ARCHITECTURE | {"vision_cfg": {"timm_model_name": "vit"}}}, "vision_cfg timm_model_name"),
        ({"architecture": ARCHITECTURE | {"embed_dim": "${x}"}}, "embed_dim in the metadata"),
        ({"architecture": ARCHITECTURE | {"embed_dim": 0}}, "do not fit"),
        ({"architecture": ARCHITECTURE | {"embed_dim": True, "quick_gelu": 3}}, "do not fit"),
        ({"architecture": ARCHITECTURE | {"vision_cfg": ARCHITECTURE["vision_cfg"] | {"layers": 10**9}}}, "do not fit"),
        ({"architecture": ARCHITECTURE | {"text_cfg": ARCHITECTURE["text_cfg"] | {"vocab_size": 999_999}}}, "do not fit"),
        ({"architecture": {"embed_dim": 32}}, "vision_cfg in the metadata is None"),
        ({"architecture": "no such thing"}, "unknown open_clip architecture"),
        ({"architecture": ARCHITECTURE, "activation": ["gelu"]}, "unknown activation in the metadata"),
    ],
    ids=str,
)
def test_bad_metadata_are_refused(metadata, message, weights, tmp_path):
    save_file(weights, tmp_path / "w.safetensors", {key: json.dumps(value) for key, value in metadata.items()})
    with pytest.raises(ob.OvssError, match=message):
        ob.load_clip(tmp_path / "w.safetensors")


def test_a_tensor_larger_than_its_bytes_is_refused(weights, tmp_path):
    torch.save(weights | {"token_embedding.weight": torch.zeros(1).expand(10**9, 10**3)}, tmp_path / "w.pt")
    with pytest.raises(ob.OvssError, match=r"'token_embedding.weight' is not a plain tensor"):
        ob.load_clip(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "visual.proj",
            lambda tensor: tensor.to(torch.int8),
            "torch.int8, not floating point; were these",
        ),
        ("visual.proj", lambda tensor: tensor[0], "do not fit its architecture"),
        ("visual.conv1.weight", lambda tensor: tensor.flatten(), "do not fit its architecture"),
        ("token_embedding.weight", lambda tensor: torch.empty(10**9, 0), "do not fit its architecture"),
    ],
)
def test_tensors_of_another_kind_are_refused(name, change, message, weights):
    with pytest.raises(ob.OvssError, match=message):
        ob.load_clip(state_dict=weights | {name: change(weights[name])})


def test_a_text_tower_that_is_not_whole_encodes_no_text(weights):
    clip = ob.load_clip(state_dict=weights | {"token_embedding.weight": weights["token_embedding.weight"][:100]})
    with pytest.raises(ob.OvssError, match=r"embeds 100 tokens, but its tokenizer gives token 49407.*from_features"):
        clip.encode_text(["a cat"])


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<!DOCTYPE html><html></html>", b"PK\3\4", b"PK\5\6" + bytes(18), bytes(300)]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_what_is_no_weights_file_is_refused(content, suffix, tmp_path):
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(ob.OvssError, match=r"cannot be read safely: .*Expected safetensors"):
        ob.load_clip(tmp_path / f"w{suffix}")
