"""Conversion of the natural-image data sets: every label worked out again, pixel by pixel, from tables of other sources."""

import ast
import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import cv2
import mmseg
import numpy as np
import pytest
from PIL import Image

import ovss_bench as ob
from miniatures import MINIATURES
from miniatures.ade import full_colours
from miniatures.context import matlab
from miniatures.drawing import scene
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.prepare.converters.ade import reduced, write_pair
from ovss_bench.datasets.prepare.converters.cityscapes import from_polygons
from ovss_bench.datasets.prepare.converters.context import CONTEXT_60
from ovss_bench.datasets.prepare.run import prepare
from ovss_bench.files import DATASET_FACTS

from .common import (
    ADE,
    CITYSCAPES,
    archived,
    context_maps,
    make,
    matlab_in,
    naive,
    stored,
)

MMSEG = Path(mmseg.__file__).parent / ".mim/tools/dataset_converters"


def mmsegs_table(file):
    """The table of class ids in mmseg's own converter."""
    return ast.literal_eval(re.search(r"clsID_to_trID = (\{.*?\})", (MMSEG / file).read_text(), re.DOTALL)[1])


def mmsegs_context():
    return sorted(
        ast.literal_eval(re.search(r"np\.array\((\[.*?\])\)", (MMSEG / "pascal_context.py").read_text(), re.DOTALL)[1])
    )


def test_context60_counts_positions_among_the_sixty(made):
    folder, sixty = made("context60"), mmsegs_context()
    assert len(sixty) == 60
    table = {value: sixty.index(value) if value in sixty else 0 for value in range(1, 460)}
    maps = context_maps(folder.parents[1])
    assert sorted(path.stem for path in (folder / "SegmentationClassContext").glob("*.png")) == sorted(maps)
    for name, label in maps.items():
        values, mode = stored(folder / f"SegmentationClassContext/{name}.png")
        assert mode == "L"
        assert np.array_equal(values, naive(label, table))
    assert (folder / "ImageSets/SegmentationContext/val.txt").read_text().split() == sorted(maps)


def test_context_ids_have_the_names_of_the_classes():
    full, sixty = dataset_config("context459")[1]["classes"], mmseg.datasets.PascalContextDataset.METAINFO["classes"]
    assert list(CONTEXT_60) == mmsegs_context()
    assert [full[value - 1] for value in CONTEXT_60[1:]] == list(sixty[1:])
    assert full[430] == "unknown"
    assert full[255] == "monkey"


def test_context459_keeps_all_labels_in_16_bits(made):
    folder = made("context459")
    seen = set()
    for name, label in context_maps(folder.parents[1]).items():
        values, mode = stored(folder / f"annotations_detectron2/pc459_val/{name}.tif")
        assert mode == "I;16"
        assert np.array_equal(values, label.astype(int) - 1)
        seen |= set(np.unique(values).tolist())
    assert {0, 255, 430, 458} <= seen
    dataset = ob.load_dataset("context459", folder.parents[1])
    assert set(np.concatenate([dataset.label(sample).ravel() for sample in dataset.samples]).tolist()) == seen


def test_an_unlabelled_pixel_of_context459_is_ignored(tmp_path):
    folder = make("context459", tmp_path)
    path, target = folder / "raw/trainval/2008_000003.mat", folder / "annotations_detectron2/pc459_val/2008_000003.tif"
    label = matlab_in(path.read_bytes(), "LabelMap")
    label[:3] = 0
    path.write_bytes(matlab(LabelMap=label))
    target.unlink()
    prepare("context459", tmp_path, quiet=True, workers=1)
    dataset = ob.load_dataset("context459", tmp_path)
    assert (dataset.label(dataset.samples[0])[:3] == 65535).all()


def test_context_takes_a_list_of_ones_own(tmp_path):
    MINIATURES["context60"](tmp_path)
    listed = tmp_path / "VOCdevkit/VOC2010/raw/pascalcontext_val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("2010_000018\n2008_000009\n")
    prepare("context60", tmp_path, quiet=True, workers=1)
    assert [sample.id for sample in ob.load_dataset("context60", tmp_path).samples] == ["2008_000009", "2010_000018"]


