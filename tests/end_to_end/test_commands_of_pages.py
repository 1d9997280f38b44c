"""The commands of README and docs: those that the embedded demo is enough for are run, the others are parsed by their tools."""

import shutil
from collections import defaultdict

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from end_to_end.tools import ROOT, evaluate_here
from ovss_bench.cli.commands import COMMANDS, command_of
from ovss_bench.cli.datasets import ACTIONS
from ovss_bench.cli.options import is_positional, parse_options, with_flags
from ovss_bench.cli.overrides import checked
from ovss_bench.files import CONFIGS
from pages import blocks, commands

ALL = list(commands())
# Options with which `eval` needs more than the demo.
REAL = ("clip", "dataset", "vfm", "regions", "foreground", "diffusion", "sam", "bank", "weights", "data_root", "-m")
REAL += ("hydra/launcher", "runtime.device")
STATUS = {"compare": (0, 1, 3)}  # one image may be too few to decide
ON_RESULTS = ("report", "compare", "merge", "new-method")


def options(words):
    return dict(word.partition("=")[::2] for word in words)


def on_demo(command):
    given = options(command.words)
    if command.name == "eval":
        return not any(given.get(name, "demo") != "demo" for name in (*REAL, "table")) and "--help" not in given
    if command.name == "datasets":
        return command.words[0] == "list" or command.words[:2] == ("check", "demo")
    return command.name in ON_RESULTS and not {"suite", "published"} & given.keys()


@pytest.mark.parametrize("command", ALL, ids=lambda command: f"{command.name} {' '.join(command.words)}")
def test_pages_write_options_in_one_style(command):
    known = command_of(command.name).options()
    assert not [word for word in command.words if word.startswith("--") and word[2:].partition("=")[0] in known]


def quick(words):
    """The words of an evaluation, with one image, or with one for each of two shards; methods of an installed package are
    plug-ins."""
    given = options(words)
    given |= {"limit": "2" if "shard" in given else "1"}
    given |= {"plugins": "[my_method.py]"} if given.get("segmentor") == "my_method" else {}
    return [f"{name}={value}" for name, value in given.items()]


def together(commands):
    """The words of evaluations; of those that differ in their methods alone, one with all methods."""
    methods = defaultdict(dict)
    for command in commands:
        given = options(quick(command.words))
        names = given.pop("segmentor", "").strip("[]").split(",")
        methods[tuple(f"{name}={value}" for name, value in given.items())] |= dict.fromkeys(names)
    return [[*words, *([f"segmentor=[{','.join(names)}]"] if any(names) else [])] for words, names in methods.items()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the files that pages mention."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OVSS_DATA", raising=False)
    shutil.copytree(ROOT / "results" / "demo", tmp_path / "results" / "demo")
    (code,) = [block for block in blocks("python") if 'name="valueclip"' in block]
    (tmp_path / "my_clip.py").write_text(code)
    for number, command in enumerate(command for command in ALL if command.name == "new-method"):
        (tmp_path / f"new{number}").mkdir()
        with monkeypatch.context() as inside:
            inside.chdir(tmp_path / f"new{number}")
            assert not command_of("new-method").run(list(command.words)), command
    shutil.copytree(tmp_path / "new0", tmp_path, dirs_exist_ok=True)
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    (code,) = [block for block in blocks("yaml") if block.startswith("images: photos")]
    (tmp_path / "my_data.yaml").write_text(code)
    for command in ALL:
        for given in options(command.words).keys() & {"recipe.checkpoint", "recipe.ranking", "weights"}:
            if "/" not in (file := options(command.words)[given]):  # others are the project's
                (tmp_path / file).touch()
    return tmp_path


@pytest.fixture
def evaluated(folder):
    """The same, with results."""
    assert evaluate_here("segmentor=[sclip,naclip]", "limit=1") == 0
    assert evaluate_here(*quick(["segmentor=my_method"])) == 0
    for name in ("before", "after", "baseline", "current"):
        shutil.copytree(folder / "results" / "runs", folder / name)


def test_the_commands_on_the_demo_run(evaluated, capsys):
    done = [command for command in ALL if on_demo(command)]
    assert {"eval", *ON_RESULTS} <= {command.name for command in done}
    for words in together(command for command in done if command.name == "eval"):
        assert evaluate_here(*words) == ("expect" in options(words)), words  # one image never agrees with a table of 100
    for command in done:
        if command.name not in ("eval", "new-method"):  # the fixture runs these
            words = with_flags(command.words, command_of(command.name).options())
            words += ["partial=true"] if command.name == "report" else []
            assert command_of(command.name).run(words) in (None, *STATUS.get(command.name, (0,))), command


def test_the_other_commands_are_parsed(folder, capsys):
    for command in (command for command in ALL if not on_demo(command)):
        if command.name != "eval":
            parse(command)
        elif {"-m", "hydra/launcher"} & options(command.words).keys():
            assert evaluate_here(*first_of(command.words), "dry_run=true") == 0, command
        elif "--help" not in command.words:
            words = {word.replace("device=cuda", "device=cpu") for word in command.words}  # there may be no GPU
            assert evaluate_here(*words, "dry_run=true") == 0, command


def parse(command):
    """Raises OvssError for an unknown option, or a value that does not fit."""
    assert command.name in COMMANDS, command
    known, words = command_of(command.name), list(command.words)
    if command.name == "datasets":
        action, *words = words
        parse_options([word for word in words if not is_positional(word)], (*known.groups["All"], *ACTIONS[action][1]))
    else:
        known.parse(with_flags(words, known.options()))


def first_of(words):
    """The first run of a grid."""
    parser = OverridesParser.create()
    for word in checked([word for word in words if not word.startswith("hydra/")]):
        if word != "-m":
            override = parser.parse_override(word)
            value = (
                next(override.sweep_string_iterator()) if override.is_sweep_override() else override.get_value_element_as_str()
            )
            yield f"{override.key_or_group}={value}"


def test_the_launchers_of_the_pages_exist():
    used = [options(command.words)["hydra/launcher"] for command in ALL if "hydra/launcher" in options(command.words)]
    with hydra.initialize_config_dir(str(CONFIGS / "tools"), version_base="1.3"):
        assert used
        assert all((CONFIGS / "tools" / "hydra" / "launcher" / f"{name}.yaml").exists() for name in used)
