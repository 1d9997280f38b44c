"""Data sets to check, and a manifest."""

import shutil
from functools import cache

import numpy as np
import pytest
from PIL import Image

import ovss_bench as ob
from miniatures import MINIATURES
from ovss_bench.datasets.check.run import check
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.prepare.run import prepare


@pytest.fixture(scope="session")
def intact(tmp_path_factory):
    """`intact(name)`: the data root with the miniature, prepared, not to be written to."""

    @cache
    def of(name):
        root = tmp_path_factory.mktemp(name)
        MINIATURES[name](root)
        if "prepare" in dataset_config(name)[1]:
            prepare(name, root, workers=1, quiet=True)
        return root

    return of


@pytest.fixture
def copied(intact, tmp_path):
    """`copied(name)`: the data set, in a copy that the test may damage."""

    def of(name):
        shutil.copytree(intact(name), tmp_path, dirs_exist_ok=True)
        return ob.load_dataset(name, tmp_path)

    return of


@pytest.fixture
def own(tmp_path):
    """A data set of one's own of three images: its YAML file and its folder."""
    rng = np.random.RandomState(0)
    for name in ("a", "b", "c"):
        for kind, suffix in (("images", ".png"), ("labels", ".png")):
            (tmp_path / kind).mkdir(exist_ok=True)
            shape = (20, 30, 3) if kind == "images" else (20, 30)
            Image.fromarray(rng.randint(0, 2, shape).astype(np.uint8).repeat(2, 0)).save(tmp_path / kind / f"{name}{suffix}")
    return tmp_path


@pytest.fixture
def manifest(intact, tmp_path):
    file = tmp_path / "manifest.json"
    check("voc21", intact("voc21"), out=file, quiet=True)
    return file
