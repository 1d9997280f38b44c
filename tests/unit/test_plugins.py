"""External methods: files, installed packages, their recipes, and what is wrong with them."""

import importlib
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

import ovss_bench as ob
from end_to_end.tools import evaluate_here, results
from ovss_bench import files
from ovss_bench.config import registry
from ovss_bench.config.hyperparameters import as_table, from_table
from ovss_bench.config.recipe import of_class, own_recipe, segmentor_config
from ovss_bench.config.registry import PLUGINS, load_plugin
from ovss_bench.runs.code import row_code
from ovss_bench.runs.evaluate import run_jobs
from ovss_bench.runs.jobs import fingerprint, make_job

METHOD = """
import ovss_bench as ob

@ob.SEGMENTORS.register_module(name="{name}")
class Method(ob.LastBlockSegmentor):
    sharpness: float = 2.0

    def mix(self, q, k, v, grid):
        return ob.attend(v, v, v, scale=self.sharpness * v.shape[-1] ** -0.5)
"""


@pytest.fixture(autouse=True)
def registered():
    """What a test imports is forgotten after it, and what tests before it used is no concern of it."""
    before, modules = dict(registry._IMPORTED), set(sys.modules)
    PLUGINS.clear()
    yield
    registry._IMPORTED.clear()
    registry._IMPORTED.update(before)
    for name in set(sys.modules) - modules:
        if name.startswith(("outside_", "ovss_bench_plugin_")):
            del sys.modules[name]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_brings_a_method(tmp_path):
    path = write(tmp_path / "mine.py", METHOD.format(name="mine"))
    load_plugin(path)
    load_plugin(path)
    assert ob.compose_recipe("mine").hyperparameters["sharpness"] == 2
    assert list(PLUGINS) == [str(path)]


def test_files_of_the_same_name_in_two_folders_are_two(tmp_path):
    for name in ("one", "other"):
        load_plugin(write(tmp_path / name / "mine.py", METHOD.format(name=name)))
    assert {"one", "other"} <= set(ob.segmentor_names())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def", "SyntaxError"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("raise SystemExit('gone')", "SystemExit: gone"),
        (METHOD.format(name="sclip"), "sclip is already registered"),
        ("import ovss_bench as ob\nraise ob.OvssError('not on this machine')", "not on this machine"),
        ("\0", "SyntaxError"),
    ],
)
def test_a_broken_file_is_named_and_leaves_nothing(text, reason, tmp_path):
    path = write(tmp_path / "bad.py", METHOD.format(name="half") + text)
    known, modules = set(ob.segmentor_names()), set(sys.modules)
    with pytest.raises(ob.OvssError, match=rf"(?s)bad\.py cannot be imported.*{reason}"):
        load_plugin(path)
    assert set(ob.segmentor_names()) == known
    assert set(sys.modules) == modules
    assert not PLUGINS.keys() & {str(path)}
    path.write_text(METHOD.format(name="half"))  # mended
    load_plugin(path)
    assert "half" in ob.segmentor_names()


def test_what_is_no_python_file_is_refused(tmp_path):
    for name in ("missing.py", "."):
        with pytest.raises(ob.OvssError, match="does not exist"):
            load_plugin(tmp_path / name)
    with pytest.raises(ob.OvssError, match=r"must end in \.py"):
        load_plugin(write(tmp_path / "method.txt", METHOD.format(name="mine")))


def test_a_file_brings_recipes(tmp_path):
    write(tmp_path / "configs/segmentor/mine.yaml", "recipe: {logit_scale: 60}\nper_clip:\n  demo: {sharpness: 3}\n")
    write(tmp_path / "configs/segmentor/mine_soft.yaml", "method: mine\nper_dataset:\n  voc21: {sharpness: 0.5}\n")
    load_plugin(write(tmp_path / "mine.py", METHOD.format(name="mine")))
    recipe = ob.compose_recipe("mine", clip="demo", overrides={"threshold": 0.5})
    assert (recipe.logit_scale, recipe.hyperparameters["sharpness"], recipe.threshold) == (60, 3, 0.5)
    assert recipe.origins["sharpness"] == f"{tmp_path}/configs/segmentor/mine.yaml per_clip.demo"
    assert recipe.origins["resize"] == "configs/recipe.yaml recipe"
    assert ob.compose_recipe("mine_soft", dataset="voc21").hyperparameters["sharpness"] == 0.5
    assert {"mine", "mine_soft"} <= set(ob.segmentor_names())


