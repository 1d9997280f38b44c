"""Prepared miniatures of the natural-image data sets."""

import shutil

import pytest

from .common import LABEL, RAW, make


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """`made(name)`: a prepared miniature that is not to be written to."""
    folders = {}

    def of(name):
        if name not in folders:
            folders[name] = make(name, tmp_path_factory.mktemp(name))
        return folders[name]

    return of


@pytest.fixture
def own(tmp_path, made):
    """`own(name)`: a copy of a prepared miniature, without one label; its root and folder, the raw file, and the label."""

    def of(name):
        folder = made(name)
        root = folder.parents[1] if name.startswith("context") else folder.parent
        shutil.copytree(root, tmp_path / "root")
        folder = tmp_path / "root" / folder.relative_to(root)
        (folder / LABEL[name]).unlink()
        return tmp_path / "root", folder, folder / RAW[name][0], folder / LABEL[name]

    return of
