"""Files of names, recipes, overrides, command lines, and custom YAML files."""

import csv
import io
import math
from contextlib import redirect_stdout

import pytest
import torch
from hydra.errors import HydraException
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import ovss_bench as ob
from end_to_end.tools import evaluate_here
from fuzz.common import SCALARS, VALUES, damaged, inputs, outcome
from fuzz.test_pictures import encoded, picture
from miniatures.drawing import write_files
from ovss_bench.cli.options import Option, Text, Texts, parse_options
from ovss_bench.config.recipe import RECIPE_VALUES, compose_recipe
from ovss_bench.config.segmentor_file import DEPTHS, RECIPES
from ovss_bench.config.validation import Count, Whole
from ovss_bench.datasets.config import KEYS
from ovss_bench.files import CONFIGS, config_names, load_config
from ovss_bench.reports.papers import KEYS as TABLE_KEYS
from ovss_bench.reports.papers import load_table
from ovss_bench.vocabulary import read_names

LINES = st.text(st.sampled_from("ab ,,\";:\t#é一'\n\r\x85\u2028\0-") | st.characters(codec="utf-8"), max_size=40)


def check_names(path):
    found = outcome(read_names, path)
    if isinstance(found, ob.OvssError):
        assert str(path) in str(found)
        return
    names, distractors = found
    assert names
    assert all(query == query.strip() and query for entry in [*names, distractors] for query in entry)
    assert len({entry[0] for entry in names}) == len(names)
    vocabulary = outcome(ob.Vocabulary.from_file, path)
    if isinstance(vocabulary, ob.Vocabulary):
        assert len(vocabulary.classes) == len(names)
        assert len(vocabulary.queries) == len(vocabulary.group) == sum(map(len, names)) + len(distractors)


@inputs(0.06)
@given(text=LINES)
@example("x" * 200_000)
@example('"sky, wall')
def test_names_files_of_any_text(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "names.txt"
    path.write_text(text, encoding="utf-8", newline="")
    check_names(path)


@inputs(0.03)
@given(content=st.binary(max_size=60), draw=st.data())
def test_names_files_of_any_bytes(tmp_path_factory, content, draw):
    path = tmp_path_factory.getbasetemp() / "names.txt"
    known = (CONFIGS / "names/voc21/sclip.txt").read_bytes()
    path.write_bytes(draw.draw(st.sampled_from([content, known + content, draw.draw(damaged(known))])))
    check_names(path)


NAME = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=8).map(str.strip)
ENTRIES = st.lists(
    st.lists(NAME.filter(bool), min_size=1, max_size=3), min_size=1, max_size=5, unique_by=lambda names: names[0]
)


@inputs(0.03)
@given(entries=ENTRIES)
def test_what_is_written_as_a_names_file_is_read_again(tmp_path_factory, entries):
    path, text = tmp_path_factory.getbasetemp() / "names.txt", io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(entries)
    path.write_text(text.getvalue(), encoding="utf-8")
    assert read_names(path) == (entries, [])


METHODS = ["naclip", "gem", "scclip", "cliper", "corrclip_v2", "clip_diy"]
KNOWN = {name: list(ob.SEGMENTORS.get(name).hyperparameters()) for name in METHODS}


@inputs(0.1)
@given(draw=st.data(), method=st.sampled_from(METHODS))
def test_overrides_of_any_kind(draw, method):
    keys = st.sampled_from([*RECIPE_VALUES, *KNOWN[method]]) | st.text(max_size=5)
    overrides = draw.draw(st.dictionaries(keys, VALUES, min_size=1, max_size=3))
    recipe = outcome(compose_recipe, method, clip="demo", dataset="demo", overrides=overrides)
    if isinstance(recipe, ob.OvssError):
        return
    for name, value in overrides.items():
        assert recipe.values()[name] == (tuple(value) if isinstance(value, list) else value)
        assert recipe.origins[name] == "command line"
        assert not isinstance(value, float) or math.isfinite(value), (name, value)
    assert hash(recipe.trunk_key) == hash(recipe.trunk_key)


NUMBERS = st.sampled_from([1, 2, 3, 7, 8, 30, 64, 10**5, 10**9, 0.0, 1e-30, 0.5, 3.0, 1e6, 1e29, 1e30, 10**400])


@st.composite
def overridden(draw):
    method = draw(st.sampled_from(["naclip", "gem", "scclip"]))
    keys = [key for key in (*RECIPE_VALUES, *KNOWN[method]) if key not in ("names", "pamr_steps")]
    return method, draw(st.dictionaries(st.sampled_from(keys), NUMBERS, min_size=1, max_size=2))


@inputs(0.05)
@given(case=overridden())
@example(("scclip", {"multi_end_idx": 10**9}))
@example(("gem", {"iterations": 10**9}))
@example(("naclip", {"sigma": 10**400}))
@example(("naclip", {"long_side": 7, "pad_multiple": 3}))
def test_what_composes_segments(case):
    """Numbers from tiny to huge (sizes that exceed the memory are refused before): an error, or finite scores."""
    method, overrides = case
    clip = ob.load_clip("demo")
    vocabulary = ob.Vocabulary.from_names(["sand", "red cloth", "blue cloth"], background=True, templates="none")
    image = torch.arange(40 * 50 * 3).reshape(40, 50, 3).to(torch.uint8).numpy()

    def segment():
        small = {"short_side": 48, "window": 48, "stride": 24, "pamr_steps": 1} | overrides
        return ob.segment(ob.build_segmentor(method, clip=clip, vocabulary=vocabulary, **small), image)

    result = outcome(segment)
    if not isinstance(result, ob.OvssError):
        assert result.scores.isfinite().all()
        assert 0 <= result.label_map.min() <= result.label_map.max() <= 3


