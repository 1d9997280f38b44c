"""The command `ovss`: its subcommands, their help, their options in either style, and shell completion."""

import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib

import pytest

from end_to_end.tools import ROOT, results, run
from ovss_bench.cli import completion
from ovss_bench.cli.commands import COMMANDS, command_of
from ovss_bench.cli.eval_options import HINTS
from ovss_bench.cli.main import main
from ovss_bench.cli.options import with_flags
from ovss_bench.cli.overrides import checked
from ovss_bench.errors import OvssError
from ovss_bench.files import config_names, load_config


def printed(monkeypatch, capsys, *words):
    """Exit status, standard output and standard error of `ovss` with these words, in this process."""
    monkeypatch.setattr(sys, "argv", ["ovss", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code, *capsys.readouterr()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_option_with_its_comment_in_80_columns(name, monkeypatch, capsys):
    status, text, _ = printed(monkeypatch, capsys, name, "--help")
    command = command_of(name)
    assert status == 0
    assert text.startswith(f"usage: ovss {name}")
    assert max(map(len, text.splitlines())) <= 80
    for option in [*command.options(), "debug"]:
        (comment,) = re.findall(rf"^  {re.escape(option)}=\s+(\S.*)$", text, re.MULTILINE)[:1]
        assert len(comment) > 3
    assert len(command.examples) == 3
    for example in command.examples:
        assert f"\n  ovss {name} {example}".rstrip() in text
        words = shlex.split(example)
        if name == "eval":
            assert len(checked(words)) == len(words)
        else:
            _, options = command.parse(with_flags(words, command.options()))
            assert options.keys() == command.options().keys()


def test_the_scripts_have_the_same_help(monkeypatch, capsys):
    scripts = {path.stem.replace("_", "-") for path in (ROOT / "tools").glob("*.py")} - {"train-demo"}
    assert scripts == set(COMMANDS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in scripts:
        path = ROOT / "tools" / f"{name.replace('-', '_')}.py"
        monkeypatch.setattr(sys, "argv", [str(path), "--help"])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
        assert end.value.code == 0
        text = capsys.readouterr().out
        assert f"usage: python tools/{path.name}" in text  # in the examples, too
        assert max(map(len, text.splitlines())) <= 80


def test_every_option_of_an_evaluation_has_a_comment_and_an_annotation():
    config = load_config("tools", "eval")
    names = [*(name for name in config if name not in ("runtime", "defaults", "hydra")), *config["runtime"]]
    assert sorted(names) == sorted(HINTS)
    shown = [option.rpartition(".")[2] for option in command_of("eval").options()]
    assert sorted(shown) == sorted(names)
    assert config["segmentor"] == command_of("eval").options()["segmentor"].default


def test_the_command_of_the_wheel(monkeypatch, capsys):
    module, _, function = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["ovss"].partition(":")
    assert getattr(importlib.import_module(module), function) is main
    status, text, _ = printed(monkeypatch, capsys, "--help")
    assert status == 0
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert max(map(len, text.splitlines())) <= 80
    status, _, errors = printed(monkeypatch, capsys, "evla", "segmentor=sclip")
    assert (status, errors.count("\n")) == (2, 1)
    assert "unknown command 'evla'. Did you mean eval" in errors


@pytest.mark.parametrize("name", ["eval", "report"])
def test_debug_adds_the_traceback_of_a_mistake_in_the_options(name, monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    for debug in ("false", "true"):
        status, _, errors = printed(monkeypatch, capsys, name, "segmentr=sclip", f"debug={debug}")
        assert status == 2
        assert errors.splitlines()[-1].startswith("error: unknown option 'segmentr'. Did you mean segmentor")
        assert ("Traceback" in errors) == (debug == "true")


def test_an_evaluation_by_the_module_names_the_command_that_repeats_it(tmp_path):
    words = ["eval", "segmentor=clip", "limit=1", "recipe.resize=none", "recipe.window=48", "runtime.threads=1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "ovss_bench", *words]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (again,) = re.findall(r"Again: python\S* (.*)", done.stdout)
    expected = ["-m", "ovss_bench", "eval", *(re.sub("^recipe", "++recipe", word) for word in words[1:])]
    assert shlex.split(again) == expected
    (result,) = results(tmp_path).values()
    assert result["provenance"]["command"].split()[1:] == expected


def test_hydra_has_its_own_flags(tmp_path):
    assert "segmentor: naclip" in run("eval.py", "segmentor=naclip", "--cfg", "job", cwd=tmp_path).stdout
    assert "Hydra" in run("eval.py", "--hydra-help", cwd=tmp_path).stdout


def test_flags_are_options_in_another_style():
    options = command_of("segment").options()
    words = ["photo.jpg", "--classes", "a=b; c", "--background", "--out=x", "clip=demo", "--"]
    assert with_flags(words, options) == ["photo.jpg", "classes=a=b; c", "background=true", "out=x", "clip=demo", "--"]
    with pytest.raises(OvssError, match=r"unknown option 'clases'.*classes"):
        with_flags(["--clases", "a"], options)
    with pytest.raises(OvssError, match=r"--out: expected out=VALUE"):
        with_flags(["--out"], options)


COMPLETED = [
    ("ovss ", [*COMMANDS]),
    ("ovss ne", ["new-method "]),
    ("ovss eval tru", []),
    ("ovss eval runtime.thr", ["runtime.threads="]),
    ("ovss eval segmentor=sc", ["scclip", "sclip"]),
    ("ovss eval segmentor=[clip,nac", ["\\[clip,naclip "]),
    ("ovss eval segmentor=sclip clip=", config_names("clip")),
    ("ovss eval dataset=suite/scl", ["suite/sclip8 "]),
    ("ovss report format=", ["csv", "latex", "markdown"]),
    ("ovss report html=", ["false", "true"]),
    ("ovss datasets pre", ["prepare "]),
    ("ovss datasets prepare voc", ["voc20", "voc21"]),
    ("ovss regions index maps regions=sam2_8", ["sam2_8 "]),
    ("ovss nothing ", []),
]
COMPLETE = """
source <(register-python-argcomplete ovss)
while read -r line; do
    COMP_LINE=${line%|} COMP_POINT=$((${#line} - 1)) COMP_TYPE=9 COMPREPLY=()
    _python_argcomplete ovss
    IFS='|'; echo "${COMPREPLY[*]}"; IFS=' '
done
"""


def test_bash_completes_commands_options_and_names(tmp_path):
    (tmp_path / "ovss").write_text(f'#!/bin/sh\nexec {sys.executable} -m ovss_bench "$@"\n')
    (tmp_path / "ovss").chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.path.dirname(sys.executable), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", COMPLETE], env=environment, cwd=tmp_path, text=True, check=False, capture_output=True,
        input="".join(f"{line}|\n" for line, _ in COMPLETED),
    )  # fmt: skip
    assert done.stderr == ""
    found = [sorted(filter(None, line.split("|"))) for line in done.stdout.splitlines()]
    assert found == [sorted(expected) for _, expected in COMPLETED]


def test_names_are_completed_wherever_a_folder_of_configurations_has_them():
    assert all(config_names(folder) for folder in completion.FOLDERS.values())
    assert completion.FOLDERS.keys() >= {"segmentor", "clip", "dataset", "table", "protocol", "regions", "sam", "concepts"}
    assert all(name in command_of("eval").options() or name == "suite" for name in completion.FOLDERS)


def test_a_closed_pipe_is_not_an_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "ovss_bench", "--help"], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (2, b"")
