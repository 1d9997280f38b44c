"""Fixtures of all tests: a separate cache folder, a tiny CLIP, miniature data sets."""

import os
from functools import cache as once

import pytest
import torch

import ovss_bench as ob
from miniatures import MINIATURES
from miniatures.voc import write_voc
from ovss_bench.config.registry import DATASETS, PLUGINS, RECIPES, SEGMENTORS, STEPS
from ovss_bench.datasets import layout
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.prepare.run import prepare
from parity.seeded import clip_state_dict, query_features

if os.environ.get("OVSS_TEST_DEVICE") != "cuda":  # the tests compare with numbers of the CPU, on machines with a GPU, too
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """One initially empty cache per session, also for the processes of tests, so that demo scenes are drawn once."""
    before = os.environ.get("OVSS_CACHE")
    folder = os.environ["OVSS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield folder
    os.environ.pop("OVSS_CACHE")
    if before is not None:
        os.environ["OVSS_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def empty_data_root(tmp_path_factory):
    """The default data root is an empty folder, not the developer's `datasets`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "DATASET_FACTS", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(autouse=True)
def same_threads():
    """Restores the number of threads after each test."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def same_plugins():
    """Unregisters the plug-ins of a test: they would change the fingerprints of later runs."""
    parts = (SEGMENTORS.module_dict, DATASETS.module_dict, STEPS.module_dict, RECIPES, PLUGINS)
    before = [dict(part) for part in parts]
    yield
    for part, content in zip(parts, before, strict=True):
        part.clear()
        part.update(content)


@pytest.fixture(scope="session")
def tiny_state_dict():
    return clip_state_dict(11)


@pytest.fixture(scope="session")
def tiny_clip(tiny_state_dict):
    """Twelve layers of width 128, patch 16, random weights in OpenAI's naming."""
    return ob.load_clip(state_dict=tiny_state_dict)


@pytest.fixture(scope="session")
def tiny_vocabulary():
    """Seven queries of four classes, the first of which is the background."""
    return ob.Vocabulary.from_features(query_features(31, 7), [0, 0, 0, 1, 2, 2, 3], background=True)


@pytest.fixture(scope="session")
def voc(tmp_path_factory):
    """The data root of a miniature VOC of ten images, read only."""
    root = tmp_path_factory.mktemp("voc")
    write_voc(root, images=10)
    return root


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """`prepared(name)`: a shared data root with the prepared miniature of a data set. Read only."""
    root = tmp_path_factory.mktemp("data")
    write = once(lambda writer: writer(root))

    @once
    def of(name):
        write(MINIATURES[name])
        if "prepare" in dataset_config(name)[1]:
            prepare(name, root, quiet=True, workers=1)
        return root

    return of
