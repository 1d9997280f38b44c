"""tools/report.py as a user runs it, on results of data sets of one's own."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import ovss_bench as ob
from end_to_end.tools import run
from ovss_bench.cli.commands import command_of
from ovss_bench.cli.options import with_flags
from ovss_bench.runs.evaluate import make_job, run_jobs
from ovss_bench.runs.load import load_results, result_paths

FAST = {"resize": "none", "window": 48, "stride": 48, "templates": "photo"}
YAML = """
images: photos
labels: masks
image_suffix: .png
label_suffix: .png
classes: [striped red cloth, dotted blue cloth, sand]
"""


def own_data(folder, name, images=3):
    """A data set of noise in bands, which is complete with these images."""
    rng = np.random.default_rng(len(name))
    for kind in ("photos", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(images):
        labels = np.repeat(rng.integers(0, 3, 8), 8)[:, None].repeat(64, 1).astype(np.uint8)
        image = (labels[..., None] * 80 + rng.integers(0, 60, (64, 64, 3))).astype(np.uint8)
        Image.fromarray(image).save(folder / "photos" / f"{number}.png")
        Image.fromarray(labels).save(folder / "masks" / f"{number}.png")
    (folder / f"{name}.yaml").write_text(YAML)
    return ob.load_dataset(folder / f"{name}.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of three segmentors on two data sets, one lacking; one with another setting; and a partial one."""
    folder, clip = tmp_path_factory.mktemp("runs"), ob.load_clip("demo")
    one, two = (own_data(tmp_path_factory.mktemp(name) / name, name) for name in ("beach", "tent_inside"))
    jobs = [make_job(name, clip, one, overrides=FAST) for name in ("clip", "sclip", "maskclip")]
    jobs += [make_job(name, clip, two, overrides=FAST) for name in ("clip", "sclip")]
    jobs.append(make_job("sclip", clip, two, overrides=FAST | {"logit_scale": 20}))
    run_jobs(jobs, output=folder, quiet=True)
    run_jobs([make_job("naclip", clip, one, overrides=FAST)], limit=2, output=folder, quiet=True)
    return folder


@pytest.fixture
def report(capsys):
    """`report(words)`: what the tool prints, run in this process."""
    command = command_of("report")

    def call(*words):
        command.run(with_flags(list(map(str, words)), command.options()))
        return capsys.readouterr()

    return call


def test_a_table_is_printed_as_markdown_and_what_is_left_out_is_told(folder, tmp_path):
    done = run("report.py", folder, cwd=tmp_path)
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert lines[0] == "| segmentor | beach | tent_inside |"
    assert [line.split()[1].partition("<")[0] for line in lines[2:]] == ["clip", "maskclip", "sclip", "sclip"]
    assert "overridden: resize=none, stride=48, templates=photo, window=48" in done.stdout
    assert "logit_scale=20" in done.stdout
    assert "partial results (1)" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=pdf"], "markdown"),
        (["suite=sclp8"], "sclip8"),
        (["metric=mIuO"], "mIoU"),
        (["html=true"], "out=DIR"),
        (["digits=none"], "whole number"),
        (["suite=sclip8"], "none of the 6 results is on voc21"),
        (["suite=sclip8", "dataset=beach"], "Give one of them"),
        (["segmentor=sclp"], "sclip"),
        (["segmentor=naclip"], "partial"),
        (["colour=red"], "option"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said(words, message, folder, report):
    with pytest.raises(ob.OvssError, match=message):
        report(folder, *words)


def test_a_folder_without_results_is_an_error(tmp_path, report):
    with pytest.raises(ob.OvssError, match="no result"):
        report(tmp_path)


def test_with_a_folder_to_write_to_there_is_every_format(folder, tmp_path, report):
    out = report(folder, f"out={tmp_path}", "partial=true", "published=true").out
    assert out.split() == [str(tmp_path / f"table.{suffix}") for suffix in ("md", "tex", "csv")]
    table = pd.read_csv(tmp_path / "table.csv")
    assert table["segmentor"].tolist() == ["clip", "maskclip", "naclip", "sclip", "sclip"]
    assert "partial: 2 of 3 images" in table["notes"][2]
    frame = load_results(folder)
    (mask,) = frame["mIoU"][frame["segmentor"] == "maskclip"]
    assert table["beach"][1] == pytest.approx(mask, abs=0.006)
    assert "\\begin{tabular}{lrr}" in (tmp_path / "table.tex").read_text()
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    report(folder, f"out={tmp_path}", "partial=true", "published=true")
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before


def test_partial_results_that_are_left_out_are_counted_among_those_that_match(folder, report):
    assert report(folder, "dataset=beach").err == "left out: partial results (1); partial=true shows them\n"
    assert not report(folder, "dataset=tent_inside").err
    with pytest.raises(ob.OvssError, match="all 1 matching results are partial"):
        report(folder, "segmentor=naclip")


def test_intervals_enclose_the_figures(folder, report):
    text = report(folder, "intervals=true", "format=csv", "dataset=beach").out.splitlines()
    head, first, *_ = (line.split(",") for line in text)
    row = dict(zip(head, first, strict=False))
    assert float(row["beach low"]) < float(row["beach"]) < float(row["beach high"])


def test_the_tidy_frame_is_that_of_load_results(folder, tmp_path, report):
    report(folder, "--csv", f"out={tmp_path}")
    written = pd.read_csv(tmp_path / "results.csv", keep_default_na=False, na_values=[""])
    frame = load_results(folder)
    assert (
        written["path"].tolist()
        == frame["path"].tolist()
        == [str(path) for path in result_paths(folder) if "naclip" not in path.name]
    )
    pd.testing.assert_series_equal(written["mIoU"], frame["mIoU"])
    assert list(written) == list(frame)
    assert "naclip" in report(folder, "--csv", "partial=true").out


def test_the_page_is_written_beside_the_tables(folder, tmp_path, report):
    report(folder, "html=true", f"out={tmp_path}", "images=2", "intervals=true")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "table.csv", "table.md", "table.tex"]
    assert "tent_inside" in (tmp_path / "report.html").read_text()
