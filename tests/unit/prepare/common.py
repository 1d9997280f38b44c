"""Helpers of the tests of `prepare`."""

import multiprocessing
import shutil

import numpy as np
import pytest

import ovss_bench as ob
from ovss_bench.datasets.prepare.conversion import read_pixels, write_label

FORK = multiprocessing.get_context("fork")


IMAGES = 12


YAML = """
images: images
labels: labels
image_suffix: .png
label_suffix: .png
classes: [sky, grass, road]
licence: for tests only
link: a test
expected_images: 12
prepare:
  archives:
    - file: toy.zip
      {more}
      paths: {{toy/images: images, toy/masks: raw}}
  converter: toy
  raw: [raw]
"""


def lower(source, target):
    write_label(target, read_pixels(source) // 100)


def described(folder, packed):
    folder.mkdir()
    shutil.copy(packed, folder)
    (folder / "toy_data.yaml").write_text(YAML.format(more="md5: null"))
    return folder / "toy_data.yaml"


def tree(folder):
    """Every file but the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def is_ready(toy):
    dataset = ob.load_dataset(toy)
    assert len(dataset.samples) == IMAGES
    return {value for sample in dataset.samples for value in np.unique(dataset.label(sample)).tolist()} == {0, 1, 2}


def refused(toy):
    """The command that a data set which is not ready says it needs."""
    with pytest.raises(ob.OvssError, match=r"half prepared: .* is incomplete. Resume with: ") as error:
        ob.load_dataset(toy)
    return str(error.value).rpartition("Resume with: ")[2]


def at(toy, folder):
    """The YAML file alone, in another folder."""
    (folder / toy.name).write_text(toy.read_text())
    return folder / toy.name
