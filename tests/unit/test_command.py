"""segmentor=command: a program in a Python of its own, and what a program can do wrong."""

import json
import os
import sys
import venv
from contextlib import suppress
from pathlib import Path

import pytest

import outside_program
import ovss_bench as ob
from distributed.started import wait_for
from ovss_bench.files import cache_dir

PROGRAM = outside_program.__file__


@pytest.fixture(scope="module")
def demo():
    return ob.load_dataset("demo")


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """The interpreter of a second virtual environment without packages."""
    folder = tmp_path_factory.mktemp("second")
    venv.create(folder / "v", with_pip=False)
    return folder / "v" / "bin" / "python"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, demo, monkeypatch):
    """So that no test finds the maps of another."""
    monkeypatch.setenv("OVSS_CACHE", str(tmp_path / "cache"))


def score(dataset, command, limit=5, **recipe):
    return ob.evaluate("command", dataset, recipe={"command": command} | recipe, limit=limit)


def calls():
    """The images of each call."""
    return [line.split() for path in sorted((cache_dir() / "outside").rglob("calls.txt")) for line in path.open()]


def problem(dataset, command, **options):
    with pytest.raises(ob.OvssError) as caught:
        score(dataset, command, **options)
    return str(caught.value)


def test_a_program_in_its_own_environment(demo, python, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))  # it would find our packages there
    command = f"{python} {PROGRAM} truth {demo.root / 'labels'}"
    result = score(demo, command, images_per_call=2)
    assert (result.metrics["mIoU"], result.data["clip"]) == (100, "none")
    ids = [sample.id for sample in demo.select(5)]
    assert calls() == [ids[:2], ids[2:4], ids[4:]]
    (log, *_) = (cache_dir() / "outside").rglob("*.log")
    assert log.read_text() == f"truth in {python.parents[1]}, numpy is not installed\n"
    assert result.data["sources"][PROGRAM]["digest"]


def test_the_job(demo):
    score(demo, f"{sys.executable} {PROGRAM} npy 0 {{job}}", limit=1)
    (path,) = (cache_dir() / "outside").rglob("job-*.json")
    job, sample = json.loads(path.read_text()), demo.select(1)[0]
    assert [(image["id"], Path(image["path"])) for image in job["images"]] == [(sample.id, sample.image_path)]
    assert [entry["name"] for entry in job["classes"]] == list(demo.classes)
    assert [entry["name"] for entry in job["classes"] if entry["background"]] == ["background"]
    assert job["classes"][1]["synonyms"] == ["plain red cloth", "plain red fabric"]
    assert (job["void"], job["dataset"]) == (255, "demo")


def test_npy_maps_and_resume(demo):
    command = f"{sys.executable} {PROGRAM} npy 0"
    first = score(demo, command, limit=2)
    assert first.data["per_class"][0]["correct"] == first.data["per_class"][0]["true"] > 0
    score(demo, command, limit=5)
    known = {sample.id for sample in demo.select(2)}
    assert calls()[1:] == [[sample.id for sample in demo.select(5) if sample.id not in known]]
    damaged = next((cache_dir() / "outside").rglob("*.npy"))
    damaged.write_bytes(damaged.read_bytes()[:50])
    score(demo, command, limit=5)
    assert calls()[2:] == [[damaged.stem]]


def test_another_program_does_not_find_the_maps(demo, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(Path(PROGRAM).read_text())
    first = score(demo, f"{sys.executable} {script} npy 0", limit=1)
    script.write_text(script.read_text() + "# changed\n")
    assert score(demo, f"{sys.executable} {script} npy 0", limit=1).data["fingerprint"] != first.data["fingerprint"]
    assert len(calls()) == 2


def test_a_program_that_fails(demo):
    text = problem(demo, f"{sys.executable} {PROGRAM} fails 0")
    assert "failed with exit status 1" in text
    assert text.endswith("\n  | the network cannot be loaded")
    problem(demo, f"{sys.executable} {PROGRAM} fails 0")
    ids = [sample.id for sample in demo.select(5)]
    assert calls() == [ids, ids[1:]]  # the first map was kept


def test_a_program_that_is_killed(demo):
    assert "was killed by SIGKILL" in problem(demo, f"{sys.executable} {PROGRAM} killed 0")


def test_a_program_that_is_too_slow(demo):
    text = problem(demo, f"{sys.executable} {PROGRAM} slow 0", time_limit=2.0)
    assert "took longer than 2 s" in text
    assert "recipe.time_limit=SECONDS" in text
    (child,) = (cache_dir() / "outside").rglob("child.txt")
    wait_for(lambda: not runs(int(child.read_text())))


def runs(process):
    """Whether a process exists and is not waiting for its parent to take note of its end."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_program_with_wrong_or_no_maps(demo):
    text = problem(demo, f"{sys.executable} {PROGRAM} large 0")
    assert "5 have" not in text
    assert "4 have another size" in text
    assert "1 hold values that are no class" in text
    assert "numpy is" in text  # its output
    assert "5 lack a file" in problem(demo, f"{sys.executable} {PROGRAM} nothing 0")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/no/such/program", "cannot be started: No such file or directory: /no/such/program"),
        ("python 'a", "No closing quotation"),
        (" ", "command is empty"),
    ],
)
def test_no_command(demo, command, words):
    assert words in problem(demo, command)


def test_images_that_the_data_set_changes(demo, tmp_path):
    """The program gets what the data set would give to a method."""

    class Dark(type(demo)):
        def image(self, sample):
            return super().image(sample) // 2

    dark = Dark("demo", demo.config, None)
    score(dark, f"{sys.executable} {PROGRAM} npy 0", limit=1)
    (path,) = (cache_dir() / "outside").rglob("job-*.json")
    sample = dark.select(1)[0]
    given = ob.read_image(json.loads(path.read_text())["images"][0]["path"])
    assert (given == demo.image(demo.select(1)[0]) // 2).all()
    assert (given == dark.image(sample)).all()
