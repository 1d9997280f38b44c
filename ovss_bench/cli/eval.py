"""Evaluates methods on data sets, prints a table, and keeps a result file per row. Finished runs are not repeated; rerun the
same command to resume."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import KEPT, OvssError, print_error
from ..files import CONFIGS
from ..process import Ended, terminate_cleanly
from .eval_options import GROUPS
from .options import Command
from .run import print_anything

if TYPE_CHECKING:
    from omegaconf import DictConfig

GRID = "OVSS_GRID"  # environment variable: a folder in which the runs of one grid find each other


def run(words: list[str]) -> None:
    """Runs the command and ends the process."""
    from ..runs.world import leaving

    print_anything()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # otherwise Hydra prints its errors itself, and exits with status 1
    with leaving():
        import hydra
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from .overrides import checked, is_grid

        program = sys.argv[: len(sys.argv) - len(words)]  # with the name of the command

        def task(config: DictConfig) -> None:
            """A run, in this process or, of a grid with a launcher, in another: both record the command of this one."""
            from hydra.core.hydra_config import HydraConfig

            arguments = given if sys.argv[0] == program[0] else HydraConfig.get().overrides.task
            sys.argv = [*program, *arguments]
            evaluate(config)

        try:
            given = checked(words)
            sys.argv = [program[0], *given]
            with _grid_folder(is_grid(words)):
                hydra.main(config_path=str(CONFIGS / "tools"), config_name="eval", version_base="1.3")(task)()
        except (OvssError, HydraException, OmegaConfBaseException) as error:
            _fail(error)
        except Exception as error:
            if "submitit" not in sys.modules and "ray" not in sys.modules:
                raise
            _fail(f"a run of the grid has ended without a result, {KEPT}: {error}")


def evaluate(config: DictConfig) -> None:
    """A run; exits with its status unless that is 0. The error of a run of a grid is raised, to be printed after the other
    runs, in whichever process they are."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from ..config.plugin_errors import blamed
    from ..runs.world import join
    from .evaluation import Grid, main  # imports torch, which takes seconds; mistakes in the options were reported before

    world, wrong, composed = join(), None, HydraConfig.get()
    in_grid = composed.mode == RunMode.MULTIRUN
    grid = Grid(Path(os.environ[GRID]), composed.job.num) if in_grid and GRID in os.environ else None
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
        raise wrong
    if wrong and world.speaks():
        print_error(wrong)
    if status:
        sys.exit(status)


def _fail(message: object) -> None:
    if os.environ.get("RANK", "0") == "0":  # the other processes of torchrun have the same arguments
        print_error(message)
    sys.exit(getattr(message, "status", 2))


@contextmanager
def _grid_folder(is_grid: bool) -> Iterator[None]:
    """Makes a folder for the runs of a grid in the working directory, where Hydra writes, too."""
    if not is_grid:
        yield
        return
    try:
        folder = tempfile.TemporaryDirectory(prefix=".grid-", dir=".")
    except OSError as error:
        raise OvssError(f"cannot write {Path.cwd()}: {error.strerror}. Start the grid in another folder.") from error
    with folder as name:
        os.environ[GRID] = str(Path(name).resolve())
        yield


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
        "Lists are written [a,b]; put words with spaces or brackets in quotes. -m runs a grid of values separated by commas, "
        "with hydra/launcher=submitit_slurm, submitit_local or ray as jobs; torchrun runs one evaluation in several processes.",
        "Hydra's own flags work, too: --cfg job prints the composed options, --info and --hydra-help describe Hydra.",
    ),
)
