"""What data sets are prepared from (archives, JSON, .mat, TIFF, lists, label maps of many kinds), with one file damaged; and
manifests and region indices."""

import shutil
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ovss_bench as ob
from fuzz.common import damaged, inputs, outcome
from miniatures import MINIATURES
from ovss_bench.datasets.check import check
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.prepare import prepare

# One data set per converter and per kind of raw file.
PREPARED = sorted(
    {dataset_config(name)[1].get("prepare", {}).get("converter", name): name for name in sorted(MINIATURES)}.values()
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """`raw(name)`: a folder with the miniature of a data set, as people download it."""
    root = tmp_path_factory.mktemp("raw")

    @cache
    def of(name):
        MINIATURES[name](root / name)
        return root / name

    return of


def use(name, root):
    """Prepares, checks and reads it all, as far as that goes."""
    prepare(name, root, workers=1, quiet=True)
    dataset = ob.load_dataset(name, root)
    check(name, root)
    for sample in dataset.samples:
        dataset.label(sample, dataset.image(sample).shape[:2])


@inputs(0.25)
@given(name=st.sampled_from(sorted(PREPARED.values())), draw=st.data())
def test_data_sets_are_prepared_from_damaged_files_with_an_error_at_most(raw, tmp_path_factory, name, draw):
    root = tmp_path_factory.getbasetemp() / "damaged"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(raw(name), root)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = draw.draw(st.sampled_from(files))
    content = path.read_bytes()
    path.write_bytes(draw.draw(damaged(content) | st.sampled_from([b"", b"<html>not found</html>", content[::-1]])))
    outcome(use, name, root)
