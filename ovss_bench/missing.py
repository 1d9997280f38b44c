"""Explains that the running Python lacks the libraries of ovss-bench. Old Pythons run this file, too: no new syntax."""

import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def missing_libraries(error):
    """One line: which Python is running, which module it lacks, and which command to use instead."""
    version = ".".join(map(str, sys.version_info[:3]))
    what = f"{sys.executable} (Python {version}) lacks libraries of ovss-bench: there is no module '{error.name}'"
    python = ROOT / ".venv" / "bin" / "python"
    if python.parent.parent == Path(sys.prefix):
        return f"{what}: its installation was not finished. Repeat it: cd {shlex.quote(str(ROOT))} && rm -r .venv && make demo"
    if python.is_file():
        inside = Path.cwd() == ROOT
        words = [os.path.relpath(str(python)) if inside else str(python), *sys.argv]
        command = " ".join(map(shlex.quote, words))  # shlex.join needs Python 3.8
        return f"{what}. Use the environment of this checkout: {command}"
    install = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ."
    return f"{what}. Install them with Python 3.11 or later: cd {shlex.quote(str(ROOT))} && {install}"


def explained(error):
    """An ImportError with that line, which is printed without a traceback if nothing catches it."""
    explanation = ImportError(missing_libraries(error), name=error.name)
    default_hook = sys.excepthook

    def hook(kind, raised, trace):
        if raised is explanation:
            print("error: " + str(explanation), file=sys.stderr)
        else:
            default_hook(kind, raised, trace)

    sys.excepthook = hook
    return explanation
