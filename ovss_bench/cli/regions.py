"""Computes the region maps of a data set once, for eval with regions=DIR, or indexes existing region files."""

from __future__ import annotations

import os
from typing import Annotated

from ..config.validation import Count, Expected, Images
from ..errors import OvssError
from ..files import user_path
from .eval_options import EVAL
from .options import Command, Option, Text, is_positional, parse_options

Settings = Annotated[dict, Expected("settings.NAME=VALUE")]
COMMON = (
    Option("dataset", Text, "demo", "an entry of configs/dataset, or a YAML file of your own data"),
    EVAL["data_root"],
    Option("limit", Images | None, None, "number of evenly spaced images"),
    Option("workers", Count, os.cpu_count() or 1, "processes"),
    EVAL["plugins"],
)
MAKING = (
    Option("regions", Text, "demo", "generator: an entry of configs/regions"),
    Option("settings", Settings, {}, "overrides of the generator's settings: settings.NAME=VALUE"),
    Option("out", Text | None, None, "folder to write to"),
    Option("device", Text | None, None, "cpu or cuda; default: cuda if available"),
)
INDEXING = (Option("regions", Text | None, None, "the entry of configs/regions that the files were made with, if any"),)


def run(words: list[str]) -> None:
    index = words[:1] == ["index"]
    if index and (len(words) < 2 or not is_positional(words[1])):
        raise OvssError("name the folder with the region files: index DIR dataset=NAME.")
    options = parse_options(words[2:] if index else words, COMMON + (INDEXING if index else MAKING))
    folder = words[1] if index else options["out"]
    if folder is None:
        raise OvssError("name the folder to write the regions to: out=DIR.")
    import ovss_bench as ob

    from ..runs.precompute import index_regions, precompute_regions
    from ..runs.world import World

    dataset = ob.load_dataset(options["dataset"], options["data_root"])
    given = {name: options[name] for name in ("limit", "workers", "settings") if name in options}
    if index:
        index_regions(dataset, user_path(folder), generator=options["regions"], **given)
    else:
        precompute_regions(dataset, options["regions"], folder, device=World().device(options["device"]), **given)
    print(f"regions: {folder}")


COMMAND = Command(
    __doc__,
    ("out=DIR [NAME=VALUE ...]", "index DIR [NAME=VALUE ...]"),
    {"All": COMMON, "Making maps": MAKING, "index": INDEXING},
    ("out=maps dataset=voc21 regions=sam2_8", "out=maps regions=slic settings.n_segments=90", "index maps regions=entityseg"),
    run,
)
