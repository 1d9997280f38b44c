import json
import subprocess
import time

import pytest
from safetensors.torch import load_file

import ovss_bench as ob
from end_to_end.tools import command
from parity.seeded import rgb_image

COMMON = ["--steps=4", "--every=2", "--threads=1", "--out=run", "--canvases=64"]
OWN = {"clip": ["--batch=16", "--workers=0"], "vision": ["--batch=4"], "pacl": ["--batch=8"]}


@pytest.mark.parametrize("model", OWN)
def test_a_killed_training_goes_on_to_the_same_weights(model, tmp_path):
    words, file = [model, *COMMON, *OWN[model]], f"run/demo_{model}.safetensors"
    (tmp_path / "killed").mkdir()
    (tmp_path / "quiet").mkdir()
    process = subprocess.Popen(command("train_demo.py", *words), cwd=tmp_path / "killed", stdout=subprocess.DEVNULL)
    while not (tmp_path / "killed" / file).exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    for folder in ("killed", "quiet"):
        subprocess.run(command("train_demo.py", *words), cwd=tmp_path / folder, check=True, capture_output=True)
    killed, quiet = (load_file(tmp_path / folder / file) for folder in ("killed", "quiet"))
    assert killed.keys() == quiet.keys()
    assert all((killed[name] == quiet[name]).all() for name in killed)
    steps = [json.loads(line)["step"] for line in (tmp_path / "quiet/run/log.jsonl").read_text().splitlines()]
    assert steps == [2, 4]
    if model == "clip":
        clip = ob.load_clip(tmp_path / "quiet" / file)
        assert (clip.activation, clip.patch_size, clip.depth) == ("gelu", 8, 6)
    elif model == "pacl":
        segmentor = ob.build_segmentor(
            "pacl", clip="demo", vocabulary=["sand", "red cloth"], checkpoint=tmp_path / "quiet" / file
        )
        assert ob.segment(segmentor, rgb_image(1, 40, 50), short_side=40).label_map.shape == (40, 50)
    else:
        assert ob.load_vision(tmp_path / "quiet" / file).patch_size == 4


def test_the_foreground_decoder_is_trained_in_one_go(tmp_path):
    words = ["foreground", "--scenes=6", "--steps=20", "--threads=1", "--out=run"]
    subprocess.run(command("train_demo.py", *words), cwd=tmp_path, check=True, capture_output=True)
    state = load_file(tmp_path / "run/demo_found.safetensors")
    assert state["decoder.weight"].shape == (1, 128, 1, 1)
    assert json.loads((tmp_path / "run/log.jsonl").read_text())["foreground_iou"] > 0
