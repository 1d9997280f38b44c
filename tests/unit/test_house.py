"""House rules for the whole package: one meaning per name, files of readable length, references only to files that exist."""

import ast
import re
from collections import defaultdict

from end_to_end.tools import ROOT

# Public names that several modules may define, and documents outside of the repository, each with a reason.
SHARED = {"main": "the entry point of a command", "run": "what a command does"}
ELSEWHERE = {
    "table.md": "written by the tools",
    "dataset_prepare.md": "of SegEarth-OV",
    "torch/csrc/jit/docs/serialization.md": "of PyTorch",
}
LONGEST = 400  # lines of a file


def texts(pattern):
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in sorted(ROOT.glob(pattern))}


PACKAGE = texts("ovss_bench/**/*.py")


def test_a_public_name_has_one_meaning():
    places = defaultdict(list)
    for file, text in PACKAGE.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(file)
    found = {name: files for name, files in places.items() if len(files) > 1}
    assert found.keys() <= SHARED.keys(), found


def test_documents_that_the_code_names_exist():
    """Docstrings and comments cite papers, code, and pages of this repository by their path."""
    named = {(file, name) for file, text in PACKAGE.items() for name in re.findall(r"[\w./-]*\w\.md\b|\.\./shared", text)}
    assert not {f"{file}: {name}" for file, name in named if not (ROOT / name).is_file() and name not in ELSEWHERE}


def test_files_are_short():
    lengths = {
        file: text.count("\n") for part in ("ovss_bench", "tests", "tools") for file, text in texts(f"{part}/**/*.py").items()
    }
    assert not {file for file, length in lengths.items() if length > LONGEST}
