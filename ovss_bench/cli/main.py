"""`ovss COMMAND NAME=VALUE ...`, or `python tools/COMMAND.py NAME=VALUE ...` in a checkout."""

from . import startup  # noqa: F401

# isort: split

import os
import sys

from ..runs.world import leaving
from .commands import COMMANDS, columns, command_of, help_of
from .options import with_flags
from .run import run_tool

OVERVIEW = """usage: ovss COMMAND [NAME=VALUE ...]

Benchmark for open-vocabulary semantic segmentation.

Commands:
{}

ovss COMMAND --help shows the options of a command."""


def main(name: str | None = None) -> None:
    """Runs the command line; a script in tools/ passes the name of its command."""
    if "_ARGCOMPLETE" in os.environ:
        from .completion import complete

        complete()
    words = sys.argv[1:]
    program = f"python tools/{name.replace('-', '_')}.py" if name else "ovss"
    if name is None:
        if os.path.basename(sys.argv[0]) == "__main__.py":
            sys.argv[:1] = ["-m", "ovss_bench"]  # results record the command
        if not words or words[0] in ("-h", "--help"):
            run_tool(lambda: _overview(0 if words else 2))
        name, *words = words
        program = f"ovss {name}"
    with leaving():
        run_tool(lambda: _run(program, name, words))


def _overview(status: int) -> int:
    print(OVERVIEW.format(columns(COMMANDS.items())))
    return status


def _run(program: str, name: str, words: list[str]) -> int | None:
    command = command_of(name)
    if {"-h", "--help"} & {*words}:
        print(help_of(program, command))
        return 0
    return command.run(words if name == "eval" else with_flags(words, command.options()))  # Hydra parses the flags of eval
