"""`ovss datasets` in a checkout: see ovss_bench/cli/datasets.py, or `python tools/datasets.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ovss_bench.cli.main import main

if __name__ == "__main__":
    main("datasets")