def test_coco_stuff_has_mmsegs_ids(made):
    folder, table = made("coco_stuff"), mmsegs_table("coco_stuff164k.py")
    names = [path.stem for path in (folder / "images/val2017").glob("*.jpg")]
    assert len(names) == 4
    for name in names:
        label = archived(folder.parent / "stuffthingmaps_trainval2017.zip", f"val2017/{name}.png")
        values, mode = stored(folder / f"annotations/val2017/{name}_labelTrainIds.png")
        assert mode == "L"
        assert np.array_equal(values, naive(label, table))
    assert not (folder / "annotations/train2017").exists()


def test_coco_object_has_things_only_and_ignores_nothing(made):
    folder, stuff = made("coco_object"), mmsegs_table("coco_stuff164k.py")
    table = {value: stuff[value] + 1 if value <= 90 else 0 for value in stuff}
    seen = set()
    for path in (folder / "images/val2017").glob("*.jpg"):
        label = archived(folder.parent / "stuffthingmaps_trainval2017.zip", f"val2017/{path.stem}.png")
        values, _ = stored(folder / f"annotations/val2017/{path.stem}_instanceTrainIds.png")
        assert np.array_equal(values, naive(label, table))
        assert (values[label == 255] == 0).all()
        seen |= set(np.unique(values).tolist())
    assert {0, 1, 80} <= seen <= set(range(81))


def test_coco_stuff10k_has_mmsegs_ids(made):
    folder, table = made("coco_stuff10k"), mmsegs_table("coco_stuff10k.py")
    with zipfile.ZipFile(folder.parent / "cocostuff-10k-v1.1.zip") as file:
        names = file.read("imageLists/test.txt").decode().split()
        for name in names:
            label = matlab_in(file.read(f"annotations/{name}.mat"), "S")
            values, _ = stored(folder / f"annotations/test2014/{name}_labelTrainIds.png")
            assert np.array_equal(values, naive(label, table))
            assert (folder / f"images/test2014/{name}.jpg").read_bytes() == file.read(f"images/{name}.jpg")
    assert sorted(path.stem for path in (folder / "images/test2014").iterdir()) == sorted(names)
    assert "COCO_train2014_000000000077" not in names


def ade_ids(colours):
    return [[int(red) // 10 * 256 + int(green) for red, green, _ in row] for row in colours]


def test_ade847_reads_classes_from_colours(made):
    folder = made("ade847")
    maps = sorted((folder / "images/ADE/validation").rglob("ADE_val_*_seg.png"))
    assert len(maps) == 3
    for path in maps:
        name = path.name.removesuffix("_seg.png")
        values, mode = stored(folder / f"annotations_detectron2/validation/{name}.tif")
        assert mode == "I;16"
        assert np.array_equal(values, naive(ade_ids(stored(path)[0]), ADE))
        image = Image.open(folder / f"images_detectron2/validation/{name}.jpg")
        assert image.size == values.shape[::-1]
    for kind in ("images", "annotations"):
        assert len(list((folder / f"{kind}_detectron2/validation").iterdir())) == 3


def test_the_847_ids_are_distinct_and_in_the_order_of_the_classes():
    lines = (DATASET_FACTS / "ids/ade847_ids.txt").read_text().split()
    assert len(set(lines)) == len(lines) == len(dataset_config("ade847")[1]["classes"]) == 847
    names = {"wall": 2978, "sky": 2420, "bed": 165, "pier": 1857}
    assert {name: int(lines[dataset_config("ade847")[1]["classes"].index(name)]) for name in names} == names


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 2000), (512, 2000)),
        ((300, 400), (300, 400)),
        ((600, 700), (512, 597)),
        ((700, 600), (597, 512)),
        ((513, 513), (512, 512)),
        ((1024, 1365), (512, 682)),  # 682.5 is rounded to the even number
        ((1024, 1367), (512, 684)),
    ],
)
def test_ade847_reduces_the_short_side_to_512(size, expected):
    assert reduced(size) == expected


