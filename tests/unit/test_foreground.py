"""FOUND against the official code and a plain computation, the formats of its decoder, and the demo's, with its training."""

import argparse
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import ovss_bench as ob
from ovss_bench.auxiliary.foreground import Found, keys, load_foreground
from ovss_bench.encoders import vision
from ovss_bench.encoders.vision import load_vision
from ovss_bench.files import CONFIGS, config_names, load_config
from ovss_bench.image import normalize
from parity import seeded
from parity.reference import Reference
from tools.training import foreground as training

IMAGE = seeded.rgb_image(3, 27, 38)


@pytest.fixture(scope="module")
def encoder():
    """A tiny DINO: 32 channels, patch 8."""
    return load_vision(state_dict=tiny_state(), heads=2, feature="k")


def tiny_state():
    return seeded.dino_state_dict(3, width=32, layers=2, patch_size=8, resolution=32)


@pytest.fixture
def decoder():
    return {"weight": seeded.query_features(5, 1, 32).view(1, 32, 1, 1), "bias": torch.tensor([0.25])}


def test_agrees_with_the_official_code():
    reference = Reference("clip_diy")
    if "saliency" not in reference.arrays:
        pytest.skip("this set has no such array")
    state = seeded.dino_state_dict(reference.seed("features", 41), width=64, layers=4, patch_size=8)
    encoder = load_vision(state_dict=state, heads=2, layer_norm_eps=1e-6, feature="k")
    weight = seeded.query_features(reference.seed("regions", 51), 1, 64).view(1, 64, 1, 1)
    saliency = Found(encoder, weight, torch.zeros(1))(reference.image)
    np.testing.assert_allclose(saliency, reference.arrays["saliency"], atol=1e-5)


def test_zeros_fill_up_the_last_patches(encoder, decoder):
    pixels = torch.zeros(1, 3, 32, 40)
    pixels[..., :27, :38] = normalize(IMAGE, "imagenet")
    features = encoder.features(pixels)
    assert torch.equal(keys(encoder, IMAGE), features)
    logits = torch.einsum("bchw,c->bhw", features, decoder["weight"].flatten()) + 0.25
    expected = F.interpolate(logits[None], (32, 40), mode="bilinear")[0, 0, :27, :38].sigmoid()
    actual = Found(encoder, **decoder)(IMAGE)
    assert (actual.dtype, actual.shape) == (np.float32, (27, 38))
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert Found(encoder, **decoder)(IMAGE[:3, :5]).shape == (3, 5)  # smaller than a patch


def test_all_formats_of_the_decoder_are_one(encoder, decoder, tmp_path):
    torch.save({"decoder": decoder}, tmp_path / "decoder_weights.pt")  # as FOUND's repository has it
    torch.save(decoder, tmp_path / "plain.pt")
    save_file({f"decoder.{name}": tensor for name, tensor in decoder.items()}, tmp_path / "ours.safetensors")
    found = [load_foreground(path, encoder=encoder) for path in sorted(tmp_path.iterdir())]
    expected = Found(encoder, **decoder)
    assert {each.digest for each in found} == {expected.digest}
    assert all(np.array_equal(each(IMAGE), expected(IMAGE)) for each in found)
    others = [Found(encoder, decoder["weight"], torch.zeros(1)), Found(encoder, -decoder["weight"], decoder["bias"])]
    queries = load_vision(state_dict=tiny_state(), heads=2, feature="q")
    assert len({expected.digest, *(other.digest for other in others), Found(queries, **decoder).digest}) == 4


def test_found_is_looked_for_in_the_folder_of_weights(decoder, tmp_path, monkeypatch):
    monkeypatch.setenv("OVSS_WEIGHTS", str(tmp_path))
    weight = seeded.query_features(5, 1, 384).view(1, 384, 1, 1)
    torch.save({"decoder": decoder | {"weight": weight}}, tmp_path / "decoder_weights.pt")
    state = seeded.dino_state_dict(3, width=384, layers=12, patch_size=8, resolution=32)
    torch.save(state, tmp_path / "dino_deitsmall8_300ep_pretrain.pth")
    found = load_foreground("found")
    assert (found.encoder.name, found.encoder.feature) == ("dino_vits8_300ep", "k")
    assert load_foreground(tmp_path / "decoder_weights.pt").digest == found.digest  # the encoder that it was trained on


