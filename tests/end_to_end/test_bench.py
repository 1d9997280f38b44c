import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import ovss_bench as ob
from end_to_end.tools import run
from ovss_bench.auxiliary.sources import STAGES
from ovss_bench.bench import cases, concepts, methods, view
from ovss_bench.bench.cases import on_clip_alone, taken
from ovss_bench.bench.measure import measure
from ovss_bench.bench.memory import peak_memory
from ovss_bench.bench.methods import SHORTER, method_cases
from ovss_bench.bench.names import on_concepts
from ovss_bench.bench.official import official_miou
from ovss_bench.bench.random_weights import CHECKPOINTS
from ovss_bench.bench.watch import Watched, own_operations
from ovss_bench.bench.ways import ALONE, BARE, FILES, METHOD, OFFICIAL
from ovss_bench.cli import bench
from ovss_bench.config.registry import SEGMENTORS
from ovss_bench.datasets.suites import load_suite
from ovss_bench.encoders.concepts import ConceptSegmenter
from ovss_bench.ops.crf import dense_crf
from ovss_bench.progress import Progress

SMALL = ["clip=demo", "height=64", "width=90", "short_side=64", "window=48", "stride=24", "rounds=1", "threads=1"]
# Methods that work on whole images, or decide by a rule of their own: the loop is not theirs.
WITHOUT_LOOP = {
    "active_sam",
    "cliper",
    "clip_dinoiser",
    "clip_diy",
    "cliptrase",
    "freecp",
    "gla_clip",
    "lposs",
    "maskclip_plus",
    "ov_stitcher",
    "pearl",
    "sam3",
    "segearth_ov3",
    "tagclip_training_free",
    "trident",
}
WINDOWS = 2 * 3  # of 48 pixels every 24 on an image of 64 x 90
PASSES = {  # windows of CLIP, and passes of other networks over them
    "sclip": (WINDOWS, 0),
    "resclip": (WINDOWS, 0),  # its second pass is one of the last block only
    "gla_clip": (WINDOWS, 1),
    "gla_clip:given": (WINDOWS, 0),
    "cass": (WINDOWS + 1, 1),  # the whole image, too
    "itaclip": (5 * WINDOWS, 0),  # five views of each window
    "rf_clip": (WINDOWS, 0),  # its own blocks; with the demo's CLIP it does not see the whole image
    "tagclip": (0, 1),
    "maskclip_plus": (0, 1),
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


@pytest.fixture
def small(monkeypatch):
    """The case of a method by its name in the table, on tiny networks."""
    for module in (methods, concepts):
        monkeypatch.setattr(module, "MEMORY_SIZE", (56, 70))
    words = [word for word in SMALL if not word.startswith("rounds=")]
    _, options = bench.COMMAND.parse([*words, "classes=5", "queries=5"])
    chosen = {word.partition("=")[0] for word in words}
    for name in bench.RUN:
        del options[name]
    return lambda name, **changed: bench.case_of(name, options | changed, chosen | changed.keys())


def test_every_registered_method_and_every_step_with_a_recipe_has_a_case(small):
    names = method_cases()
    registered = {name for name, method in ob.SEGMENTORS.module_dict.items() if method.uses_clip or on_concepts(name)}
    assert {name for name in names if ":" not in name} == registered | {"floss", "freecp"}
    assert [small(name).segmentor for name in names] == [[name.partition(":")[0]] for name in names]
    given = {name.partition(":")[0] for name in names if name.endswith(":given")}
    assert given == {name for name in registered if {"vfm", "diffusion"} & taken(name)}
    assert {*SHORTER, *CHECKPOINTS} <= ob.SEGMENTORS.module_dict.keys()


@pytest.mark.parametrize("name", method_cases())
def test_a_method_is_measured(name, small):
    result = measure(small(name), 1, Progress())
    method = name.partition(":")[0]
    with_loop = method not in WITHOUT_LOOP
    assert result["seconds"].keys() == {BARE, METHOD, *([OFFICIAL] if with_loop else [])}
    assert all(equal["equal_pixels"] >= 99.99 for equal in result["agreement"].values())
    assert result["agreement"].keys() == ({method} if with_loop else set())
    assert result["memory_mib"]["peak"] >= result["memory_mib"]["before"] > 0
    expected = {STAGES[kind] for kind in taken(method) - {"concepts"}}
    if on_concepts(method):
        expected = {"concept image", "concept text", "concept prompts"}
    elif method != "maskclip_plus":
        expected.add("encode")
    assert expected <= result["stages"].keys()
    if name in PASSES:
        assert result["counts"] == dict(zip(("clip_windows", "other_passes"), PASSES[name], strict=True))


@pytest.mark.parametrize("name", ["sclip+pamr", "lposs_plus"])
def test_any_segmentor_is_measured_by_its_name(name, small):
    assert measure(small(name, official=False), 1, Progress())["counts"]["clip_windows"] == WINDOWS


def test_a_new_method_needs_no_code(small, tmp_path):
    @ob.SEGMENTORS.register_module(name="mine")
    class Mine(ob.SEGMENTORS.get("sclip")):
        """A plug-in."""

    assert "mine" in method_cases()
    assert "mine" in on_clip_alone()
    assert measure(small("mine"), 1, Progress())["agreement"]["mine"]["equal_pixels"] >= 99.99


def test_the_whole_image_is_a_pass_of_methods_that_look_at_it(small):
    case = small("rf_clip")
    case.recipe["image_level"] = "image"
    assert measure(case, 1, Progress())["counts"]["clip_windows"] == WINDOWS + 1


@pytest.mark.parametrize("name", ["sam3", "segearth_ov3", "active_sam"])
def test_decoded_prompts_are_counted(name, small, tmp_path, monkeypatch):
    seen = {"detect": 0, "masks": 0}
    for part in seen:
        original = getattr(ConceptSegmenter, part)

        def counted(self, image, found, *rows, part=part, original=original):
            seen[part] += len(rows[0] if rows else found)
            return original(self, image, found, *rows)

        monkeypatch.setattr(ConceptSegmenter, part, counted)
    case = small(name, classes=50, queries=50)
    measured = concepts.concept_ways(case, tmp_path)
    of_way = {}
    for name_of_way, way in measured.ways.items():
        seen.update(detect=0, masks=0)
        way()
        of_way[name_of_way] = dict(seen)
    assert of_way[BARE] == {"detect": 50, "masks": 50}
    counts = measured.counts
    assert of_way[METHOD] == {"detect": counts["detect"], "masks": counts["masks"]}
    assert counts["prompts"] == 50
    assert counts["skipped"] == pytest.approx(1 - counts["masks"] / 50)
    if name == "active_sam":  # all in the preview, then at most a fifth of them
        assert 50 < counts["detect"] <= 60
        assert counts["masks"] <= 10


def test_methods_on_clip_alone_are_those_of_the_registry(small, tmp_path):
    names = on_clip_alone()
    assert {"clip", "naclip", "pearl", "tagclip_training_free"} <= set(names)
    with_more = {"pacl", "segearth_ov", "proxyclip", "cliper", "clip_diy", "sam3", "corrclip"}
    assert not with_more & set(names)
    result = measure(small("clip_alone", images=1), 1, Progress())
    alone = {name.removesuffix(ALONE) for name in result["seconds"] if name.endswith(ALONE)}
    assert alone == set(names)
    assert FILES in result["seconds"]


def test_batches_are_measured_beside_the_unit(small):
    result = measure(small("gpu/b16", images=1, batches=["2", "6"], official=False, precision="fp32"), 1, Progress())
    expected = {f"{way}, batches of {size}" for way in (BARE, "ours") for size in (2, 6)}
    assert expected == {way for way in result["seconds"] if "batches" in way}


def test_labels_in_other_precisions_are_compared(small):
    result = measure(small("gpu/precisions", images=1, precisions=["bf16", "fp32"]), 1, Progress())
    assert {"ours, bf16", "ours, fp32"} < result["seconds"].keys()
    assert result["precisions"]["fp32"] == 100 >= result["precisions"]["bf16"] > 90
    assert "| ours, fp32 | " in view.table({"case": result})


def test_compiled_blocks_are_those_of_one_way(small, monkeypatch):
    compiled, real = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiled.append(f) or real(f, backend="eager", **options))
    assert "ours, compiled" in measure(small("gpu/compile", images=1, precision="fp32"), 1, Progress())["seconds"]
    assert len(compiled) == 2  # in the round that warms up, and in the counted one


