"""Makes the region maps of a data set once, for `regions=DIR` in tools/eval.py:
`python tools/regions.py dataset=voc21 regions=sam2_8 out=DIR data_root=/data` (settings.NAME=VALUE overrides a setting); or
makes the index of region files that came from elsewhere: `python tools/regions.py index DIR dataset=voc21 data_root=/data
regions=entityseg`, where regions= is the generator that they are the maps of, or is left out if it is none of ours.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ovss_bench.cli.startup

# isort: split

import ovss_bench as ob
from ovss_bench.cli.options import is_place, parse_options, run_tool
from ovss_bench.errors import OvssError
from ovss_bench.files import user_path
from ovss_bench.runs.world import World

COMMON = {"dataset": "demo", "data_root": None, "limit": None, "workers": os.cpu_count() or 1, "plugins": []}
INDEXING = COMMON | {"regions": None}
MAKING = COMMON | {"regions": "demo", "settings": {}, "out": None, "device": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="*", help=f"[index DIR] {' '.join(f'{key}=' for key in MAKING)}")
    options = parser.parse_args().options
    run_tool(lambda: index(options[1:]) if options[:1] == ["index"] else make(options))


def make(words: list[str]) -> None:
    options = parse_options(words, MAKING)
    if options["out"] is None:
        raise OvssError("name the folder that the regions are written to: out=DIR.")
    from ovss_bench.runs.precompute import precompute_regions

    device = World().device(options["device"])
    precompute_regions(
        ob.load_dataset(options["dataset"], options["data_root"]),
        str(options["regions"]),
        str(options["out"]),
        settings=options["settings"],
        limit=options["limit"],
        workers=options["workers"],
        device=device,
    )
    print(f"regions: {options['out']}")


def index(words: list[str]) -> None:
    if not words or not is_place(words[0]):
        raise OvssError("name the folder with the region files: index DIR dataset=NAME.")
    options = parse_options(words[1:], INDEXING)
    from ovss_bench.runs.precompute import index_regions

    dataset = ob.load_dataset(options["dataset"], options["data_root"])
    folder, own = user_path(words[0]), {"generator": options["regions"]}
    index_regions(dataset, folder, **own, limit=options["limit"], workers=options["workers"])
    print(f"regions: {words[0]}")


if __name__ == "__main__":
    main()