def test_bad_decoders_are_errors(encoder, decoder, tmp_path, monkeypatch):
    path = tmp_path / "decoder.pt"
    torch.save({"decoder": decoder | {"weight": seeded.query_features(5, 1, 48).view(1, 48, 1, 1)}}, path)
    with pytest.raises(ob.OvssError, match=r"decoder\.pt takes 48 channels, but vision encoder 'state_dict' has 32"):
        load_foreground(path, encoder=encoder)
    for wrong in ({"weight": decoder["weight"]}, decoder | {"weight": torch.zeros(2, 32, 1, 1)}, tiny_state()):
        torch.save(wrong, path)
        with pytest.raises(ob.OvssError, match=r"decoder\.pt is not a decoder of FOUND"):
            load_foreground(path, encoder=encoder)
    with pytest.raises(ob.OvssError, match=r"unknown foreground 'fuond'.*found"):
        load_foreground("fuond")
    monkeypatch.setattr(vision.huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("OVSS_WEIGHTS", raising=False)
    with pytest.raises(ob.OvssError, match=r"decoder_weights\.pt, are not on this machine .*github\.com/valeoai/FOUND"):
        load_foreground("found")


@pytest.mark.parametrize("name", config_names("foreground"))
def test_entries_are_complete_and_say_where_values_come_from(name):
    entry = load_config("foreground", name)
    assert set(entry) - {"url"} == {"licence", "training", "encoder", "file"}
    assert entry["encoder"] in config_names("vision")
    lines = [line for line in (CONFIGS / "foreground" / f"{name}.yaml").read_text().splitlines() if line[0] != "#"]
    assert all(re.search(r" # \S", line) for line in lines)


def test_the_demos_finds_cloth():
    """Its label-free decoder on scenes with cloths that were not seen in training."""
    found, dataset, values = load_foreground("demo"), ob.load_dataset("demo_tune"), []
    for sample in dataset.samples[:4]:
        label, predicted = dataset.label(sample), found(dataset.image(sample)) > 0.5
        valid, truth = label != 255, label > 0
        values.append((predicted & truth & valid).sum() / ((predicted | truth) & valid).sum())
    assert np.mean(values) > 0.85


class TestTraining:
    def test_what_is_like_the_border_is_background(self):
        truth = torch.zeros(9, 11, dtype=torch.bool)
        truth[3:7, 2:8] = True
        truth[0, 9] = True  # a piece that reaches the border
        directions = seeded.query_features(1, 3, 16)
        features = torch.where(truth, directions[0][:, None, None], directions[1][:, None, None])
        features = features + 5 * directions[2][:, None, None] + 0.02 * seeded.feature_map(2, 16, 9, 11)[0]
        assert torch.equal(training.coarse_foreground(features, 0.3), truth)

    def test_scenes_have_seen_cloths_only(self):
        assert all(cloth.seen for cloth in training.SEEN)
        (image, index), (again, _) = training.draw(4), training.draw(4)
        assert np.array_equal(image, again)
        assert image.shape[:2] == index.shape
        assert index.any()

    def test_gives_a_decoder_that_loads_and_the_same_again(self, tmp_path, encoder):
        save_file(tiny_state(), tmp_path / "encoder.safetensors", {"heads": "2"})
        for run in ("first", "second"):
            parser = argparse.ArgumentParser()
            training.options(parser)
            options = ["--out", tmp_path / run, "--encoder", tmp_path / "encoder.safetensors", "--scenes=4", "--steps=20"]
            args = parser.parse_args(list(map(str, options)))
            training.train(argparse.Namespace(**vars(args), seed=0, threads=1))
        first, second = (load_file(tmp_path / run / "demo_found.safetensors") for run in ("first", "second"))
        assert all(torch.equal(first[name], second[name]) for name in ("decoder.weight", "decoder.bias"))
        assert '"foreground_iou"' in (tmp_path / "first" / "log.jsonl").read_text()
        found = load_foreground(tmp_path / "first" / "demo_found.safetensors", encoder=encoder)
        assert np.ptp(found(IMAGE)) > 0
