import numpy as np
from PIL import Image

import ovss_bench as ob
from end_to_end.tools import run


def test_a_photo_becomes_a_label_map_a_picture_and_shares(tmp_path):
    dataset = ob.load_dataset("demo")
    photo = dataset.samples[1].image_path
    classes = "sand, grass, water, snow, asphalt; plain purple cloth; dotted orange cloth; zigzag blue cloth"
    done = run("segment.py", photo, "--classes", classes, "segmentor=maskclip", "recipe.threshold=0", cwd=tmp_path)
    labels = Image.open(tmp_path / "segmented/scene_001.maskclip.labels.png")
    assert labels.mode == "P"
    assert labels.size == Image.open(photo).size
    assert set(np.unique(labels)) <= {0, 1, 2, 3}
    assert Image.open(tmp_path / "segmented/scene_001.maskclip.picture.png").width > 2 * labels.width
    shares = [float(line.split("%")[0]) for line in done.stdout.splitlines() if "%" in line]
    assert abs(sum(shares) - 100) < 0.3
    assert len(shares) == 4


def test_mistakes_are_named(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    cases = [
        (["photo.png", "--classes", "cat"], "at least two classes"),
        (["nothing.png", "--classes", "cat; dog"], "nothing.png"),
        (["photo.png", "--classes", "cat; dog; cat"], "listed twice"),
        (["photo.png", "--classes", "cat; dog", "recipe.threshold=0.5"], "background"),
    ]
    for arguments, word in cases:
        assert word in run("segment.py", *arguments, cwd=tmp_path, status=2).stderr


def test_a_method_without_clip_loads_none(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.png")
    given = ("segmentor=segearth_ov3", "concepts=demo", "clip=no_such_clip")
    done = run("segment.py", "photo.png", "--classes", "cat, kitten; dog", *given, cwd=tmp_path)
    assert "cat, kitten" in done.stdout
    assert Image.open(tmp_path / "segmented/photo.segearth_ov3.labels.png").size == (40, 30)