OPTIONS = list(load_config("tools", "eval"))
RUNTIME = [f"runtime.{key}" for key in load_config("tools", "eval")["runtime"]]
WORDS = st.builds(
    lambda key, sign, value: f"{key}{sign}{value}",
    st.sampled_from([*OPTIONS, *RUNTIME, "recipe.window", "recipe.threshold", "recipe.x"]) | st.text("abz.@/~+-", max_size=4),
    st.sampled_from(["=", "=", "=", "", "==", ":"]),
    SCALARS | st.text("[]{}(),:='\"\\$ab1.", max_size=6) | st.sampled_from(["[sclip,clip]", "{a:1}", "[]", "''", "0", "-1"]),
)


@inputs(0.04)
@given(words=st.lists(WORDS, min_size=1, max_size=2))
def test_command_lines(tmp_path_factory, monkeypatch_once, words):
    """All of tools/eval.py but the evaluation; the tool reports exceptions of Hydra and OmegaConf as errors, too."""
    monkeypatch_once.chdir(tmp_path_factory.getbasetemp())
    errors = (ob.OvssError, HydraException, OmegaConfBaseException)
    with redirect_stdout(io.StringIO()):
        result = outcome(evaluate_here, *words, "dry_run=true", errors=errors)
    assert result == 0 or isinstance(result, errors)


@pytest.fixture
def monkeypatch_once(monkeypatch):
    """One for all inputs of a test."""
    return monkeypatch


DECLARED = [
    *(Option("folder", Text, "."), Option("package", bool, False), Option("limit", Count | None, None)),
    *(Option("workers", Count, 2), Option("recipe", dict, {}), Option("names", Texts, []), Option("seed", Whole, 0)),
]
NAMES = [option.name for option in DECLARED]


@inputs(0.03)
@given(
    words=st.lists(
        st.builds("{}={}".format, st.sampled_from([*NAMES, "x", "a.b"]), SCALARS) | LINES,
        max_size=3,
    )
)
def test_options_of_the_small_tools(words):
    options = outcome(parse_options, words, DECLARED, errors=(ob.OvssError, OmegaConfBaseException))
    if not isinstance(options, Exception):
        assert [*options] == NAMES
        assert isinstance(options["package"], bool)


def written(path, content):
    """As YAML if possible, else as printed."""
    try:
        path.write_text(content if isinstance(content, str) else OmegaConf.to_yaml(OmegaConf.create(content)), encoding="utf-8")
    except (OmegaConfBaseException, ValueError):
        path.write_text(repr(content), encoding="utf-8", errors="replace")
    return path


def mapping(keys, values=VALUES):
    return st.dictionaries(st.sampled_from(list(keys)) | st.text(max_size=4), values, max_size=4)


SECTION = mapping([*RECIPE_VALUES, "sigma", "demo"])


@inputs(0.05)
@given(content=mapping(DEPTHS, VALUES | SECTION | mapping(["demo"], SECTION)) | LINES)
def test_recipes_of_plugins(tmp_path_factory, content):
    RECIPES["fuzzed"] = written(tmp_path_factory.getbasetemp() / "fuzzed.yaml", content)
    try:
        recipe = outcome(compose_recipe, "fuzzed", clip="demo", dataset="demo")
    finally:
        del RECIPES["fuzzed"]
    assert isinstance(recipe, ob.OvssError) or recipe.short_side > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    files = {f"photos/{number}.png": encoded(picture("RGB", (9, 12), number), "PNG") for number in range(2)}
    files |= {f"masks/{number}.png": encoded(picture("L", (9, 12), number, 3), "PNG") for number in range(2)}
    write_files(folder, files | {"ids.txt": b"0\n1\n", "names.txt": b"a\nb, bb\nc\n"})
    return folder


GOOD = {"images": "photos", "labels": "masks", "image_suffix": ".png", "label_suffix": ".png", "classes": ["a", "b", "c"]}
CHANGE = mapping([*KEYS, "images", "labels", "classes"], VALUES | st.sampled_from(["photos", "ids.txt", "names.txt", "voc21"]))


def use(path):
    dataset = ob.load_dataset(path)
    labels = [dataset.label(sample) for sample in dataset.samples]
    return dataset, labels, dataset.vocabulary(None, "none"), dataset.fingerprint, dataset.facts


@inputs(0.12)
@given(change=CHANGE, without=st.sampled_from([None, None, None, *GOOD]))
def test_data_sets_of_ones_own(folder, change, without):
    path = written(folder / "own.yaml", {key: value for key, value in (GOOD | change).items() if key != without})
    result = outcome(use, path)
    if isinstance(result, tuple):
        dataset, labels, vocabulary, *_ = result
        assert len(vocabulary.classes) == len(dataset.classes) > 0
        for label in labels:
            assert ((label < len(dataset.classes)) | (label == dataset.ignore_index)).all()


@inputs(0.02)
@given(text=LINES)
def test_data_sets_of_any_text(folder, text):
    outcome(use, written(folder / "own.yaml", text))


ROWS = st.lists(mapping(["name", "segmentor", "clip", "recipe", "per_dataset", "method", "variant"], VALUES), max_size=2)


@inputs(0.05)
@given(content=mapping(TABLE_KEYS, VALUES | ROWS) | LINES, draw=st.data())
def test_tables_of_ones_own(tmp_path_factory, content, draw):
    if isinstance(content, dict) and draw.draw(st.booleans()):
        content = load_config("table", config_names("table")[0]) | content
    table = outcome(load_table, written(tmp_path_factory.getbasetemp() / "fuzzed.yaml", content))
    assert isinstance(table, ob.OvssError) or (table.rows and table.datasets)