def test_a_recipe_that_is_there_already_is_not_replaced(tmp_path):
    write(tmp_path / "configs/segmentor/sclip.yaml", "recipe: {logit_scale: 1}\n")
    with pytest.raises(ob.OvssError, match=r"mine\.py cannot be imported: recipe 'sclip' already exists"):
        load_plugin(write(tmp_path / "mine.py", METHOD.format(name="mine")))
    assert ob.compose_recipe("sclip").logit_scale == 40
    assert "mine" not in ob.segmentor_names()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("recipe: [", "cannot be read"),
        ("3", r"cannot be read|expected the keys"),
        ("- recipe", "expected the keys"),
        ("recip: {window: 3}", "unknown key .*recipe"),
        ("recipe: 3", "recipe: expected NAME: VALUE"),
        ("per_clip: {demo: 3}", r"per_clip\.demo: expected NAME: VALUE"),
        ("per_clip_dataset: {demo: {demo: 3}}", r"per_clip_dataset\.demo\.demo: expected"),
        ("method: [sclip]", "method: expected a text"),
        ("method: sclp", "unknown segmentor 'sclp'"),
        ("recipe: {windo: 3}", "windo"),
        ("recipe: {logit_scale: big}", r"logit_scale='big' \(from .*mine\.yaml recipe\)"),
        ("recipe: {sharpness: high}", "sharpness='high'"),
        ("recipe: ${oops}", r"cannot be read|expected NAME"),
        ("\xff\xfe\x00", r"cannot be read|expected the keys"),
    ],
)
def test_a_bad_recipe_is_named(text, reason, tmp_path):
    write(tmp_path / "configs/segmentor/mine.yaml", text)
    load_plugin(write(tmp_path / "mine.py", METHOD.format(name="mine")))
    with pytest.raises(ob.OvssError, match=reason):
        ob.compose_recipe("mine", clip="demo", dataset="demo")


@pytest.mark.parametrize("text", ["", "recipe:\n", "paper: none yet\nper_clip:\n  demo:\n"])
def test_empty_sections_say_nothing(text, tmp_path):
    write(tmp_path / "configs/segmentor/mine.yaml", text)
    load_plugin(write(tmp_path / "mine.py", METHOD.format(name="mine")))
    assert ob.compose_recipe("mine", clip="demo").hyperparameters["sharpness"] == 2


PATHS = """
import ovss_bench as ob
from pathlib import Path

@ob.SEGMENTORS.register_module(name="mine")
class Method(ob.LastBlockSegmentor):
    matrix: ob.File = Path(__file__).with_name("matrix.txt")
    maps: ob.Folder | None = None
    other: Path | None = None

    def mix(self, q, k, v, grid):
        assert isinstance(self.matrix, Path) and (self.maps is None or self.maps.is_dir())
        return v * float(self.matrix.read_text())
"""


@pytest.fixture
def with_paths(tmp_path):
    """`with_paths(**overrides)`: a job of a method whose hyperparameters are files and folders, and its fingerprint."""
    write(tmp_path / "matrix.txt", "1.0")
    write(tmp_path / "maps/deep/one.txt", "one")
    write(tmp_path / "configs/segmentor/mine.yaml", "per_dataset:\n  demo: {other: beside.txt}\n")
    write(tmp_path / "configs/segmentor/beside.txt", "beside")
    load_plugin(write(tmp_path / "mine.py", PATHS))
    data = ob.load_dataset("demo")

    def of(**overrides):
        job = make_job("mine", ob.load_clip("demo"), data, overrides={"templates": "none", **overrides})
        return job, fingerprint(job, data.samples)

    return of


