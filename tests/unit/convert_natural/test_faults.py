"""Natural-image data sets: wrong, damaged and missing raw files, interrupted runs, COCO 2014."""

import re

import numpy as np
import pytest
from PIL import Image

import ovss_bench as ob
from ovss_bench.datasets.prepare.run import prepare

from .common import CONVERTED, RAW, make, outputs, stored, write_raw


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (_, values) in RAW.items() for value in values])
def test_values_that_the_official_labels_never_have_are_refused(name, value, own):
    root, _, raw, target = own(name)
    label = np.full((20, 30), 1, np.uint16)
    label[4:9, 3:20] = value
    write_raw(raw, label)
    with pytest.raises(ob.OvssError, match=rf"(?s)1 of 1 files.*{re.escape(str(raw))} holds the values \[{value}\]"):
        prepare(name, root, quiet=True, workers=1)
    assert not target.exists()
    with pytest.raises(ob.OvssError, match="half prepared"):
        ob.load_dataset(name, root)


@pytest.mark.parametrize("name", ["coco_stuff", "coco_object", "cityscapes"])
def test_labels_in_colours_are_refused(name, own):
    root, _, raw, _ = own(name)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(raw)
    with pytest.raises(ob.OvssError, match=rf"{re.escape(str(raw))} has 3 channels, expected one"):
        prepare(name, root, quiet=True, workers=1)


def test_ade847_refuses_a_label_without_colours_and_one_of_another_size(own):
    root, _, raw, _ = own("ade847")
    size = Image.open(raw).size
    Image.fromarray(np.zeros(size[::-1], np.uint8)).save(raw)
    with pytest.raises(ob.OvssError, match=r"ADE_val_00000002_seg\.png has one channel"):
        prepare("ade847", root, quiet=True, workers=1)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(raw)
    with pytest.raises(ob.OvssError, match=r"ADE_val_00000002_seg\.png differs in size"):
        prepare("ade847", root, quiet=True, workers=1)


@pytest.mark.parametrize("keep", [0, 0.03, 0.3, 0.7])
@pytest.mark.parametrize("name", CONVERTED)
def test_a_truncated_raw_file_is_named(name, keep, own):
    root, _, raw, target = own(name)
    data = raw.read_bytes()
    raw.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ob.OvssError, match=rf"(?s)1 of 1 files.*{re.escape(str(raw))}"):
        prepare(name, root, quiet=True, workers=1)
    assert not target.exists()


@pytest.mark.parametrize("name", CONVERTED)
def test_a_missing_raw_file_is_named(name, own):
    root, folder, raw, _ = own(name)
    raw.unlink()
    if name == "cityscapes":
        (folder / RAW[name][0].replace("labelIds.png", "polygons.json")).unlink()
    if name == "ade847":  # it walks what is there: the image alone says nothing
        raw = folder / "images/ADE/validation/nature_landscape/coast/ADE_val_00000003.jpg"
        raw.unlink()
    with pytest.raises(ob.OvssError, match=re.escape(str(raw))):
        prepare(name, root, quiet=True, workers=1)


def test_the_absence_of_everything_is_explained(tmp_path):
    with pytest.raises(ob.OvssError, match=r"(?s)trainval\.tar\.gz.*raw/trainval.*Flickr.*roozbeh.*by hand"):
        prepare("context60", tmp_path, quiet=True)
    with pytest.raises(ob.OvssError, match=r"(?s)leftImg8bit_trainvaltest\.zip.*gtFine_trainvaltest\.zip.*Register"):
        prepare("cityscapes", tmp_path, quiet=True)
    with pytest.raises(ob.OvssError, match="images/ADE/validation"):
        prepare("ade847", tmp_path, quiet=True)
    with pytest.raises(ob.OvssError, match=r"(?s)non-commercial.*yes=true"):
        prepare("ade20k", tmp_path, quiet=True)


@pytest.mark.parametrize("name", CONVERTED)
def test_an_interrupted_run_goes_on_and_makes_only_what_is_missing(name, own):
    root, folder, _, target = own(name)
    before = {path: path.stat().st_mtime_ns for path in outputs(name, folder) if path.exists()}
    assert len(before) == len(outputs(name, folder)) - 1
    with pytest.raises(ob.OvssError):
        _ = ob.load_dataset(name, root).samples
    prepare(name, root, quiet=True, workers=1)
    after = {path: path.stat().st_mtime_ns for path in outputs(name, folder)}
    again = {path for path in before if after[path] != before[path]}
    assert again == ({target.parents[2] / "images_detectron2/validation/ADE_val_00000002.jpg"} if name == "ade847" else set())
    assert len(ob.load_dataset(name, root).samples) in (3, 4)
    prepare(name, root, quiet=True, workers=1)
    assert {path: path.stat().st_mtime_ns for path in outputs(name, folder)} == after


@pytest.mark.parametrize("name", ["context60", "coco_stuff", "coco_object", "cityscapes"])
def test_labels_that_are_ready_need_no_raw_files(name, own):
    root, folder, _, _ = own(name)
    prepare(name, root, quiet=True, workers=1)
    for pattern in ("raw/trainval/*.mat", "annotations/val2017/????????????.png", "gtFine/val/*/*_labelIds.png"):
        for path in folder.glob(pattern):
            path.unlink()
    prepare(name, root, quiet=True, workers=1)


@pytest.mark.parametrize("form", ["COCO_val2014_{:012d}", "{:012d}", "{}"])
def test_coco_2014_pairs_images_with_labels_by_number(form, tmp_path):
    folder, numbers = make("coco_object_2014", tmp_path), [73, 104, 135]
    (folder / "val_5k.txt").write_text("".join(form.format(number) + "\n" for number in numbers))
    dataset = ob.load_dataset("coco_object_2014", tmp_path)
    assert [sample.id for sample in dataset.samples] == [f"COCO_val2014_{number:012d}" for number in numbers]
    for number, sample in zip(numbers, dataset.samples, strict=True):
        assert sample.label_path.name == f"{number:012d}.png"
        assert np.array_equal(dataset.label(sample, dataset.image(sample).shape[:2]), stored(sample.label_path)[0])
    assert len(dataset.classes) == 81
    assert dataset.background == 0


def test_coco_2014_says_which_mask_is_missing(tmp_path):
    folder = make("coco_object_2014", tmp_path)
    (folder / "coco_seg_anno/000000000104.png").unlink()
    with pytest.raises(ob.OvssError, match=r"(?s)lacks 1 of its files.*coco_seg_anno/000000000104\.png"):
        _ = ob.load_dataset("coco_object_2014", tmp_path).samples
