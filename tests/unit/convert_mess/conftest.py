"""Raw and prepared miniatures of MESS."""

import pytest

from miniatures.mess import MINIATURES
from ovss_bench.datasets.prepare import converters  # noqa: F401
from ovss_bench.datasets.prepare.run import prepare


@pytest.fixture(scope="session")
def ready(tmp_path_factory):
    """name -> data root with the prepared data set, not to be written to."""
    roots = {}

    def get(name):
        writer = MINIATURES[name]
        if writer not in roots:
            roots[writer] = tmp_path_factory.mktemp(name)
            writer(roots[writer])
        prepare(name, roots[writer], quiet=True)
        return roots[writer]

    return get


@pytest.fixture
def own(tmp_path):
    """name -> data root with raw files that the test may change, and the data set once it is prepared."""

    def get(name):
        MINIATURES[name](tmp_path)
        return tmp_path

    return get
