"""Writes a new method's file, recipe and test, which run at once.

python tools/new_method.py NAME [folder=.]        a file for plugins=[...]
python tools/new_method.py NAME package=true      a package that pip installs; its method is then known by name
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ovss_bench.cli.startup  # noqa: F401

# isort: split

from ovss_bench.cli.new_method import write_method
from ovss_bench.cli.options import parse_options, run_tool

OPTIONS = {"folder": ".", "package": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="small letters, digits and _")
    parser.add_argument("words", nargs="*", help="options NAME=VALUE")
    arguments = parser.parse_args()
    options = parse_options(arguments.words, OPTIONS)
    method, *others = write_method(arguments.name, **options)
    test = next(path for path in others if path.name.startswith("test_"))
    print("\n".join(f"wrote {path}" for path in (method, *others)))
    tool = os.path.relpath(Path(__file__).with_name("eval.py"))
    print(f"\nTry:   python {tool} 'plugins=[{method}]' segmentor={arguments.name} limit=10\nTest:  python -m pytest {test}")
    if options["package"]:
        known = f"python {tool} segmentor={arguments.name}"
        print(f"Then:  python -m pip install -e {method.parent.parent}, after which it is known everywhere: {known}")


if __name__ == "__main__":
    run_tool(main)