def test_files_and_folders_count_by_what_they_hold(with_paths, tmp_path, monkeypatch):
    job, before = with_paths(maps=str(tmp_path / "maps"))
    own = {name: source["name"] for name, source in job.sources.items()}
    assert own == {
        "matrix": str(tmp_path / "matrix.txt"),
        "maps": str(tmp_path / "maps"),
        "other": str(tmp_path / "configs/segmentor/beside.txt"),
    }
    assert all(len(source["digest"]) == 64 for source in job.sources.values())
    write(tmp_path / "elsewhere/copy.txt", "1.0")
    monkeypatch.chdir(tmp_path)
    assert with_paths(maps="maps", matrix="elsewhere/copy.txt")[1] == before
    assert with_paths()[1] != before
    for file in ("matrix.txt", "maps/deep/one.txt", "maps/new.txt", "configs/segmentor/beside.txt"):
        path = tmp_path / file
        old = path.read_text() if path.exists() else None
        write(path, "2.0")
        assert with_paths(maps="maps")[1] != before, file
        path.unlink() if old is None else path.write_text(old)
    assert with_paths(maps="maps")[1] == before
    (result,) = run_jobs([with_paths(maps="maps")[0]], limit=1, output=tmp_path / "runs", quiet=True)
    assert json.loads(result.path.read_text())["sources"]["matrix"]["digest"] == job.sources["matrix"]["digest"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"matrix": "nowhere.txt"}, r"matrix=nowhere\.txt of Method: there is no such file in .*, nor in .*segmentor"),
        ({"maps": "/nowhere"}, r"maps=/nowhere of Method: there is no such folder\. Correct the path\."),
        ({"other": "nowhere"}, "no such file or folder"),
        ({"matrix": "."}, "no such file in"),
        ({"matrix": None}, "matrix=None: expected the path of a file"),
        ({"maps": 3}, "maps=3: expected the path of a folder"),
    ],
)
def test_files_and_folders_that_are_not_there_are_named_before_the_first_image(overrides, words, with_paths):
    with pytest.raises(ob.OvssError, match=words):
        with_paths(**overrides)


def test_a_method_of_this_project_may_have_files(tmp_path):
    """Its declaration is in a table, from which it comes as it is."""
    load_plugin(write(tmp_path / "mine.py", PATHS.replace('Path(__file__).with_name("matrix.txt")', '"matrix.txt"')))
    mine = of_class(ob.SEGMENTORS.get("mine"))
    read = from_table(json.loads(json.dumps(as_table({"mine": mine}))))["mine"]
    assert read.paths == {"matrix": ob.File, "maps": ob.Folder, "other": Path}
    assert (read.owner, read.hints, read.defaults) == (mine.owner, mine.hints, mine.defaults)


def test_the_recipe_that_was_read_is_named(tmp_path):
    folder = tmp_path / "here/there"
    taken = write(folder / "configs/segmentor/mine.yaml", "recipe: {logit_scale: 60}\n")
    load_plugin(write(folder / "mine.py", METHOD.format(name="mine")))
    assert own_recipe("mine") == str(taken)
    assert own_recipe("sclip") == "configs/segmentor/sclip.yaml"


@pytest.mark.parametrize(
    "place",
    [
        "mine.yaml", "configs/mine.yaml", "configs/segmentor/mine.yml", "recipes/mine.yaml", "../mine.yaml",
        "../configs/segmentor/mine.yaml", "../recipes/mine.yml",
    ],
)  # fmt: skip
def test_a_recipe_where_none_is_looked_for_is_told(place, tmp_path):
    folder = tmp_path / "here/there"
    wrong = write(folder / place, "recipe: {logit_scale: 60}\n").resolve()
    load_plugin(write(folder / "mine.py", METHOD.format(name="mine")))
    wanted = folder / "configs/segmentor/mine.yaml"
    assert own_recipe("mine") == f"none; it would be {wanted}; {wrong} is not read: move it there"
    assert make_job("mine", ob.load_clip("demo"), ob.load_dataset("demo")).segmentor.recipe.logit_scale == 40


def test_recipes_that_come_late_or_are_of_no_method_are_told(tmp_path):
    other = write(tmp_path / "configs/segmentor/my_method.yaml", "recipe: {logit_scale: 60}\n")
    load_plugin(write(tmp_path / "mine.py", METHOD.format(name="mine")))
    assert f"{other} belongs to no method: rename it to mine.yaml, or write `method: mine` in it" in own_recipe("mine")
    write(tmp_path / "configs/segmentor/mine.yaml", "recipe: {logit_scale: 60}\n")
    assert "which was created after" in own_recipe("mine")


