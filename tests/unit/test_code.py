"""Which code a row's fingerprint stands for: what can change its number, and nothing else."""

import sys
import threading
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import ovss_bench as ob
from ovss_bench.config.recipe import segmentor_config
from ovss_bench.config.registry import load_plugin
from ovss_bench.datasets.base import load_dataset
from ovss_bench.files import PACKAGE, config_names
from ovss_bench.progress import Progress
from ovss_bench.runs import code
from ovss_bench.runs.code import known_code, row_code, row_files, source_digest
from ovss_bench.runs.counting import counted
from ovss_bench.runs.jobs import fingerprint, make_job
from ovss_bench.stages import Stages
from stand_ins import outside_of
from trained_networks import weights_of

FAST = {"resize": "none", "window": 48, "stride": 48, "pamr_steps": 0}
ROWS = [(name, dataset) for name in config_names("segmentor") for dataset in ("demo", "voc21", "coco_object_2014")]


def _used(name):
    """What of the overrides has an effect on a method, and what it needs on the demo."""
    used = {key: value for key, value in FAST.items() if key not in ob.SEGMENTORS.get(name).unused()}
    return used | weights_of(name, 128)


def kinds(name):
    return [kind for kind in code.MODULES if ob.compose_recipe(name, clip="demo").hyperparameters.get(kind)]


@pytest.fixture
def edited(monkeypatch):
    """`edited(file)`: the rows whose digest changes by a comment in that file of the package."""
    of, content = {row: kinds(row[0]) for row in ROWS}, cache(Path.read_bytes)

    def digests(changed=None):
        comment = {PACKAGE / changed: b"\n# a comment\n"} if changed else {}
        monkeypatch.setattr(code, "_content", lambda path: content(path) + comment.get(path, b""))
        return {row: source_digest(*known_code(*row, of[row])) for row in ROWS}

    before = digests()
    return lambda file: {row for row, digest in digests(file).items() if digest != before[row]}


def test_a_comment_invalidates_the_rows_that_it_can_concern(edited):
    def methods(*names):
        return {row for row in ROWS if row[0] in names}

    for file in ("inference/forward.py", "segmentors/base.py", "evaluation/metrics.py", "encoders/clip.py", "image.py"):
        assert edited(file) == set(ROWS), file
    for file in (
        "reports/table.py",
        "reports/html.py",
        "reports/compare.py",
        "cli/evaluation.py",
        "datasets/prepare/run.py",
        "bench/view.py",
    ):
        assert edited(file) == set(), file
    assert edited("segmentors/scclip.py") == methods("scclip")
    assert edited("segmentors/gem.py") == methods("gem", "gem_original", "freecp", "freecp_clearclip")
    assert edited("segmentors/naclip.py") == methods("naclip", "floss", "resclip", "cass")  # the last two take a function of it
    assert edited("auxiliary/foreground.py") == methods("clip_diy")
    assert edited("datasets/demo/scenes.py") == {row for row in ROWS if row[1] == "demo"}
    assert edited("datasets/coco.py") == {row for row in ROWS if row[1] == "coco_object_2014"}


def test_the_code_of_a_row_is_the_same_without_importing_it(voc):
    loaders = {"demo": load_dataset("demo"), "voc21": load_dataset("voc21", voc)}
    for name in config_names("segmentor"):
        for dataset, loader in loaders.items():
            live = row_code((segmentor_config(name)[1], type(loader)), kinds(name))
            assert known_code(name, dataset, kinds(name)) == live, name


@pytest.mark.parametrize("name", sorted(ob.SEGMENTORS.modules))
def test_all_code_that_runs_while_an_image_is_counted_is_in_the_digest(name, tmp_path):
    """Of the package's files, by what Python calls, in all threads. `__init__` files hold no code that computes."""
    dataset, ran, runtime = load_dataset("demo"), set(), ob.Runtime(boundary=True)
    sample, image, label = dataset.samples[0], dataset.image, dataset.label
    if ob.SEGMENTORS.get(name).uses_clip:  # external systems read the files
        dataset.image = lambda sample: image(sample)[:48, :48]
        dataset.label = lambda sample, size: label(sample)[:48, :48]
    job = make_job(name, ob.load_clip("demo"), dataset, overrides=_used(name) | outside_of(name, tmp_path, dataset.classes))
    job.segmentor.begin(dataset, [sample], Progress(quiet=True))

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            ran.add(Path(frame.f_code.co_filename))

    sys.setprofile(note)
    threading.setprofile(note)
    try:
        ((_, outcome),) = counted([job], {"demo": dataset}, [(sample,)], runtime, Stages())
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert isinstance(outcome, list)
    core, further, _ = row_files((type(job.segmentor), type(dataset)), kinds(name))
    assert {path for path in ran if path.name != "__init__.py"} - core - further == set()


