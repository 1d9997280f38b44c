"""What data sets are prepared from (archives, JSON, .mat, TIFF, lists, label maps of many kinds), with one file damaged, in an
archive as well."""

import io
import shutil
import tarfile
import zipfile
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ovss_bench as ob
from fuzz.common import damaged, inputs, outcome
from miniatures import MINIATURES
from ovss_bench.datasets.check.run import check
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.prepare.run import prepare

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


# Content of another kind than expected; lists and JSON that can be read but make no sense.
OTHERS = [b"", b"<html>not found</html>", b"\xff\xfea\0\n\0", b"\xff\x80", b"0 0 0\n", b"../../p\n/p\na\0b\n", b"\xed\xa0\x80"]
OTHERS += [
    b"[]",
    b'{"test": 5}',
    b'{"test": {"a": {"b": 3}}}',
    b'{"imgWidth": -1, "imgHeight": "x", "objects": 3}',
    b"[" * 99_999,
]


def replaced(content: bytes, change) -> bytes:
    """The content after `change(bytes)`; of an archive, the archive in which one member was changed."""
    old, new = io.BytesIO(content), io.BytesIO()
    if zipfile.is_zipfile(old):
        with zipfile.ZipFile(old) as source, zipfile.ZipFile(new, "w") as target:
            infos = [info for info in source.infolist() if not info.is_dir()]
            chosen = change.draw(st.sampled_from(infos))
            for info in infos:
                target.writestr(info.filename, change(source.read(info)) if info is chosen else source.read(info))
        return new.getvalue()
    old.seek(0)
    try:
        with tarfile.open(fileobj=old) as source, tarfile.open(fileobj=new, mode="w") as target:
            infos = [info for info in source.getmembers() if info.isfile()]
            chosen = change.draw(st.sampled_from(infos))
            for info in infos:
                data = source.extractfile(info).read()
                data = change(data) if info is chosen else data
                info.size = len(data)
                target.addfile(info, io.BytesIO(data))
        return new.getvalue()
    except tarfile.TarError:
        return change(content)


class Change:
    """Damages content, or puts another in its place."""

    def __init__(self, draw):
        self.draw = draw

    def __call__(self, content):
        return self.draw(damaged(content) | st.sampled_from([*OTHERS, content[::-1]]))


@inputs(0.03)
@given(name=st.sampled_from(PREPARED), inside=st.booleans(), draw=st.data())
def test_data_sets_are_prepared_from_damaged_files_with_an_error_at_most(raw, tmp_path_factory, name, inside, draw):
    root = tmp_path_factory.getbasetemp() / "damaged"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(raw(name), root)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path, change = draw.draw(st.sampled_from(files)), Change(draw.draw)
    path.write_bytes(replaced(path.read_bytes(), change) if inside else change(path.read_bytes()))
    outcome(use, name, root)
