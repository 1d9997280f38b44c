"""Lines of progress."""

import pytest

from ovss_bench.progress import Progress


@pytest.mark.parametrize(
    ("seconds", "done", "line"),
    [
        (40, 2, "run: 2/10 images, 20.0 s/image, 160 s left"),
        (20, 5, "run: 5/10 images, 4.0 s/image, 20 s left"),
        (40, 80, "run: 80/100 images, 2.0 images/s, 10 s left"),
    ],
)
def test_less_than_one_image_a_second_is_told_in_seconds(seconds, done, line, capsys, monkeypatch):
    task = Progress().start("run", 100 if done > 10 else 10)
    now = task.began + seconds
    monkeypatch.setattr("time.monotonic", lambda: now)
    task.advance(done)
    task.stop()
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == line
    assert lines[2] == f"run: {done} images in {seconds} s, {line.split(', ')[1]}"
