"""What to do if the Python that runs has no libraries of ovss-bench. Older Pythons read this file, too: no new syntax."""

import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def missing_libraries(error):
    """One line: which Python runs, which module it lacks, and the command to use instead."""
    version = ".".join(map(str, sys.version_info[:3]))
    what = f"{sys.executable} (Python {version}) lacks libraries of ovss-bench: there is no module '{error.name}'"
    python = ROOT / ".venv" / "bin" / "python"
    if python.parent.parent == Path(sys.prefix):
        return f"{what}: its installation was not finished. Repeat it: cd {shlex.quote(str(ROOT))} && rm -r .venv && make demo"
    if python.is_file():
        inside = Path.cwd() == ROOT
        words = [os.path.relpath(str(python)) if inside else str(python), *sys.argv]
        return f"{what}. Use the environment of this checkout: {shlex.join(words)}"
    install = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ."
    return f"{what}. Install them with Python 3.11 or later: cd {shlex.quote(str(ROOT))} && {install}"


def explained(error):
    """The error with that line; without a traceback in programs that do not catch it."""
    found = ImportError(missing_libraries(error), name=error.name)
    usual = sys.excepthook

    def hook(kind, raised, trace):
        if raised is found:
            print("error: " + str(found), file=sys.stderr)
        else:
            usual(kind, raised, trace)

    sys.excepthook = hook
    return found
