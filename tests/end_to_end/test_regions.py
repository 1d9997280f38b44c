import os
import shutil
import signal
import time

import numpy as np
import pytest

import ovss_bench as ob
from end_to_end.tools import run
from forked import Forked
from ovss_bench.auxiliary.regions import load_regions
from ovss_bench.cli.main import main


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with the regions of some of thirty images, made by a process that was told to end."""
    folder = tmp_path_factory.mktemp("regions")
    ob.load_dataset("demo")  # draws the scenes
    arguments = ["dataset=demo", "regions=slic", "out=out", "limit=30", "workers=1", "settings.n_segments=90"]
    process = Forked("regions.py", *arguments, cwd=folder)
    deadline = time.monotonic() + 300
    while not list((folder / "out").glob("*.npz")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert "Traceback" not in errors
    assert process.returncode == 128 + signal.SIGTERM, errors
    return folder, arguments


def test_a_run_that_was_stopped_goes_on(stopped):
    folder, arguments = stopped
    made = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("scene_*.npz")}
    assert 1 <= len(made) < 30
    assert set(load_regions(folder / "out").files.values()) == {path.name for path in made}
    again = run("regions.py", *arguments, cwd=folder)
    assert f"{len(made)} of 30 already existed" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in made} == made
    dataset, regions, source = ob.load_dataset("demo"), load_regions(folder / "out"), load_regions("slic", n_segments=90)
    assert len(regions.files) == 30
    assert regions.digest == source.digest
    for sample in dataset.select(30)[::5]:
        assert np.array_equal(regions(dataset.image(sample)), source(dataset.image(sample)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["out=DIR"]),
        (["out=out", "regoins=demo"], ["regoins", "regions"]),
        (["out=out", "regions=dmeo"], ["dmeo", "demo"]),
        (["out=out", "dataset=dmo"], ["dmo", "demo"]),
        (["out=out", "limit=0"], ["limit=0"]),
        (["out=out", "workers=many"], ["workers='many'"]),
        (["out=out", "settings=3"], ["settings.NAME=VALUE"]),
        (["out=out", "settings.scael=3"], ["scael", "scale"]),
        (["out"], ["'out'", "NAME=VALUE"]),
        (["out=/proc/regions"], ["/proc/regions", "out=DIR"]),
        (["index"], ["index DIR"]),
        (["index", "dataset=demo"], ["index DIR"]),
        (["index", "nowhere", "dataset=demo"], ["nowhere"]),
        (["index", "nowhere", "out=out"], ["out", "dataset"]),
    ],
    ids=" ".join,
)
def test_bad_input_gets_one_clear_line_and_status_2(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["regions.py", *arguments])
    with pytest.raises(SystemExit) as end:
        main("regions")
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert all(word in message for word in words), message
    assert list(tmp_path.iterdir()) == []


def test_files_from_elsewhere_get_an_index_and_what_is_missing_is_named(stopped, tmp_path):
    folder, _ = stopped
    ignored = shutil.ignore_patterns("regions.json", ".*")
    shutil.copytree(folder / "out", tmp_path / "copies", ignore=ignored)
    files = sorted(path.name for path in (tmp_path / "copies").iterdir())
    done = run("regions.py", "index", "copies", "dataset=demo", cwd=tmp_path, status=2)
    assert f"{100 - len(files)} images are not in the index; {len(files)} are" in done.stderr
    assert "there is no scene_" in done.stderr
    assert sorted(load_regions(tmp_path / "copies").files.values()) == files
