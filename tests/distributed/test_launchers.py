"""Hydra's launchers for grids of runs: the presets, and the local ones for real where their packages are installed."""

import tomllib
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from omegaconf import OmegaConf

import ovss_bench as ob
from distributed.started import counted, run
from end_to_end.tools import ROOT, evaluate_here
from ovss_bench.files import CONFIGS
from ovss_bench.runs.load import result_paths
from ovss_bench.runs.store import read_result

PRESETS = {"submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}
GRID = ["-m", "segmentor=sclip,clip", "limit=1", "output=runs", "recipe.resize=none", "recipe.pamr_steps=0"]


def installed(name):
    try:
        return distribution(f"hydra-{name}-launcher")
    except PackageNotFoundError:
        return None


def extras():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_launcher_has_a_preset(name):
    preset = OmegaConf.load(CONFIGS / "tools" / "hydra" / "launcher" / f"{name}.yaml")
    assert preset["_target_"].startswith(f"hydra_plugins.hydra_{PRESETS[name]}_launcher.")


@pytest.mark.parametrize("name", PRESETS)
def test_a_launcher_that_is_not_installed_says_what_installs_it(name, tmp_path, monkeypatch):
    if installed(PRESETS[name]):
        pytest.skip(f"hydra-{PRESETS[name]}-launcher is installed")
    extra = next(key for key, needs in extras().items() if any(f"hydra-{PRESETS[name]}-launcher" in each for each in needs))
    with pytest.raises(ob.OvssError, match=rf"hydra/launcher={name} needs .* pip install 'ovss-bench\[{extra}\]'"):
        evaluate_here(f"hydra/launcher={name}")


@pytest.mark.parametrize("name", ["submitit_local", "ray"])
def test_a_grid_runs_in_processes_of_its_own(name, tmp_path):
    if not installed(PRESETS[name]):
        pytest.skip(f"hydra-{PRESETS[name]}-launcher is not installed: pip install 'ovss-bench[launchers]'")
    _, err = run(*GRID, f"hydra/launcher={name}", cwd=tmp_path)
    assert "error" not in err
    assert sorted(counted(tmp_path / "runs")) == ["clip", "sclip"]
    table = (tmp_path / "runs" / "table.csv").read_text().splitlines()
    assert [line.split(" ")[0] for line in table[1:]] == ["sclip", "clip"]
    commands = [read_result(path)["provenance"]["command"] for path in result_paths(tmp_path / "runs")]
    assert all("tools/eval.py runtime.threads=1 segmentor=" in command for command in commands)


def test_a_slurm_grid_is_submitted_with_the_settings_of_the_preset(monkeypatch):
    """Without Slurm: only what would be submitted."""
    if not installed("submitit"):
        pytest.skip("hydra-submitit-launcher is not installed: pip install 'ovss-bench[launchers]'")
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

    preset = OmegaConf.load(CONFIGS / "tools" / "hydra" / "launcher" / "submitit_slurm.yaml")
    merged = OmegaConf.merge(OmegaConf.structured(SlurmQueueConf), preset)  # raises for keys and kinds that it does not have
    assert merged.max_num_timeout == 3


def test_a_mistake_in_a_grid_ends_one_run_and_is_reported(tmp_path):
    words = [word.replace("sclip,clip", "sclipp,clip") for word in GRID]
    _, err = run(*words, cwd=tmp_path, status=2)
    assert err.count("error: unknown segmentor 'sclipp'") == 1
    assert list(counted(tmp_path / "runs")) == ["clip"]
