"""Reading a folder of many results: `python tests/scale/many_results.py runs=2000`.

Prints CPU seconds and peak memory of `report`, `compare` and `ob.load_results`, each in a process of its own.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ovss_bench.cli.options import Option, parse_options
from ovss_bench.config.validation import Count

ROOT = Path(__file__).resolve().parents[2]
LOAD = "import ovss_bench as ob; print(len(ob.load_results('before', partial=True)))"


def copied(source: Path, folder: Path, runs: int) -> None:
    """Copies of a result, as if each had another logit scale."""
    result = json.loads(source.read_text())
    for number in range(1, runs + 1):
        result["overridden"] = {"logit_scale": number}
        target = folder / "demo/demo" / f"{result['segmentor']}-{number:012x}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result))
        shutil.copy(source.with_suffix(".npz"), target.with_suffix(".npz"))


def command(tool: str, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / tool), *words]


def cost(words: list[str], folder: Path) -> dict[str, float]:
    """CPU seconds and peak memory (MiB) of a command."""
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)})
    _, status, used = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, words
    return {"cpu_seconds": round(used.ru_utime + used.ru_stime, 2), "peak_mib": round(used.ru_maxrss / 1024)}


def measured(folder: Path, runs: int) -> dict[str, dict[str, float]]:
    words = ["segmentor=sclip", "limit=20", "output=source", "recipe.resize=none", "recipe.window=48", "recipe.stride=48"]
    cost(command("eval.py", *words), folder)
    (source,) = (folder / "source").rglob("*.json")
    copied(source, folder / "before", runs)
    shutil.copytree(folder / "before", folder / "after")
    return {
        "report": cost(command("report.py", "before", "partial=true", "out=page"), folder),
        "report html=true": cost(command("report.py", "before", "partial=true", "out=page", "html=true"), folder),
        "compare": cost(command("compare.py", "before", "after"), folder),
        "load_results": cost([sys.executable, "-c", LOAD], folder),
    }


def main() -> None:
    options = parse_options(sys.argv[1:], [Option("runs", Count, 2000)])
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(Path(folder), int(options["runs"])), indent=1))


if __name__ == "__main__":
    main()
