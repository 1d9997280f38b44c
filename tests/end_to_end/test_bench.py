import json

from PIL import Image

from end_to_end.tools import run

SMALL = ["clip=demo", "height=100", "width=140", "short_side=96", "window=48", "stride=24", "images=2", "rounds=1", "threads=1"]


def test_all_ways_are_measured_and_give_the_same_labels(tmp_path):
    options = ["classes=5", "queries=9", "threshold=0.3", "segmentor=[sclip,maskclip]", "trunk_cache=true", "out=speed"]
    done = run("bench.py", *SMALL, *options, cwd=tmp_path)
    result = json.loads((tmp_path / "speed/case.json").read_text())
    ways = {"bare encoder", "ours, in memory", "ours, from files", "ours, trunk cache", "official style"}
    for part in ("seconds", "ratios", "peak_memory_mib"):
        assert result[part].keys() == ways
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in result["seconds"].values())
    assert result["ratios"]["bare encoder"] == {"median": 1, "least": 1, "most": 1}
    assert {"read", "resize", "encode", "last block", "compose", "count"} <= result["stages"].keys()
    assert result["agreement"].keys() == {"sclip", "maskclip"}
    for each in result["agreement"].values():
        assert each["equal_pixels"] >= 99.99
        assert abs(each["official_miou"] - each["our_miou"]) <= 0.01
    assert result["case"]["queries"] == 9
    assert all(way in done.stdout for way in ways)
    assert Image.open(tmp_path / "speed/ratios.png").width > 500


def test_a_case_is_measured_on_the_demos_scenes(tmp_path):
    run("bench.py", "demo", "images=1", "rounds=1", "threads=1", "out=speed", cwd=tmp_path)
    result = json.loads((tmp_path / "speed/demo.json").read_text())
    assert result["case"]["dataset"] == "demo"
    assert result["agreement"]["sclip"]["equal_pixels"] >= 99.99


def test_mistakes_are_named(tmp_path):
    for arguments, words in (
        (["ade151"], ["unknown bench 'ade151'", "ade150"]),
        (["classes=0"], ["classes=0"]),
        (["classes=9", "queries=3", *SMALL], ["at least one query per class"]),
    ):
        done = run("bench.py", *arguments, cwd=tmp_path, status=2)
        assert all(word in done.stderr for word in words), done.stderr
