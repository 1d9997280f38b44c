"""Every mistake of `CHECKS`, made in a miniature: found, named with its file, and no other kind beside it."""

import hashlib

import numpy as np
import pytest

import ovss_bench as ob
from miniatures import MINIATURES
from ovss_bench.datasets.check.run import CHECKS, check

from . import mistakes_in_files, mistakes_in_values  # noqa: F401  they register
from .common import (
    COUNT,
    MISTAKES,
    altered,
    data_root,
    examined,
    label_paths,
    through_jpeg,
)
from .mistakes_in_values import a_label_turned


def test_every_kind_has_a_name_of_its_own():
    assert len({entry.kind for entry in CHECKS}) == len(CHECKS)


@pytest.mark.parametrize("name", MINIATURES)
def test_an_intact_data_set_has_no_findings(name, intact):
    report = check(name, intact(name), workers=1, quiet=True)
    assert [finding for finding in report.findings if finding.kind != COUNT] == []
    dataset = ob.load_dataset(name, intact(name))
    labels = [dataset.label(sample) for sample in dataset.samples]
    values, pixels = np.unique(np.concatenate([label.ravel() for label in labels]), return_counts=True)
    assert report.histogram == dict(zip(values.tolist(), pixels.tolist(), strict=True))
    assert (report.images, report.root) == (len(dataset.samples), dataset.root)
    assert report.fingerprint == dataset.fingerprint
    listed = "".join(f"{name}\n" for name in sorted(sample.id for sample in dataset.samples))
    assert report.ids_digest == hashlib.sha256(listed.encode()).hexdigest()


def test_the_demo_has_no_findings():
    report = check("demo", quiet=True)
    assert (report.findings, report.images) == ([], 100)


@pytest.mark.parametrize("quality", [60, 75, 95])
@pytest.mark.parametrize("name", ["voc21", "voc20", "cityscapes", "ade20k", "coco_stuff"])
def test_a_png_that_was_a_jpeg_is_recognised(name, quality, copied, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = copied(name)
    paths = label_paths(dataset)[:2]
    for path in paths:
        altered(path, through_jpeg(quality))
    findings = [finding for finding in examined(dataset).findings if finding.kind != COUNT]
    assert {finding.kind for finding in findings} == {"labels saved as JPEG"}
    assert [finding.file for finding in findings] == paths
    assert "single pixels" in findings[0].what


def test_sizes_are_said_in_full(copied):
    dataset = copied("voc21")
    height, width = dataset.label(dataset.samples[0]).shape
    a_label_turned(dataset)
    assert examined(dataset).findings[-1].what == f"{width} x {height} pixels (height x width), its image {height} x {width}"


@pytest.mark.parametrize(("kind", "name", "make", "said", "hint"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_found_and_named(kind, name, make, said, hint, copied):
    dataset = copied(name)
    files = make(dataset)
    report = examined(dataset)
    findings = [finding for finding in report.findings if finding.kind != COUNT]
    assert {finding.kind for finding in findings} == {kind}, findings
    assert [finding.file for finding in findings] == files
    for finding in findings:
        assert hint in finding.hint, finding.hint
        assert "{" not in finding.hint
    for words in said:
        assert all(words in finding.what for finding in findings), findings
    if "prepare" in dataset.config:
        command = f"prepare {name} data_root={data_root(dataset)} rerun=true"
        wanted = "{again}" in next(entry.hint for entry in CHECKS if entry.kind == kind)
        assert all((command in finding.hint) == wanted for finding in findings)


def test_every_kind_is_made_here():
    assert {kind for kind, *_ in MISTAKES.values()} | {COUNT} == {entry.kind for entry in CHECKS}
