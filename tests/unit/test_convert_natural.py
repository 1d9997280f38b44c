"""Conversion of the natural-image data sets: every label worked out again, pixel by pixel, from tables of other sources."""

import ast
import io
import json
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import cv2
import mmseg
import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import Cityscapes

import ovss_bench as ob
from miniatures import MINIATURES
from miniatures.ade import full_colours
from miniatures.context import matlab
from miniatures.drawing import scene
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.layout import prepared_folder
from ovss_bench.datasets.prepare.conversion import CONVERTERS
from ovss_bench.datasets.prepare.converters.ade import reduced, write_pair
from ovss_bench.datasets.prepare.converters.cityscapes import from_polygons
from ovss_bench.datasets.prepare.converters.context import CONTEXT_60
from ovss_bench.datasets.prepare.run import prepare
from ovss_bench.files import DATASET_FACTS

MMSEG = Path(mmseg.__file__).parent / ".mim/tools/dataset_converters"
CONVERTED = ["context60", "context459", "coco_stuff", "coco_object", "coco_stuff10k", "ade847", "cityscapes"]


def make(name, root):
    """The miniature, prepared, and its folder."""
    MINIATURES[name](root)
    prepare(name, root, quiet=True, workers=1)
    return prepared_folder(dataset_config(name)[1], root)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made(name)`: a prepared miniature that is not to be written to."""
    folders = {}

    def of(name):
        if name not in folders:
            folders[name] = make(name, tmp_path_factory.mktemp(name))
        return folders[name]

    return of


def outputs(name, folder):
    return [
        target for task in CONVERTERS.get(dataset_config(name)[1]["prepare"]["converter"])(folder) for target in task.targets
    ]


def naive(label, table):
    return np.array([[table[int(value)] for value in row] for row in label])


def stored(path):
    """What a label file holds, its values and its mode."""
    with Image.open(path) as image:
        return np.array(image), image.mode


def archived(path, name):
    with zipfile.ZipFile(path) as file:
        return np.array(Image.open(io.BytesIO(file.read(name))))


def matlab_in(data, field):
    from scipy.io import loadmat

    return loadmat(io.BytesIO(data))[field]


def context_maps(root):
    with tarfile.open(root / "trainval.tar.gz") as file:
        names = [name for name in file.getnames() if "2008_000002" not in name]
        return {Path(name).stem: matlab_in(file.extractfile(name).read(), "LabelMap") for name in names}


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


ADE = {2978: 0, 312: 1, 2420: 2, 2855: 3, 976: 5, 447: 6, 165: 7, 1831: 11, 1857: 255, 3148: 846, 1: 65535, 600: 65535}


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


CITYSCAPES = {entry.id: entry.train_id for entry in Cityscapes.classes}


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
    from_polygons(tmp_path / "x.json", tmp_path / "x.png")
    expected = np.zeros((8, 10))
    expected[2:7, 2:6] = value
    assert np.array_equal(stored(tmp_path / "x.png")[0], expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps({"imgHeight": 8, "imgWidth": 10, "objects": [{"label": "tram", "polygon": SQUARE}]}), "an object 'tram'"),
        (json.dumps({"imgHeight": 8, "objects": []}), "imgWidth"),
        (json.dumps([1, 2]), "not a file of polygons"),
        ('{"imgHeight": 8, "imgWi', "not a file of polygons"),
    ],
)
def test_cityscapes_names_a_bad_polygon_file(text, said, tmp_path, made):
    folder = tmp_path / "cityscapes"
    shutil.copytree(made("cityscapes"), folder)
    stem = "gtFine/val/lindau/lindau_000001_000019_gtFine"
    (folder / f"{stem}_labelIds.png").unlink()
    (folder / f"{stem}_labelTrainIds.png").unlink()
    (folder / f"{stem}_polygons.json").write_text(text)
    with pytest.raises(ob.OvssError, match=rf"(?s)1 of 1 files.*lindau_000001_000019_gtFine_polygons\.json.*{said}"):
        prepare("cityscapes", tmp_path, quiet=True, workers=1)


# Where a label comes from, and values that it must not hold.
RAW = {
    "context60": ("raw/trainval/2008_000009.mat", [460, 255 + 256]),
    "context459": ("raw/trainval/2008_000009.mat", [460, 65535]),
    "coco_stuff": ("annotations/val2017/000000000285.png", [11, 90, 182, 254]),
    "coco_object": ("annotations/val2017/000000000285.png", [11, 90, 182, 254]),
    "coco_stuff10k": ("raw/annotations/COCO_train2014_000000000177.mat", [12, 91, 183, 255]),
    "cityscapes": ("gtFine/val/lindau/lindau_000001_000019_gtFine_labelIds.png", [34, 254]),
    "ade847": ("images/ADE/validation/home_or_hotel/bedroom/ADE_val_00000002_seg.png", []),
}
LABEL = {
    "context60": "SegmentationClassContext/2008_000009.png",
    "context459": "annotations_detectron2/pc459_val/2008_000009.tif",
    "coco_stuff": "annotations/val2017/000000000285_labelTrainIds.png",
    "coco_object": "annotations/val2017/000000000285_instanceTrainIds.png",
    "coco_stuff10k": "annotations/test2014/COCO_train2014_000000000177_labelTrainIds.png",
    "cityscapes": "gtFine/val/lindau/lindau_000001_000019_gtFine_labelTrainIds.png",
    "ade847": "annotations_detectron2/validation/ADE_val_00000002.tif",
}


@pytest.fixture
def own(tmp_path, made):
    """`own(name)`: a copy of a prepared miniature, without one label; its root and folder, the raw file, and the label."""

    def of(name):
        folder = made(name)
        root = folder.parents[1] if name.startswith("context") else folder.parent
        shutil.copytree(root, tmp_path / "root")
        folder = tmp_path / "root" / folder.relative_to(root)
        (folder / LABEL[name]).unlink()
        return tmp_path / "root", folder, folder / RAW[name][0], folder / LABEL[name]

    return of


def write_raw(path, label):
    if path.suffix == ".mat":
        path.write_bytes(matlab(**{"S" if "COCO" in path.name else "LabelMap": label}))
    else:
        Image.fromarray(label.astype(np.uint8)).save(path)


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
    with pytest.raises(ob.OvssError, match=r"ADE_val_00000002_seg\.png are not of the same size"):
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
