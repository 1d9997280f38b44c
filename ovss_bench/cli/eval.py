"""Evaluates methods on data sets, prints a table, and writes a result file per row. Rerun to resume; finished runs are kept."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import KEPT, OvssError, print_error
from ..files import CONFIGS
from .eval_options import GROUPS
from .options import Command
from .run import outcome

if TYPE_CHECKING:
    from omegaconf import DictConfig

GRID = "OVSS_GRID"  # environment variable: the folder that the runs of a grid share


def run(words: list[str]) -> None:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from .overrides import checked, is_grid

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # otherwise Hydra prints its errors itself, and exits with status 1
    program = sys.argv[: len(sys.argv) - len(words)]  # including the name of the command

    def task(config: DictConfig) -> None:
        """One run. Jobs of a launcher are other processes, but record the command of this one."""
        from hydra.core.hydra_config import HydraConfig

        sys.argv = [*program, *(arguments if sys.argv[0] == program[0] else HydraConfig.get().overrides.task)]
        run_composed(config)

    try:
        arguments = checked(words)
        sys.argv = [program[0], *arguments]
        with _grid_folder() if is_grid(words) else nullcontext():
            hydra.main(config_path=str(CONFIGS / "tools"), config_name="eval", version_base="1.3")(task)()
    except (OvssError, OmegaConfBaseException):
        raise
    except HydraException as error:
        raise OvssError(str(error)) from error
    except Exception as error:
        if not {"submitit", "ray"} & sys.modules.keys():
            raise
        raise OvssError(f"a run of the grid has ended without a result, {KEPT}: {error}") from error


def run_composed(config: DictConfig) -> None:
    """One run; exits with its status unless that is 0. In a grid, errors are raised, and Hydra reports them after all runs."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from ..runs.world import join
    from .evaluation import main

    world, composed = join(), HydraConfig.get()
    in_grid = composed.mode == RunMode.MULTIRUN
    grid = None
    if in_grid and GRID in os.environ:
        from ..runs.grid import Grid

        grid = Grid(Path(os.environ[GRID]), composed.job.num)
    status, message = outcome(lambda: main(config, world, grid), config.debug)
    if status > 128 and world.size > 1:
        message = f"{message} (torchrun ends all processes when one has died)"
    if in_grid and status and message is None:
        message = OvssError(f"{' '.join(composed.overrides.task)} has ended with status {status}, see above.")
        message.status = status
    if in_grid and isinstance(message, Exception):
        raise message
    if message and world.speaks():
        print_error(message)
    if status:
        sys.exit(status)


def _grid_folder() -> tempfile.TemporaryDirectory:
    """A folder that the runs of a grid share, in the working directory, where Hydra also writes."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=".grid-", dir=".")
    except OSError as error:
        raise OvssError(f"cannot write {Path.cwd()}: {error.strerror}. Start the grid in another folder.") from error
    os.environ[GRID] = str(Path(folder.name).resolve())
    return folder


COMMAND = Command(
    __doc__,
    ("[NAME=VALUE ...]", "-m [NAME=VALUE,VALUE ...]"),
    GROUPS,
    (
        "segmentor=sclip clip=vit_b16 dataset=voc21 data_root=data",
        "segmentor=[sclip,naclip] limit=20 recipe.threshold=0.2",
        "-m segmentor=sclip recipe.window=112,224 limit=20",
    ),
    run,
    (
        "Lists are written [a,b]; quote words with spaces or brackets. -m runs a grid of comma-separated values; with "
        "hydra/launcher=submitit_slurm, submitit_local or ray, each run is a job. torchrun distributes one evaluation over "
        "several processes.",
        "Hydra's flags work, too: --cfg job prints the composed options, --info and --hydra-help describe Hydra.",
    ),
)
