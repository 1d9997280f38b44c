"""Evaluates segmentors on data sets: `python tools/eval.py segmentor=sclip clip=vit_b16 dataset=voc21 data_root=/data`.

Everything that can be set is in configs/tools/eval.yaml; `recipe.NAME=VALUE` overrides a value of the recipes, `-m` runs a
grid.
"""

import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ovss_bench.errors import OvssError, unknown
from ovss_bench.files import CONFIGS


@hydra.main(config_path=str(CONFIGS / "tools"), config_name="eval", version_base="1.3")
def evaluate(config: DictConfig) -> None:
    from ovss_bench.main import main

    try:
        status = main(config)
    except OvssError as error:
        if config.debug:
            traceback.print_exc()
        fail(error)
    except KeyboardInterrupt:
        fail("interrupted; what was finished is kept, the same command goes on")
    if status:
        sys.exit(status)


def fail(message: object) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def checked(arguments: list[str]) -> list[str]:
    """The command line with recipe overrides as Hydra wants new keys (`++`), after a check of all other keys."""
    known = OmegaConf.load(CONFIGS / "tools" / "eval.yaml")
    keys = [key for key in known if key not in ("defaults", "hydra", "runtime")] + [f"runtime.{key}" for key in known.runtime]
    result = []
    for argument in arguments:
        key = argument.partition("=")[0]
        if (
            "=" in argument
            and not argument.startswith(("-", "+", "~", "hydra"))
            and not key.startswith("recipe.")
            and key not in keys
        ):
            raise unknown("option", key, keys)
        result.append(f"++{argument}" if argument.startswith("recipe.") else argument)
    return sorted(result, key=lambda argument: not argument.startswith("-"))  # argparse wants its flags together


if __name__ == "__main__":
    given = sys.argv[1:]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra would print its errors itself, and end with status 1
    try:
        sys.argv[1:] = checked(given)
        evaluate()
    except (OvssError, HydraException, OmegaConfBaseException) as error:
        fail(error)
