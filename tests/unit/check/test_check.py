"""Checks of a user's own data, notes, reports and manifests."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import ovss_bench as ob
from ovss_bench.config.registry import DATASETS
from ovss_bench.datasets.check.run import check

from .common import COUNT, altered, data_root, described, examined, label_paths, masks_of, printed


@pytest.mark.parametrize("number", [2, 4])
def test_the_number_of_images_is_compared(number, own):
    report = check(described(own, expected_images=number), quiet=True)
    (finding,) = report.findings
    assert (finding.kind, finding.file) == (COUNT, own / "images")
    assert f"3 images are listed, {number} are expected" in finding.what
    assert "of another split" in finding.hint


def test_a_number_that_is_that_of_another_split_says_so(own):
    (own / "val.txt").write_text("a\nb\n")
    (own / "test.txt").write_text("x\ny\n")
    report = check(described(own, expected_images=3, ids="val.txt", check="{splits: {train: 2, trainval: 5}}"), quiet=True)
    (finding,) = report.findings
    assert finding.what.endswith("2 is the number of train and of test.txt")
    assert finding.file == own / "val.txt"


@pytest.mark.parametrize(
    ("value", "share", "entries", "noted"),
    [
        (1, 0.05, {}, "95.0% of the pixels that are not ignored are 0 sky"),
        (1, 0.05, {"background": 0}, "95.0% of the pixels that are not ignored are 0 sky"),
        (1, 0.05, {"background": 0, "classes": "[a, b, c, d, e, f]"}, "are 0 a"),
        (1, 0.95, {}, "95.0% of the pixels that are not ignored are 1 grass"),
        (1, 0.95, {"classes": "[a, b, c]"}, "are 1 b"),
        (1, 0.5, {}, None),
        (2, 0.5, {"background": 0, "classes": "[a, b, c, d, e, f]"}, None),
    ],
)
def test_one_frequent_class_is_a_note_where_that_is_usual(value, share, entries, noted, own):
    masks_of(own, value, share)
    report = check(described(own, **entries), quiet=True)
    assert report.findings == []
    shown = printed(report)
    assert "nothing is wrong" in shown
    assert (f"note: {report.notes[0]}" in shown and noted in shown) if noted else report.notes == []


@pytest.mark.parametrize(
    ("value", "share", "entries", "kind"),
    [
        (1, 0.95, {"classes": "[a, b, c, d]"}, "one class nearly everywhere"),
        (1, 0, {}, "hardly any classes"),
        (
            1,
            0.5,
            {"classes": f"[{', '.join(f'c{number}' for number in range(21))}]", "expected_images": 3},
            "hardly any classes",
        ),
        (255, 0.5, {}, "masks of 0 and 255"),
        (255, 0.5, {"background": 0, "classes": "[a, b, c]"}, "masks of 0 and 255"),
        (255, 1, {}, "everything ignored"),
    ],
)
def test_sets_of_lost_classes_are_found_in_one_s_own_data(value, share, entries, kind, own):
    masks_of(own, value, share)
    report = check(described(own, **entries), quiet=True)
    assert {finding.kind for finding in report.findings} == {kind}
    assert "nothing is wrong" not in printed(report)


def test_files_of_few_bits_that_lose_nothing_are_no_mistake(own):
    """As programs write that make PNG files smaller: as many bits as a file needs, with a palette of as many colours."""
    colours = bytes(range(60))
    for path, number in zip(sorted((own / "labels").glob("*.png")), (2, 4, 20), strict=True):
        picture = Image.fromarray((np.arange(40, dtype=np.uint8) // 2 % number)[:, None].repeat(30, 1))
        picture.putpalette(colours[: 3 * number])
        picture.save(path)
    names = ", ".join(f"c{number}" for number in range(20))
    assert [path.read_bytes()[24] for path in sorted((own / "labels").glob("*"))] == [1, 2, 8]
    report = check(described(own, classes=f"[{names}]"), quiet=True)
    assert report.findings == []


def test_a_folder_of_other_suffixes_lists_no_image(own):
    report = check(described(own, image_suffix=".jpg"), quiet=True)
    assert [(finding.kind, finding.file) for finding in report.findings] == [
        (COUNT, own / "images"),
        *(("label without image", own / "labels" / f"{name}.png") for name in "abc"),
    ]
    assert report.findings[1].what == "there is no image images/a.jpg; but there is a.png"
    assert (report.images, report.fingerprint, report.histogram) == (0, None, {})


def test_ids_may_be_folders_and_names_of_one_s_own_data_set(own):
    assert check(described(own), quiet=True).findings == []
    for name in "abc":
        (own / "images" / "deep").mkdir(exist_ok=True)
        (own / "images" / f"{name}.png").rename(own / "images" / "deep" / f"{name}.png")
    report = check(described(own), quiet=True)
    assert {finding.kind for finding in report.findings} == {"label without image", "image without label"}
    assert any("but there is labels/a.png" in finding.what for finding in report.findings)


def test_a_class_may_read_its_labels_in_its_own_way(own):
    @DATASETS.register_module(name="doubled")
    class Doubled(ob.SegDataset):
        def label(self, sample, size=None):
            return super().label(sample, size) * 2

    try:
        report = check(described(own, loader="doubled", classes="[sky, grass, road]"), quiet=True)
    finally:
        DATASETS.module_dict.pop("doubled")
    assert report.findings == []
    assert [*report.histogram] == [0, 2]


def test_classes_that_never_occur_are_a_note(own):
    report = check(described(own, classes="[sky, grass, road]"), quiet=True)
    assert report.findings == []
    shown = printed(report)
    assert "note: 1 of 3 classes never occur: 2 road" in shown
    assert "nothing is wrong" in shown


def test_many_findings_show_five_files_and_one_hint(copied):
    dataset = copied("isaid")
    assert len(dataset.samples) == 5
    for path in [*label_paths(dataset), *(sample.image_path for sample in dataset.samples)]:
        path.write_bytes(b"")
    shown = printed(examined(dataset))
    assert shown.count("unreadable labels: 5") == 1
    assert shown.count("copy or convert") == 1
    assert all(f"  {path}: " in shown for path in label_paths(dataset))
    assert "and 1 more" not in shown
    assert "findings: 11" in shown
    for path in dataset.samples[0].label_path.parent.glob("*_RGB.png"):
        shutil.copy(path, path.with_name("Z" + path.name))
    assert "label without image: 5" in printed(examined(dataset))


def test_a_manifest_holds_what_two_users_compare(manifest, intact):
    dataset = ob.load_dataset("voc21", intact("voc21"))
    content = json.loads(manifest.read_text())
    assert content["dataset"] == "voc21"
    assert content["images"] == 4
    assert content["fingerprint"] == dataset.fingerprint
    assert list(content["labels"]) == [sample.id for sample in dataset.samples]
    assert sum(content["histogram"].values()) == sum(dataset.label(sample).size for sample in dataset.samples)
    assert {finding.kind for finding in check("voc21", intact("voc21"), against=manifest, quiet=True).findings} == {COUNT}


def test_differences_from_a_manifest_are_findings(manifest, copied, monkeypatch):
    dataset = copied("voc21")
    first, second = dataset.samples[0], dataset.samples[1]

    def change(label):
        label[label == label[0, 0]] = 20
        return label

    altered(first.label_path, change)
    ids = dataset.root / dataset.config["ids"]
    ids.write_text(ids.read_text().replace(f"{second.id}\n", "2007_000032\n"))
    (ids.parent / "train.txt").unlink()
    found = {}
    for finding in examined(dataset, against=manifest).findings:
        found.setdefault(finding.kind, []).append((finding.file, finding.what))
    assert found["other ids than in the manifest"] == [
        (dataset.root / "SegmentationClass/2007_000032.png", "2007_000032 is only here"),
        (None, f"{second.id} is only in the manifest"),
    ]
    assert [file for file, _ in found["other labels than in the manifest"]] == [first.label_path]
    classes = [what for _, what in found["other pixels of a class than in the manifest"]]
    assert any(what.startswith("20 tvmonitor: ") for what in classes)
    assert "other bytes than in the manifest" not in found


def test_equal_labels_of_other_bytes_are_told_apart(manifest, copied):
    dataset = copied("voc21")
    path = dataset.samples[0].label_path
    with Image.open(path) as image:
        image.load()
        image.save(path, compress_level=1)
    findings = [finding for finding in examined(dataset, against=manifest).findings if finding.kind != COUNT]
    assert [finding.kind for finding in findings] == ["other bytes than in the manifest"]


def test_a_missing_fingerprint_is_not_a_difference(manifest, copied):
    """A copy that lacks images has no fingerprint, so its other files cannot be compared by it."""
    dataset = copied("voc21")
    dataset.samples[0].image_path.unlink()
    kinds = {finding.kind for finding in examined(dataset, against=manifest).findings}
    assert kinds == {COUNT, "label without image"}


OTHER = '{"dataset": "voc20", "histogram": {}, "labels": {}, "fingerprint": ""}'


@pytest.mark.parametrize("content", [None, "", "[]", "{}", OTHER, OTHER.replace("{}", "[]")])
def test_a_bad_manifest_is_an_error(content, tmp_path, intact):
    file = tmp_path / "manifest.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ob.OvssError, match=r"manifest\.json.*(cannot be read|no manifest|is for voc20, not for voc21)"):
        check("voc21", intact("voc21"), against=file, quiet=True)


def test_a_report_of_unreadable_files_has_no_fingerprint(own, monkeypatch):
    def refuse(dataset):
        raise ob.OvssError("a.png cannot be read: Permission denied.")  # as root, tests may read everything

    monkeypatch.setattr(ob.SegDataset, "fingerprint", property(refuse))
    report = check(described(own), quiet=True)
    assert report.fingerprint is None
    assert "none: files are missing, unreadable or listed twice" in printed(report)


def test_data_that_are_not_there_are_an_error(tmp_path):
    with pytest.raises(ob.OvssError, match="voc21"):
        check("voc21", tmp_path, quiet=True)


def test_processes_give_the_same_report(copied):
    dataset = copied("voc21")
    dataset.samples[0].label_path.write_bytes(b"")
    reports = [check("voc21", data_root(dataset), workers=workers, quiet=True) for workers in (1, 3)]
    assert reports[0] == reports[1]
