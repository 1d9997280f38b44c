import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import ovss_bench as ob
from end_to_end.tools import run
from forked import Forked
from ovss_bench.image import normalize
from parity.seeded import rgb_image
from tools.training.canvases import Training
from tools.training.dinoiser import Convolutions, losses, middle_features

COMMON = ["--steps=2", "--every=1", "--threads=1", "--out=run"]
CANVASES = "--canvases=16"
OWN = {"clip": [CANVASES, "--batch=8", "--workers=0"], "vision": [CANVASES, "--batch=4"], "pacl": [CANVASES, "--batch=8"]}
OWN["dinoiser"] = ["--scenes=1", "--windows=4", "--batch=4"]


HEADS = {"pacl": "pacl", "dinoiser": "clip_dinoiser"}  # trained on the demo CLIP, with the segmentor


@pytest.mark.parametrize("model", OWN)
def test_a_killed_training_goes_on_to_the_same_weights(model, tmp_path):
    words, file = [model, *COMMON, *OWN[model]], f"run/demo_{model}.safetensors"
    (tmp_path / "killed").mkdir()
    (tmp_path / "quiet").mkdir()
    process = Forked("train_demo.py", *words, cwd=tmp_path / "killed")
    while not (tmp_path / "killed" / file).exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    for folder in ("killed", "quiet"):
        run("train_demo.py", *words, cwd=tmp_path / folder)
    killed, quiet = (load_file(tmp_path / folder / file) for folder in ("killed", "quiet"))
    assert killed.keys() == quiet.keys()
    assert all((killed[name] == quiet[name]).all() for name in killed)
    steps = [json.loads(line)["step"] for line in (tmp_path / "quiet/run/log.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    if model == "clip":
        clip = ob.load_clip(tmp_path / "quiet" / file)
        assert (clip.activation, clip.patch_size, clip.depth) == ("gelu", 8, 6)
    elif model in HEADS:
        segmentor = ob.build_segmentor(
            HEADS[model], clip="demo", vocabulary=["sand", "red cloth"], checkpoint=tmp_path / "quiet" / file
        )
        assert ob.segment(segmentor, rgb_image(1, 40, 50), short_side=40).label_map.shape == (40, 50)
    else:
        assert ob.load_vision(tmp_path / "quiet" / file).patch_size == 4


def test_a_checkpoint_never_precedes_its_weights(tmp_path, monkeypatch):
    """A training that is killed between the two takes the steps again; else its weights would stay those of earlier steps."""
    model, save, seen = torch.nn.Linear(2, 1), torch.save, []
    training = Training(tmp_path, 4, 2, {"model": model})

    def checked(state, path):
        weights = load_file(tmp_path / "demo_line.safetensors")
        assert torch.equal(weights["weight"], state["model"]["weight"].half())
        seen.append(state["step"])
        save(state, path)

    monkeypatch.setattr(torch, "save", checked)
    for step in (1, 3):
        torch.nn.init.constant_(model.weight, step)
        training.keep(step, "line", model)
    assert seen == [2, 4]


def test_the_foreground_decoder_is_trained_in_one_go(tmp_path):
    words = ["foreground", "--scenes=6", "--steps=20", "--threads=1", "--out=run"]
    run("train_demo.py", *words, cwd=tmp_path)
    state = load_file(tmp_path / "run/demo_found.safetensors")
    assert state["decoder.weight"].shape == (1, 128, 1, 1)
    assert json.loads((tmp_path / "run/log.jsonl").read_text())["foreground_iou"] > 0


@torch.no_grad()
def test_the_trained_convolutions_are_those_that_the_segmentor_uses(tmp_path):
    """Training and inference have code of their own: the same middle features, similarities and objects."""
    clip, model = ob.load_clip("demo"), Convolutions(128, 16)
    save_file(model.state_dict(), tmp_path / "convolutions.safetensors")
    segmentor = ob.build_segmentor(
        "clip_dinoiser", clip=clip, vocabulary=["sand"], checkpoint=tmp_path / "convolutions.safetensors", position="offset"
    )
    pixels = normalize(rgb_image(1, 56, 56), "clip")[None]
    middle = middle_features(clip, pixels)
    trunk = clip.trunk(pixels, keep_qkv=segmentor.needs_qkv)
    torch.testing.assert_close(segmentor.middle(trunk), middle)
    cosines = model.similarities(middle)
    expected = cosines.masked_fill(cosines < segmentor.gamma, 0)
    torch.testing.assert_close(segmentor.similarities(middle), expected)
    torch.testing.assert_close(segmentor.object_logits(middle).flatten(1), model.objects(middle))


def test_the_losses_are_binary_cross_entropies():
    torch.manual_seed(0)
    model, middle = Convolutions(8, 4), torch.randn(2, 8, 3, 3)
    together, objects = torch.rand(2, 9, 9) > 0.5, torch.rand(2, 9) > 0.5
    similar, found = losses(model, middle, together, objects)
    for loss, probability, target in (
        (similar, model.similarities(middle).clamp(1e-4, 1 - 1e-4), together),
        (found, model.objects(middle).sigmoid(), objects),
    ):
        expected = -torch.where(target, probability, 1 - probability).log().mean()
        torch.testing.assert_close(loss, expected)
