import json

import pytest
from PIL import Image

import ovss_bench as ob
from end_to_end.tools import run
from ovss_bench.bench.measure import measure
from ovss_bench.bench.methods import METHOD, NEED_WEIGHTS, SHORTER, method_cases, taken
from ovss_bench.bench.ways import BARE, OFFICIAL
from ovss_bench.cli import bench
from ovss_bench.progress import Progress

SMALL = ["clip=demo", "height=64", "width=90", "short_side=64", "window=48", "stride=24", "rounds=1", "threads=1"]
# Methods that work on whole images, or decide by a rule of their own: the loop is not theirs.
WITHOUT_LOOP = {
    "cliper",
    "clip_diy",
    "cliptrase",
    "gla_clip",
    "lposs",
    "ov_stitcher",
    "pearl",
    "tagclip_training_free",
    "trident",
}


def results_in(folder):
    (path,) = folder.glob("*.json")
    written = json.loads(path.read_text())
    assert written["machine"].keys() == {"device", "platform", "python", "packages", "processors"}
    assert Image.open(path.with_suffix(".png")).width > 500
    return path, written["cases"]


def test_all_ways_are_measured_and_give_the_same_labels(tmp_path):
    options = ["classes=5", "queries=9", "threshold=0.3", "segmentor=[sclip,maskclip]", "images=2", "trunk_cache=true"]
    done = run("bench.py", *SMALL, *options, "out=speed", cwd=tmp_path)
    path, cases = results_in(tmp_path / "speed")
    assert path.stem.endswith("-1-threads")
    result = cases["case"]
    ways = {BARE, "ours, in memory", "ours, from files", "ours, trunk cache", OFFICIAL}
    for part in ("seconds", "processor_seconds", "ratios", "processor_ratios", "peak_memory_mib"):
        assert result[part].keys() == ways
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in result["seconds"].values())
    assert result["ratios"][BARE] == {"median": 1, "least": 1, "most": 1}
    assert {"read", "resize", "encode", "last block", "compose", "count"} <= result["stages"].keys()
    assert result["agreement"].keys() == {"sclip", "maskclip"}
    for each in result["agreement"].values():
        assert each["equal_pixels"] >= 99.99
        assert abs(each["official_miou"] - each["our_miou"]) <= 0.01
    assert result["case"]["queries"] == 9
    assert all(way in done.stdout for way in ways)


def test_later_calls_add_to_the_results_of_a_machine(tmp_path):
    run("bench.py", "demo", "images=1", "rounds=1", "threads=1", "out=speed", "machine=mine", cwd=tmp_path)
    run("bench.py", "clip", *SMALL, "classes=5", "queries=5", "out=speed", "machine=mine", cwd=tmp_path)
    path, cases = results_in(tmp_path / "speed")
    assert path.stem == "mine"
    assert cases["demo"]["case"]["dataset"] == "demo"
    assert cases["demo"]["agreement"]["sclip"]["equal_pixels"] >= 99.99
    assert cases["clip"]["ratios"].keys() == {BARE, METHOD, OFFICIAL}


@pytest.fixture(scope="module")
def small():
    """The case of a method by its name in the table, on tiny networks."""
    words = [word for word in SMALL if not word.startswith("rounds=")]
    _, options = bench.COMMAND.parse([*words, "classes=5", "queries=5"])
    chosen = {word.partition("=")[0] for word in words}
    for name in ("rounds", "out", "machine", "plugins"):
        del options[name]
    return lambda name: bench.case_of(name, options, chosen)


def test_every_registered_method_has_a_case(small):
    names = method_cases()
    on_clip = {name for name, method in ob.SEGMENTORS.module_dict.items() if method.uses_clip}
    assert {name for name in names if ":" not in name} == on_clip - set(NEED_WEIGHTS)
    assert [small(name).segmentor for name in names] == [[name.partition(":")[0]] for name in names]
    given = {name.partition(":")[0] for name in names if name.endswith(":given")}
    assert given == {name for name in on_clip if {"vfm", "diffusion"} & taken(name)}
    assert SHORTER.keys() <= ob.SEGMENTORS.module_dict.keys()


@pytest.mark.parametrize("name", method_cases())
def test_a_method_is_measured(name, small):
    result = measure(small(name), 1, Progress())
    method = name.partition(":")[0]
    with_loop = method not in WITHOUT_LOOP
    assert result["seconds"].keys() == {BARE, METHOD, *([OFFICIAL] if with_loop else [])}
    assert all(equal["equal_pixels"] >= 99.99 for equal in result["agreement"].values())
    assert result["agreement"].keys() == ({method} if with_loop else set())
    stages = {"vfm": "vision encoder", "regions": "regions", "foreground": "foreground", "diffusion": "diffusion", "sam": "SAM"}
    assert {"encode", *(stages[kind] for kind in taken(method))} <= result["stages"].keys()


def test_a_new_method_needs_no_code(small, tmp_path):
    @ob.SEGMENTORS.register_module(name="mine")
    class Mine(ob.SEGMENTORS.get("sclip")):
        """A plug-in."""

    assert "mine" in method_cases()
    assert measure(small("mine"), 1, Progress())["agreement"]["mine"]["equal_pixels"] >= 99.99


def test_bare_passes_are_those_that_the_method_needs(small, tmp_path, monkeypatch):
    """Each window once, without padding, by the image tower of open_clip; and the vision encoder's passes over them."""
    from ovss_bench.bench import methods
    from ovss_bench.encoders.vit import PlainViT

    windows, seen, before_last = [], [], PlainViT.before_last
    bare = methods.bare_encoder
    monkeypatch.setattr(methods, "bare_encoder", lambda *a: lambda part: windows.append(len(part)) or bare(*a)(part))
    monkeypatch.setattr(PlainViT, "before_last", lambda self, x: seen.append(len(x)) or before_last(self, x))
    case = small("proxyclip")
    ways = methods.method_ways(case, tmp_path).ways
    rows, columns = (-(-(side - 48) // 24) + 1 for side in (64, 90))
    for _ in range(2):
        windows.clear()
        seen.clear()
        ways[BARE]()
        assert sum(windows) == sum(seen) == rows * columns
    seen.clear()
    ways[METHOD]()
    assert sum(seen) == rows * columns


def test_mistakes_are_named(tmp_path):
    for arguments, words in (
        (["ade151"], ["unknown case 'ade151'", "ade150"]),
        (["proxyclp:given"], ["unknown case 'proxyclp:given'", "proxyclip:given"]),
        (["classes=0"], ["classes=0"]),
        (["segmentor=sclip", "classes=9", "queries=3", *SMALL], ["at least one query per class"]),
    ):
        done = run("bench.py", *arguments, cwd=tmp_path, status=2)
        assert all(word in done.stderr for word in words), done.stderr
