"""Writes the file, recipe and test of a new method, ready to run."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import sys
from pathlib import Path
from string import capwords

from ..config.recipe import segmentor_names
from ..errors import OvssError
from ..files import PACKAGE, user_path, write_text
from .options import Command, Option, Text

TEMPLATES = PACKAGE / "cli" / "templates"
FILES = {  # template -> target, target in a package for pip
    "new_method.py": ("{name}.py", "{name}/__init__.py"),
    "new_method.yaml": ("configs/segmentor/{name}.yaml", "{name}/configs/segmentor/{name}.yaml"),
    "test_new_method.py": ("test_{name}.py", "test_{name}.py"),
    "package.toml": ("", "pyproject.toml"),
}


def run(words: list[str]) -> None:
    positional, options = COMMAND.parse(words)
    if len(positional) != 1:
        raise OvssError(f"expected the name of the method, such as my_method; got {' '.join(positional) or 'none'}.")
    method, _, test, *_ = paths = write_method(positional[0], **options)
    print("\n".join(f"wrote {path}" for path in paths))
    script = Path(sys.argv[0]).with_name("eval.py")  # of a checkout
    evaluate = f"python {os.path.relpath(script)}" if script.is_file() else "ovss eval"
    print(f"\nTry:   {evaluate} 'plugins=[{method}]' segmentor={positional[0]} limit=10\nTest:  python -m pytest {test}")
    if options["package"]:
        print(f"Then:  python -m pip install -e {method.parent.parent}; from then on: {evaluate} segmentor={positional[0]}")


def write_method(name: str, folder: str | Path = ".", package: bool = False) -> list[Path]:
    """Writes the files of a method, with `package` as a package for pip, and returns their paths: the method, its recipe, its
    test. Raises OvssError for a name that is invalid or taken, and if a file exists."""
    _check(name)
    folder = user_path(folder)
    files = {template: folder / targets[package].format(name=name) for template, targets in FILES.items() if targets[package]}
    for path in files.values():
        if path.exists():
            raise OvssError(f"{path} already exists. Choose another name, or another folder: folder=DIR.")
    for template, path in files.items():
        content = (TEMPLATES / template).read_text("utf-8")
        if package:
            content = content.replace('.with_name("new_method.py")', '.parent / "new_method" / "__init__.py"')
        names = {"new_method": name, "new-method": name.replace("_", "-"), "NewMethod": capwords(name, "_").replace("_", "")}
        for old, new in names.items():
            content = content.replace(old, new)
        write_text(path, content)
    return list(files.values())


def _check(name: str) -> None:
    if not re.fullmatch(r"[a-z](_?[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise OvssError(f"'{name}' is not a valid name: expected lower-case letters, digits and _, such as my_method.")
    if name in segmentor_names():
        raise OvssError(f"the segmentor '{name}' already exists. Choose another name.")
    if importlib.util.find_spec(name):  # the new file would shadow it in its tests
        raise OvssError(f"'{name}' is the name of an installed Python module. Choose another name.")


COMMAND = Command(
    __doc__,
    ("METHOD [NAME=VALUE ...]",),
    {
        "Options": (
            Option("folder", Text, ".", "folder to write to"),
            Option("package", bool, False, "write a package for pip; once installed, the method needs no plugins="),
        )
    },
    ("my_method", "my_method folder=methods", "my_method package=true folder=repository"),
    run,
)
