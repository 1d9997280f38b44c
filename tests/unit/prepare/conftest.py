"""A toy data set, its archive, and a small disk."""

import subprocess

import numpy as np
import pytest

from miniatures.drawing import encoded, scene, write_zip
from ovss_bench.datasets.prepare.conversion import CONVERTERS, Task, files
from ovss_bench.datasets.prepare.run import prepare

from . import common
from .common import IMAGES, described, tree


@pytest.fixture(autouse=True, scope="module")
def converter():
    @CONVERTERS.register_module(name="toy")
    def toy(folder):
        for path in files(folder / "raw", "*.png"):
            target = folder / "labels" / path.name
            yield Task(common.lower, (path, target), (target,))

    yield
    CONVERTERS.module_dict.pop("toy")


@pytest.fixture(scope="module")
def content():
    members = {"toy/readme.txt": b"not wanted"}
    for number in range(IMAGES):
        image, label = scene(number, [0, 1, 2], (64, 80))
        members[f"toy/images/{number:02d}.png"] = encoded(image, "PNG")
        members[f"toy/masks/{number:02d}.png"] = encoded((100 * label).astype(np.uint8), "PNG")
    return members


@pytest.fixture(scope="module")
def packed(tmp_path_factory, content):
    """The archive."""
    path = tmp_path_factory.mktemp("packed") / "toy.zip"
    write_zip(path, content)
    return path


@pytest.fixture
def toy(tmp_path, packed):
    """The YAML file of a data set of one's own, with its archive beside it."""
    return described(tmp_path / "toy", packed)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, packed):
    """What is there after a preparation that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    prepare(described(folder / "toy", packed), quiet=True)
    return tree(folder / "toy")


@pytest.fixture
def disk(tmp_path):
    """`disk(options)`: a small file system, mounted (again) with these options; only root may do that."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a small disk needs root")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], check=False, capture_output=True)
