import json
import subprocess
import time

from safetensors.torch import load_file

import ovss_bench as ob
from end_to_end.tools import command

SMALL = ["--canvases=64", "--steps=4", "--batch=16", "--every=2", "--threads=1", "--workers=0", "--out=run"]


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path):
    (tmp_path / "killed").mkdir()
    (tmp_path / "quiet").mkdir()
    process = subprocess.Popen(command("train_demo.py", *SMALL), cwd=tmp_path / "killed", stdout=subprocess.DEVNULL)
    while not (tmp_path / "killed/run/demo_clip.safetensors").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    for folder in ("killed", "quiet"):
        subprocess.run(command("train_demo.py", *SMALL), cwd=tmp_path / folder, check=True, capture_output=True)
    killed, quiet = (load_file(tmp_path / folder / "run/demo_clip.safetensors") for folder in ("killed", "quiet"))
    assert killed.keys() == quiet.keys()
    assert all((killed[name] == quiet[name]).all() for name in killed)
    steps = [json.loads(line)["step"] for line in (tmp_path / "quiet/run/log.jsonl").read_text().splitlines()]
    assert steps == [2, 4]
    clip = ob.load_clip(tmp_path / "quiet/run/demo_clip.safetensors")
    assert (clip.activation, clip.patch_size, clip.depth) == ("gelu", 8, 6)
