"""Writes the file, recipe and test of a new method, made from cli/templates, which run at once."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import sys
from pathlib import Path

from ..config.recipe import segmentor_names
from ..errors import OvssError
from ..files import PACKAGE, user_path, write_text
from .options import Command, Option, Text

TEMPLATES = PACKAGE / "cli" / "templates"
FILES = {  # template -> target
    "new_method.py": "{name}.py",
    "new_method.yaml": "configs/segmentor/{name}.yaml",
    "test_new_method.py": "test_{name}.py",
}
PACKAGE_FILES = {  # the same in a package for pip
    "new_method.py": "{name}/__init__.py",
    "new_method.yaml": "{name}/configs/segmentor/{name}.yaml",
    "test_new_method.py": "test_{name}.py",
    "package.toml": "pyproject.toml",
}


def run(words: list[str]) -> None:
    places, options = COMMAND.parse(words)
    if len(places) != 1:
        raise OvssError(f"expected the name of the method, such as my_method; got {' '.join(places) or 'none'}.")
    method, *others = write_method(places[0], **options)
    test = next(path for path in others if path.name.startswith("test_"))
    print("\n".join(f"wrote {path}" for path in (method, *others)))
    script = Path(sys.argv[0]).with_name("eval.py")  # of a checkout
    evaluate = f"python {os.path.relpath(script)}" if script.is_file() else "ovss eval"
    print(f"\nTry:   {evaluate} 'plugins=[{method}]' segmentor={places[0]} limit=10\nTest:  python -m pytest {test}")
    if options["package"]:
        known = f"{evaluate} segmentor={places[0]}"
        print(f"Then:  python -m pip install -e {method.parent.parent}, after which it is known everywhere: {known}")


def write_method(name: str, folder: str | Path = ".", package: bool = False) -> list[Path]:
    """Writes the files of a method, on request as a `package`, and returns their paths, the method's first. Raises OvssError
    for a name that is invalid or taken, and for files that exist."""
    _check(name)
    folder = user_path(folder)
    files = {template: folder / target.format(name=name) for template, target in (PACKAGE_FILES if package else FILES).items()}
    for path in files.values():
        if path.exists():
            raise OvssError(f"{path} exists already. Choose another name, or another folder with folder=DIR.")
    for template, path in files.items():
        content = (TEMPLATES / template).read_text("utf-8")
        if package:
            content = content.replace('.with_name("new_method.py")', '.parent / "new_method" / "__init__.py"')
        content = content.replace("new_method", name).replace("NewMethod", _class_name(name))
        content = content.replace("new-method", name.replace("_", "-"))
        write_text(path, content)
    return list(files.values())


def _check(name: str) -> None:
    if not re.fullmatch(r"[a-z](_?[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise OvssError(
            f"'{name}' cannot be the name of a method: expected lower-case letters, digits and _, such as my_method."
        )
    if name in segmentor_names():
        raise OvssError(f"there is a segmentor '{name}' already. Choose another name.")
    if importlib.util.find_spec(name) is not None:  # which the new file would shadow for its tests
        raise OvssError(f"'{name}' is the name of an installed Python module. Choose another name.")


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


COMMAND = Command(
    __doc__,
    ("METHOD [NAME=VALUE ...]",),
    {
        "Options": (
            Option("folder", Text, ".", "folder to write to"),
            Option("package", bool, False, "a package for pip, whose method is known by name once it is installed"),
        )
    },
    ("my_method", "my_method folder=methods", "my_method package=true folder=repository"),
    run,
)
