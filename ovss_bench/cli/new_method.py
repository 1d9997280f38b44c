"""A method to begin with: its file, recipe and test, made from ovss_bench/templates, which run as they are."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path

from ..config.recipe import segmentor_names
from ..errors import OvssError
from ..files import PACKAGE, user_path, write_text

TEMPLATES = PACKAGE / "cli" / "templates"
FILES = {  # template -> where it goes
    "new_method.py": "{name}.py",
    "new_method.yaml": "configs/segmentor/{name}.yaml",
    "test_new_method.py": "test_{name}.py",
}
PACKAGE_FILES = {  # the same in a package that pip installs
    "new_method.py": "{name}/__init__.py",
    "new_method.yaml": "{name}/configs/segmentor/{name}.yaml",
    "test_new_method.py": "test_{name}.py",
    "package.toml": "pyproject.toml",
}


def write_method(name: str, folder: str | Path = ".", package: bool = False) -> list[Path]:
    """Writes the files of a method, as a `package` if that is wanted, and returns their paths, the method's first. Raises
    OvssError for a name that cannot be one or is taken, and for files that are there already."""
    _check(name)
    folder = user_path(folder)
    files = {template: folder / target.format(name=name) for template, target in (PACKAGE_FILES if package else FILES).items()}
    for path in files.values():
        if path.exists():
            raise OvssError(f"{path} is there already. Choose another name, or another folder with folder=DIR.")
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
        raise OvssError(f"'{name}' cannot be the name of a method: expected small letters, digits and _, such as my_method.")
    if name in segmentor_names():
        raise OvssError(f"there is a segmentor '{name}' already. Choose another name.")
    if importlib.util.find_spec(name) is not None:  # a file of this name would hide it from the tests beside it
        raise OvssError(f"'{name}' is the name of an installed Python module. Choose another name.")


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
