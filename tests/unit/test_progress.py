"""Lines of progress."""

import pytest
from rich.table import Table

from ovss_bench.errors import print_error
from ovss_bench.progress import Progress, console
from ovss_bench.reports.markdown import escape_markdown


@pytest.mark.parametrize(
    ("seconds", "done", "line"),
    [
        (40, 2, "run: 2/10 images, 20.0 s/image, 160 s left"),
        (20, 5, "run: 5/10 images, 4.0 s/image, 20 s left"),
        (30, 0, "run: 0/10 images, 0.0 images/s, 300 s left"),
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


def test_control_sequences_of_names_reach_no_terminal(capsys):
    """Of a line, of a table, of an error, and of Markdown, which people look at in a terminal, too."""
    name = "\x1b[31m[red]a\x9b0m\rb"
    table = Table(name, title=name)
    table.add_row(name)
    for part in (name, table):
        console().print(part)
    print_error(name)
    shown = "".join(capsys.readouterr()) + escape_markdown(name)
    assert {character for character in shown if not character.isprintable()} == {"\n"}
    assert shown.count("31m[red]a") == 5
    assert r"error: \x1b[31m[red]a\x9b0m\x0db" in shown