def test_the_recipe_is_told_at_the_start_and_in_the_result(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wrong = write(tmp_path / "mine.yaml", "recipe: {logit_scale: 60}\n")
    write(tmp_path / "mine.py", METHOD.format(name="mine"))
    arguments = ["plugins=[mine.py]", "segmentor=[mine,sclip]", "limit=1", "recipe.resize=none"]
    for more in (["dry_run=true"], []):
        evaluate_here(*arguments, *more)
        said = capsys.readouterr().out
        assert f"recipe of mine: {own_recipe('mine')}" in said
        assert str(wrong) in said
    found = {key: result["provenance"]["recipe"] for key, result in results(tmp_path / "results").items()}
    assert found == {"mine/demo": own_recipe("mine"), "sclip/demo": "configs/segmentor/sclip.yaml"}


PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "{name}"
version = "0.3"
[project.entry-points."ovss_bench.plugins"]
{name} = "{name}{module}"
[tool.hatch.build.targets.wheel]
include = ["{name}*"]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which pip has installed three packages, one of which is broken."""
    folder, target = tmp_path_factory.mktemp("packages"), tmp_path_factory.mktemp("site")
    for name, module in (("outside_good", ".methods"), ("outside_single", ""), ("outside_broken", "")):
        write(folder / name / "pyproject.toml", PROJECT.format(name=name, module=module))
    write(folder / "outside_good/outside_good/__init__.py", "")
    write(folder / "outside_good/outside_good/methods.py", METHOD.format(name="outside_good"))
    write(folder / "outside_good/outside_good/configs/segmentor/outside_good.yaml", "recipe: {sharpness: 5}\n")
    write(folder / "outside_single/outside_single.py", METHOD.format(name="by_another_name"))
    write(folder / "outside_broken/outside_broken.py", METHOD.format(name="half") + "\n1 / 0\n")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--target", target]
    done = subprocess.run([*install, *folder.iterdir()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def installed(site, monkeypatch):
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    files.code.cache_clear()
    return site


def test_packages_are_imported_when_something_is_asked_for_that_is_not_known(installed):
    ob.compose_recipe("sclip", clip="demo")
    assert "outside_good" not in ob.segmentor_names()
    with pytest.warns(UserWarning, match=r"'outside_broken' of outside_broken 0\.3 .*ZeroDivisionError"):
        recipe = ob.compose_recipe("by_another_name")
    assert recipe.hyperparameters["sharpness"] == 2
    assert "half" not in ob.segmentor_names()


@pytest.mark.filterwarnings("ignore:plug-in 'outside_broken'")
def test_a_package_has_a_subfolder_for_its_recipes(installed):
    recipe = ob.compose_recipe("outside_good")
    assert recipe.hyperparameters["sharpness"] == 5
    assert recipe.origins["sharpness"] == f"{installed}/outside_good/configs/segmentor/outside_good.yaml recipe"


def test_a_broken_package_is_an_error_where_it_is_wanted(installed):
    for _ in range(2):
        with pytest.raises(ob.OvssError, match=r"plug-in 'outside_broken' of outside_broken 0\.3.*ZeroDivisionError"):
            ob.compose_recipe("outside_broken")
    with pytest.raises(ob.OvssError, match=r"segmentor 'half'.*These plug-ins cannot be imported: outside_broken\."):
        ob.compose_recipe("half")


@pytest.mark.filterwarnings("ignore:plug-in 'outside_broken'")
def test_only_the_package_that_a_row_comes_from_is_part_of_its_fingerprint(installed):
    def packages(name):
        return list(row_code([segmentor_config(name)[1]], [])[1])

    assert packages("by_another_name") == [str(installed / "outside_single.py")]
    assert packages("outside_good") == [str(installed / "outside_good")]
    assert packages("sclip") == []


@pytest.mark.filterwarnings("ignore:plug-in 'outside_broken'")
@pytest.mark.parametrize("first", ["file", "name"])
def test_a_file_of_an_installed_package_is_imported_once(first, installed):
    steps = {"file": lambda: load_plugin(installed / "outside_single.py"), "name": lambda: ob.compose_recipe("by_another_name")}
    for step in sorted(steps, key=lambda step: step != first):
        steps[step]()
    with pytest.raises(ob.OvssError, match=r"plug-ins cannot be imported: outside_broken\."):
        ob.compose_recipe("nothing")
    assert set(PLUGINS) == {str(installed / "outside_single.py")}


def test_a_class_that_was_simply_defined_is_part_of_the_fingerprint():
    @ob.SEGMENTORS.register_module(name="here")
    class Here(ob.LastBlockSegmentor):
        pass

    assert list(row_code([Here], [])[1]) == [str(Path(__file__).parent)]


def test_a_class_of_a_notebook_is_part_of_the_fingerprint(monkeypatch):
    def typed(text):
        monkeypatch.setitem(sys.modules, "cells", types.ModuleType("cells"))
        ob.SEGMENTORS.module_dict.pop("typed", None)
        exec(compile(text, "<cell>", "exec"), vars(sys.modules["cells"]))
        return row_code([segmentor_config("typed")[1]], [])[1]

    text = METHOD.format(name="typed")
    first = typed(text)
    assert list(first) == ["cells.Method"]
    assert first == typed("# a comment\n" + text)
    assert first != typed(text.replace("-0.5", "-0.6"))
