"""Trains a network of the demo from scratch: `python tools/train_demo.py clip|vision|foreground|pacl|dinoiser [--out DIR]`.

Deterministic for a seed and a number of threads; all but foreground resume from their last checkpoint.
`python tools/train_demo.py MODEL --help` lists the options.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ovss_bench.cli.startup  # noqa: F401

# isort: split

from tools.training import clip, dinoiser, foreground, pacl, vision

MODELS = {"clip": clip, "vision": vision, "foreground": foreground, "pacl": pacl, "dinoiser": dinoiser}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = parser.add_subparsers(dest="model", required=True)
    for name, module in MODELS.items():
        command = models.add_parser(name, help=module.__doc__.splitlines()[0])
        module.options(command)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    MODELS[arguments.model].train(arguments)


if __name__ == "__main__":
    main()
