"""Evaluates segmentors on data sets: `python tools/eval.py segmentor=sclip clip=vit_b16 dataset=voc21 data_root=/data`.

Everything that can be set is in configs/tools/eval.yaml; `recipe.NAME=VALUE` overrides a value of the recipes, `-m` runs a
grid, `torchrun --nproc-per-node N tools/eval.py ...` one run in N processes.
"""

import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ovss_bench.cli.startup  # noqa: F401

# isort: split

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ovss_bench.cli.options import print_anything
from ovss_bench.cli.overrides import literal
from ovss_bench.errors import KEPT, OvssError, print_error, unknown
from ovss_bench.files import CONFIGS, PACKAGE
from ovss_bench.process import Ended, terminate_cleanly
from ovss_bench.runs.world import join, leaving

GRID = "OVSS_GRID"  # environment variable: a folder of the runs of one grid
LAUNCHERS = {"submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}


@hydra.main(config_path=str(CONFIGS / "tools"), config_name="eval", version_base="1.3")
def evaluate(config: DictConfig) -> None:
    from ovss_bench.cli.evaluation import (  # after all that can be wrong with options, since torch takes seconds to import
        Grid,
        main,
    )
    from ovss_bench.config.plugin_errors import blamed

    world, wrong, composed = join(), None, HydraConfig.get()
    in_grid = composed.mode == RunMode.MULTIRUN
    grid = Grid(Path(os.environ[GRID]), composed.job.num) if in_grid and GRID in os.environ else None
    if in_grid and Path(sys.argv[0]).name != Path(__file__).name:  # a launcher's process: the command for the provenance
        sys.argv = [__file__, *composed.overrides.task]
    try:
        with terminate_cleanly():
            status = main(config, world, grid)
        if in_grid and status:
            wrong = OvssError(f"{' '.join(composed.overrides.task)} has ended with status {status}, see above.")
            wrong.status = status
    except KeyboardInterrupt:
        status, wrong = 2, f"interrupted; {KEPT}"
    except Ended as end:
        others = ", as when another process of the run has died" if world.size > 1 else ""
        status, wrong = end.code, f"ended by {end.name}{others}; {KEPT}"
    except (Exception, SystemExit) as error:
        status, wrong = 2, error if isinstance(error, OvssError) else blamed(error)
        if wrong is None:
            raise
        if config.debug:
            traceback.print_exc()
    if isinstance(wrong, OvssError) and in_grid:
        raise wrong  # to be told when the other runs of the grid have ended, wherever they run
    if wrong and world.speaks():
        print_error(wrong)
    if status:
        sys.exit(status)


def fail(message: object) -> None:
    if os.environ.get("RANK", "0") == "0":  # the other processes of torchrun have the same arguments
        print_error(message)
    sys.exit(getattr(message, "status", 2))


def is_grid(arguments: list[str]) -> bool:
    return not {"-m", "--multirun"}.isdisjoint(arguments)


@contextmanager
def grid_folder(arguments: list[str]) -> Iterator[None]:
    """For a grid a folder in which its runs find each other, here as everything that Hydra writes."""
    if not is_grid(arguments):
        yield
        return
    try:
        folder = tempfile.TemporaryDirectory(prefix=".grid-", dir=".")
    except OSError as error:
        raise OvssError(f"cannot write {Path.cwd()}: {error.strerror}. Start the grid in another folder.") from error
    with folder as name:
        os.environ[GRID] = str(Path(name).resolve())
        yield


def checked(arguments: list[str]) -> list[str]:
    """The command line with recipe overrides as Hydra wants new keys (`++`), after a check of all other keys."""
    known = OmegaConf.load(CONFIGS / "tools" / "eval.yaml")
    keys = [key for key in known if key not in ("defaults", "hydra", "runtime")] + [f"runtime.{key}" for key in known.runtime]
    result = []
    grid = is_grid(arguments) and not any(word.startswith("hydra/launcher=") for word in arguments)
    for argument in arguments:
        key, _, value = argument.partition("=")
        if not argument.startswith("-") and not re.fullmatch(r"hydra/\w+|(\+\+?|~)?[A-Za-z_][\w.]*", key):
            raise OvssError(f"'{argument}': expected NAME=VALUE.")
        if key == "hydra/launcher" and value in LAUNCHERS:
            check_launcher(value)
        if (
            "=" in argument
            and not argument.startswith(("-", "+", "~", "hydra"))
            and not key.startswith("recipe.")
            and key not in keys
        ):
            raise unknown("option", key, keys)
        argument = literal(argument, is_grid(arguments))
        result.append(f"++{in_one_run(argument, grid)}" if argument.startswith("recipe.") else argument)
    return sorted(result, key=lambda argument: not argument.startswith("-"))  # argparse wants its flags together


def in_one_run(argument: str, grid: bool) -> str:
    """Recipe values of a grid that runs in this process become a list, so that they share what does not depend on them."""
    override = OverridesParser.create().parse_override(f"++{argument}") if grid else None
    if not override or not override.is_choice_sweep():
        return argument
    return f"{override.key_or_group}=[{','.join(override.sweep_string_iterator())}]"


def check_launcher(name: str) -> None:
    try:
        distribution(f"hydra-{LAUNCHERS[name]}-launcher")
    except PackageNotFoundError:
        raise OvssError(
            f"hydra/launcher={name} needs hydra-{LAUNCHERS[name]}-launcher, which is not installed: pip install "
            f"'ovss-bench[{'ray' if name == 'ray' else 'launchers'}]', or pip install hydra-{LAUNCHERS[name]}-launcher"
        ) from None
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # of the jobs
    # The presets have the names that everybody knows, which are those of the packages' own.
    warnings.filterwarnings("ignore", message=r"(?s).*validated against ConfigStore schema")


def run() -> None:
    given = sys.argv[1:]
    print_anything()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra would print its errors itself, and end with status 1
    try:
        sys.argv[1:] = checked(given)
        with grid_folder(given):
            evaluate()
    except (OvssError, HydraException, OmegaConfBaseException) as error:
        fail(error)
    except Exception as error:
        if "submitit" not in sys.modules and "ray" not in sys.modules:
            raise
        fail(f"a run of the grid has ended without a result, {KEPT}: {error}")


if __name__ == "__main__":
    with leaving():
        run()
