"""The commands of `ovss` by name; COMMAND of the file of that name says the rest."""

from __future__ import annotations

from importlib import import_module

from ..errors import unknown
from .options import Command

COMMANDS = {
    "eval": "evaluate methods on data sets",
    "segment": "segment a photo",
    "report": "tables and an HTML page of results",
    "compare": "compare results with each other, or with published figures",
    "datasets": "list, prepare and check data sets",
    "regions": "make the region maps of a data set once",
    "merge": "merge the results of shard=I/N",
    "bench": "measure speed and memory",
    "new-method": "write the files of a new method",
}


def command_of(name: str) -> Command:
    """Raises OvssError for an unknown name."""
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    return import_module(f".{name.replace('-', '_')}", __package__).COMMAND