def test_the_eight_benchmarks_have_cases():
    names = {name.removeprefix("gpu/") for name in bench.grouped("gpu")}
    assert {*load_suite("sclip8").datasets} < names
    assert not bench.grouped("ade150")


def test_a_group_of_cases_is_resumed(tmp_path):
    words = ["gpu/voc20", *SMALL, "images=1", "batch=2", "precision=fp32", "segmentor=naclip", "out=speed"]
    first, again = (run("bench.py", *words, cwd=tmp_path) for _ in range(2))
    _, measured = results_in(tmp_path / "speed")
    assert measured["gpu/voc20"]["seconds"].keys() == {BARE, f"naclip{ALONE}"}
    assert "| voc20, 1449 images |" in first.stdout
    assert "| all 1, in seconds |" in first.stdout
    assert "; again=true repeats it" in again.stderr
    assert "round" not in again.stderr


def test_further_images_are_copies(tmp_path, small):
    cases.drawn_images(small("case", images=cases.KINDS + 1), tmp_path)
    first, copy = (tmp_path / "images" / f"{number:04d}.jpg" for number in (0, cases.KINDS))
    assert first.read_bytes() == copy.read_bytes()


def test_expensive_cases_have_fewer_rounds(small):
    assert len(measure(small("clip"), 3, Progress(), budget=0)["seconds"][BARE]) == 1
    assert len(measure(small("clip"), 3, Progress())["seconds"][BARE]) == 3