METHOD = """
import ovss_bench as ob
from helper_of_{name} import SCALE

@ob.SEGMENTORS.register_module(name="{name}")
class Method(ob.LastBlockSegmentor):
    def mix(self, q, k, v, grid):
        return ob.attend(v, v, v, scale=SCALE)
"""
LOADER = """
import ovss_bench as ob

@ob.DATASETS.register_module(name="{name}_loader")
class Loader(ob.SegDataset):
    pass
"""


def test_a_plug_in_counts_for_its_own_rows_only(tmp_path, monkeypatch):
    """With the files beside it that it imports, and what it takes of the package."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"helper_of_{name}.py").write_text("SCALE = 1.0\n")
        (tmp_path / f"{name}.py").write_text(METHOD.format(name=name))
        (tmp_path / f"{name}_loader.py").write_text(LOADER.format(name=name))
        for file in (f"{name}.py", f"{name}_loader.py"):
            load_plugin(tmp_path / file)
    own, plugins = row_code((segmentor_config("one")[1], ob.DATASETS.get("two_loader")), [])
    assert {Path(path).name for path in plugins} == {"one.py", "helper_of_one.py", "two_loader.py"}
    assert set(own) == {"core", "ops/attention.py"}
    assert known_code("one", "demo", []) is None
    before = source_digest(own, plugins)
    (tmp_path / "helper_of_two.py").write_text("SCALE = 2.0\n")
    assert source_digest(*row_code((segmentor_config("one")[1], ob.DATASETS.get("two_loader")), [])) == before
    (tmp_path / "helper_of_one.py").write_text("SCALE = 2.0\n")
    assert source_digest(*row_code((segmentor_config("one")[1], ob.DATASETS.get("two_loader")), [])) != before
    baseline = make_job("sclip", ob.load_clip("demo"), load_dataset("demo"))
    assert baseline.code[1] == {}
    assert len(fingerprint(baseline, baseline.dataset.samples)) == 64


def test_an_environment_below_the_folder_of_a_plug_in_is_not_part_of_it(tmp_path, monkeypatch):
    """As in a checkout whose environment is `.venv`: compiled modules of libraries are no Python that could be read."""
    libraries = tmp_path / ".venv" / "site-packages"
    libraries.mkdir(parents=True)
    (libraries / "library_of_three.py").write_text("import compiled_of_three\nSCALE = 1.0\n")
    (libraries / "compiled_of_three.so").write_bytes(b"\x7fELF\0")
    compiled = ModuleType("compiled_of_three")
    compiled.__file__ = str(libraries / "compiled_of_three.so")
    monkeypatch.setitem(sys.modules, "compiled_of_three", compiled)
    monkeypatch.syspath_prepend(libraries)
    monkeypatch.setattr(code.sysconfig, "get_path", lambda kind: str(libraries))
    (tmp_path / "three.py").write_text(METHOD.format(name="three").replace("helper_of_three", "library_of_three"))
    load_plugin(tmp_path / "three.py")
    assert [Path(path).name for path in row_code([segmentor_config("three")[1]], [])[1]] == ["three.py"]


def test_a_plug_in_of_the_same_file_name_in_another_folder_is_another(tmp_path):
    for name in ("one", "two"):
        path = tmp_path / name / "mine.py"
        path.parent.mkdir()
        path.write_text(METHOD.format(name=name).replace("from helper_of_", "SCALE = 1  #"))
        load_plugin(path)
    assert [list(row_code([segmentor_config(name)[1]], [])[1]) for name in ("one", "two")] == [
        [str(tmp_path / name / "mine.py")] for name in ("one", "two")
    ]
