"""Makes the region maps of a data set once, for `regions=DIR` in tools/eval.py:
`python tools/regions.py dataset=voc21 regions=sam2_8 out=DIR data_root=/data` (settings.NAME=VALUE overrides a setting); or
makes the index of region files that came from elsewhere: `python tools/regions.py index DIR dataset=voc21 data_root=/data`.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ovss_bench as ob
from ovss_bench.errors import OvssError, unknown
from ovss_bench.results.precompute import index_regions, precompute_regions

COMMON = {"dataset": "demo", "data_root": None, "limit": None, "workers": os.cpu_count() or 1, "plugins": []}
MAKING = COMMON | {"regions": "demo", "settings": {}, "out": None, "device": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="*", help=f"[index DIR] {' '.join(f'{key}=' for key in MAKING)}")
    options = parser.parse_args().options
    try:
        if options[:1] == ["index"]:
            index(options[1:])
        else:
            make(options)
    except (OvssError, OmegaConfBaseException) as error:
        fail(error)
    except KeyboardInterrupt:
        fail("interrupted; what was finished is kept, the same command goes on")


def make(words: list[str]) -> None:
    options = parsed(words, MAKING)
    if options["out"] is None:
        raise OvssError("name the folder that the regions are written to: out=DIR.")
    device = options["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
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
    if not words or "=" in words[0]:
        raise OvssError("name the folder with the region files: index DIR dataset=NAME.")
    options = parsed(words[1:], COMMON)
    dataset = ob.load_dataset(options["dataset"], options["data_root"])
    index_regions(dataset, words[0], limit=options["limit"], workers=options["workers"])
    print(f"regions: {words[0]}")


def parsed(words: list[str], defaults: dict[str, Any]) -> dict[str, Any]:
    """The options, each of the type of its default."""
    for word in words:
        if "=" not in word:
            raise OvssError(f"'{word}': expected NAME=VALUE, or index DIR in front of the options.")
    given = OmegaConf.to_container(OmegaConf.from_dotlist(words))
    for key, value in given.items():
        if key not in defaults:
            raise unknown("option", key, defaults)
        if key in ("limit", "workers") and value != defaults[key] and (type(value) is not int or value < 1):
            raise OvssError(f"{key}={value}: expected a whole number of at least 1.")
        if key == "settings" and not isinstance(value, dict):
            raise OvssError(f"settings={value}: expected settings.NAME=VALUE.")
    options = defaults | given
    for plugin in options["plugins"]:
        ob.load_plugin(plugin)
    return options


def fail(message: object) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
