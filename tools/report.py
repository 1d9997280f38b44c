"""`ovss report` in a checkout: see ovss_bench/cli/report.py, or `python tools/report.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ovss_bench.cli.main import main

if __name__ == "__main__":
    main("report")