def test_ade847_reduces_images_smoothly_and_labels_to_the_nearest(tmp_path):
    image, label = scene(7, [2978, 312, 2420, 1, 1831], (600, 700))
    paths = [tmp_path / name for name in ("ADE_val_1.jpg", "ADE_val_1_seg.png", "image.jpg", "label.tif")]
    Image.fromarray(image).save(paths[0], quality=95)
    Image.fromarray(full_colours(label)).save(paths[1])
    write_pair(*paths)
    rows = [int(row * 600 / 512) for row in range(512)]
    columns = [int(column * 700 / 597) for column in range(597)]
    assert np.array_equal(stored(paths[3])[0], naive(label[np.ix_(rows, columns)], ADE))
    with Image.open(paths[2]) as written:
        again = io.BytesIO()
        smooth = cv2.resize(np.array(Image.open(paths[0])), (597, 512), interpolation=cv2.INTER_LINEAR)
        Image.fromarray(smooth).save(again, "JPEG")
        assert np.array_equal(np.array(written), np.array(Image.open(again)))


def test_cityscapes_has_the_19_train_ids(made):
    folder = made("cityscapes")
    images = sorted((folder / "leftImg8bit/val").rglob("*.png"))
    assert len(images) == 4
    for image in images:
        path = f"gtFine/val/{image.parent.name}/{image.name.replace('leftImg8bit', 'gtFine_labelIds')}"
        label = archived(folder.parent / "gtFine_trainvaltest.zip", path)
        values, mode = stored(str(folder / path).replace("labelIds", "labelTrainIds"))
        assert mode == "L"
        assert np.array_equal(values, naive(label, CITYSCAPES))
    assert not (folder / "gtFine/train").exists()


def test_cityscapes_polygons_give_the_same_as_ids(tmp_path, made):
    folder = tmp_path / "cityscapes"
    shutil.copytree(made("cityscapes"), folder)
    expected = {path: path.read_bytes() for path in (folder / "gtFine").rglob("*_labelTrainIds.png")}
    for path in [*expected, *(folder / "gtFine").rglob("*_labelIds.png")]:
        path.unlink()
    prepare("cityscapes", tmp_path, quiet=True, workers=1)
    assert {path: path.read_bytes() for path in (folder / "gtFine").rglob("*_labelTrainIds.png")} == expected


SQUARE = [[2, 2], [5, 2], [5, 6], [2, 6]]


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ({"label": "car"}, 13),
        ({"label": "cargroup"}, 13),
        ({"label": "polegroup"}, 255),  # a class of its own, not a group of poles
        ({"label": "pole"}, 5),
        ({"label": "out of roi"}, 255),
        ({"label": "license plate"}, 0),
        ({"label": "car", "deleted": 1}, 0),
        ({"label": "car", "deleted": 0}, 13),
    ],
)
def test_cityscapes_draws_polygons_in_order(item, value, tmp_path):
    everything = {"label": "road", "polygon": [[0, 0], [9, 0], [9, 7], [0, 7]]}
    annotation = {"imgHeight": 8, "imgWidth": 10, "objects": [everything, item | {"polygon": SQUARE}]}
    (tmp_path / "x.json").write_text(json.dumps(annotation))
    expected = np.zeros((8, 10))
    expected[2:7, 2:6] = value
    assert np.array_equal(from_polygons(tmp_path / "x.json"), expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            json.dumps({"imgHeight": 8, "imgWidth": 10, "objects": [{"label": "tram", "polygon": SQUARE}]}),
            "FILE has an object 'tram'",
        ),
        (json.dumps({"imgHeight": 8, "objects": []}), "polygon file .*FILE cannot be read: .*imgWidth"),
        (json.dumps([1, 2]), "polygon file .*FILE cannot be read"),
        ('{"imgHeight": 8, "imgWi', "polygon file .*FILE cannot be read"),
    ],
)
def test_cityscapes_names_a_bad_polygon_file(text, said, tmp_path, made):
    folder = tmp_path / "cityscapes"
    shutil.copytree(made("cityscapes"), folder)
    stem = "gtFine/val/lindau/lindau_000001_000019_gtFine"
    (folder / f"{stem}_labelIds.png").unlink()
    (folder / f"{stem}_labelTrainIds.png").unlink()
    (folder / f"{stem}_polygons.json").write_text(text)
    said = said.replace("FILE", r"lindau_000001_000019_gtFine_polygons\.json")
    with pytest.raises(ob.OvssError, match=rf"(?s)1 of 1 files.*{said}"):
        prepare("cityscapes", tmp_path, quiet=True, workers=1)