def test_a_call_without_names_measures_what_is_missing(tmp_path, monkeypatch):
    from ovss_bench.bench import measure as measuring

    measured, apart = [], measuring.measure_apart

    def watched(case, *arguments):
        measured.append((case.segmentor[0], case.classes))
        return apart(case, *arguments)

    monkeypatch.setattr(measuring, "measure_apart", watched)
    monkeypatch.setattr(methods, "method_cases", lambda: ["clip"])
    monkeypatch.setattr(bench, "config_names", lambda kind: [])
    monkeypatch.chdir(tmp_path)
    words = [word for word in SMALL if word != "rounds=1"]
    for changed in ([], [], ["classes=4"], ["classes=4", "again=true"]):
        bench.run([*words, "classes=5", "queries=5", "rounds=1", "out=speed", *changed])
    assert measured == [("clip", 5), ("clip", 4), ("clip", 4)]
    monkeypatch.setattr(measuring, "code_digest", lambda: "of other code")
    bench.run([*words, "classes=4", "queries=5", "rounds=1", "out=speed"])
    assert len(measured) == 4


def test_peak_memory_counts_what_a_call_takes_from_memory_that_was_freed_before():
    for _ in range(2):
        torch.ones(7 * 2**20)  # 28 MiB: glibc keeps blocks of up to the largest freed size in the heap from now on
    blocks = [torch.ones(5 * 2**20) for _ in range(30)]
    last = torch.ones(5 * 2**20)  # keeps the heap from shrinking
    del blocks
    found = peak_memory(lambda: torch.ones(2**26), torch.device("cpu"))  # 256 MiB
    assert 200 < found["peak"] - found["before"] < 400
    del last


def test_operations_are_the_functions_that_run():
    stages = Watched()
    planes, image = torch.rand(3, 2, 40, 40).softmax(1), 255 * torch.rand(40, 40, 3)
    while sum(stages.samples.values()) < 5:  # samples are taken while it runs, however fast it is
        with stages.watching(), stages("last block"):
            dense_crf(planes, image)
    assert {stage for stage, _ in stages.samples} <= {"last block", "between stages"}
    assert any(function.startswith("ops/crf.py ") for _, function in stages.samples)


def test_shares_of_operations_leave_out_the_encoders():
    samples = {("encode", "encoders/clip.py BlockView.mlp"): 50, ("last block", "encoders/clip.py BlockView.qkv"): 10}
    samples |= {("last block", "ops/pamr.py pamr"): 30, ("refine", "ops/pamr.py pamr"): 9, ("compose", "ops/compose.py f"): 1}
    assert own_operations(samples, False) == {"ops/pamr.py pamr": 0.39, "encoders/clip.py BlockView.qkv": 0.1}
    assert own_operations(samples, True) == {"ops/pamr.py pamr": 0.39}


def test_bare_passes_are_those_that_the_method_needs(small, tmp_path, monkeypatch):
    """Each window once, without padding, by the image tower of open_clip; and the vision encoder's passes over them."""
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


def test_the_official_style_ignores_what_the_data_set_ignores():
    """With more than 255 classes, 255 is one of them."""
    dataset = SimpleNamespace(classes=range(300), ignore_index=300, label=lambda _: np.array([[0, 255, 300]]))
    assert official_miou(dataset, [None], [torch.tensor([[0, 0, 7]])]) == pytest.approx(25)


def test_the_help_lists_the_methods_that_have_a_case():
    (methods,) = [note.partition(": ")[2].partition(";")[0].split(", ") for note in bench.COMMAND.notes if "METHOD+" in note]
    assert methods == [name for name in method_cases() if name in SEGMENTORS.names]


def test_mistakes_are_named(tmp_path):
    for arguments, words in (
        (["ade151"], ["unknown case 'ade151'", "ade150"]),
        (["proxyclp:given"], ["unknown case 'proxyclp:given'", "proxyclip:given"]),
        (["classes=0"], ["classes=0"]),
        (["segmentor=sclip", "classes=9", "queries=3", *SMALL], ["at least one query per class"]),
    ):
        done = run("bench.py", *arguments, cwd=tmp_path, status=2)
        assert all(word in done.stderr for word in words), done.stderr
