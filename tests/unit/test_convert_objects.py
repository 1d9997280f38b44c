"""Masks of buildings, roads and water: what is made of the official files, and what is said about wrong ones."""

import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

import ovss_bench as ob
from miniatures.objects import MINIATURES
from ovss_bench.datasets.check.run import check
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.prepare import converters  # noqa: F401
from ovss_bench.datasets.prepare.converters.objects import binary, listed_images
from ovss_bench.datasets.prepare.run import prepare

IDS = {
    "whu_aerial": ["1", "11", "2"],
    "whu_sat_ii": ["100", "101", "2000"],
    "inria": ["tyrol-w25_0_0_1000_1000", "vienna3_0_0_1000_1000", "vienna3_1000_0_2000_1000"],
    "xbd": [
        "guatemala-volcano_00000003_pre_disaster",
        "hurricane-florence_00000011_pre_disaster",
        "socal-fire_00000007_pre_disaster",
    ],
    "chn6_cug": ["am100001", "bj100002", "sh100003"],
    "deepglobe_road": ["1038", "104", "99987"],
    "massachusetts_road": ["10378780_15", "10828720_15", "26278840_15"],
    "spacenet_road": ["AOI_2_PS-RGB_img74", "AOI_3_PS-RGB_img111", "AOI_5_PS-RGB_img185"],
    "wbs_si": ["water_body_2396", "water_body_1074", "water_body_791"],
}
# The mask of an id, below the data set's folder.
MASKS = {
    "whu_aerial": "val/label/{}.png",
    "whu_sat_ii": "1.cropped/test/label/{}.tif",
    "inria": "raw/train/gt/{}.tif",
    "xbd": "targets/{}_target.png",
    "chn6_cug": "label/{}_mask.png",
    "deepglobe_road": "label/{}_mask.png",
    "massachusetts_road": "label/{}.png",
    "spacenet_road": "label/{}.png",
    "wbs_si": "Masks/{}.jpg",
}


def prepared(name, root):
    MINIATURES[name](root)
    prepare(name, root, quiet=True, workers=1)
    return ob.load_dataset(name, root)


def files_of(dataset):
    folders = [dataset.root / dataset.config[key] for key in ("images", "labels")] + [dataset.root / "val.txt"]
    paths = [path for folder in folders for path in ([folder] if folder.is_file() else folder.rglob("*.*"))]
    return {path: path.stat().st_mtime_ns for path in paths}


@pytest.mark.parametrize("name", MINIATURES)
def test_labels_are_one_where_masks_are_bright(name, tmp_path):
    dataset = prepared(name, tmp_path)
    assert [sample.id for sample in dataset.samples] == IDS[name]
    brightest = set()
    for sample in dataset.samples:
        key, left = (sample.id.split("_")[0], int(sample.id.split("_")[1])) if name == "inria" else (sample.id, 0)
        mask = cv2.imread(str(dataset.root / MASKS[name].format(key)), cv2.IMREAD_GRAYSCALE)[:, left : left + 1000]
        brightest |= set(mask.ravel().tolist())
        expected = (mask > 0 if name == "xbd" else mask > 127).astype(int)
        stored = np.array(Image.open(sample.label_path))
        assert stored.dtype == np.uint8
        assert np.array_equal(stored, expected)
        assert np.array_equal(dataset.label(sample, dataset.image(sample).shape[:2]), expected)
    assert brightest >= ({0, 1} if name == "xbd" else {0, 127, 128, 255})
    assert {path.name for path in (dataset.root / dataset.config["labels"]).iterdir()} == {
        sample.label_path.name for sample in dataset.samples
    }


@pytest.mark.parametrize("name", MINIATURES)
def test_folders_may_have_other_names(name, tmp_path):
    """Those that are in use for images and masks: here the last of each that the configuration lists."""
    names = dataset_config(name)[1]["prepare"]["raw"]
    for kind, known in zip(names, ({"images", "image", "img"}, {"gt", "label", "labels", "mask", "masks"}), strict=True):
        assert known <= {folder.rpartition("/")[2] for folder in kind}
    intact = prepared(name, tmp_path / "intact")
    folder = tmp_path / "other" / dataset_config(name)[1]["folders"][0]
    MINIATURES[name](tmp_path / "other")
    for kind in names:
        (there,) = [path for path in kind if (folder / path).is_dir()]
        (folder / there).rename(folder / kind[-1])
    prepare(name, tmp_path / "other", quiet=True, workers=1)
    dataset = ob.load_dataset(name, tmp_path / "other")
    assert dataset.fingerprint == intact.fingerprint
    findings = check(name, tmp_path / "other", workers=1, quiet=True).findings
    assert {finding.kind for finding in findings} <= {"number of images"}


def test_aerial_images_may_be_tiff(tmp_path):
    """Of WHU: the same labels as from PNG, also where the label maps are TIFF, as SegEarth-OV's converter leaves them."""
    intact = prepared("whu_aerial", tmp_path / "png")
    folder = tmp_path / "tif/WHU-BD/val"
    shutil.copytree(tmp_path / "png/WHU-BD/val", folder)
    shutil.rmtree(folder / "label_cvt")
    for path in folder.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".tif"))
        path.unlink()
    prepare("whu_aerial", tmp_path / "tif", quiet=True, workers=1)

    def labels(dataset):
        return {sample.id: dataset.label(sample, dataset.image(sample).shape[:2]).tobytes() for sample in dataset.samples}

    assert labels(ob.load_dataset("whu_aerial", tmp_path / "tif")) == labels(intact)
    assert {path.suffix for path in (folder / "label_cvt").iterdir()} == {".png"}
    for path in (folder / "label_cvt").iterdir():
        Image.open(path).save(path.with_suffix(".tif"))
        path.unlink()
    assert labels(ob.load_dataset("whu_aerial", tmp_path / "tif")) == labels(intact)


@pytest.mark.parametrize("name", ["chn6_cug", "deepglobe_road", "xbd"])
def test_images_are_copied_under_the_names_of_their_labels(name, tmp_path):
    dataset = prepared(name, tmp_path)
    source = "images/{}.png" if name == "xbd" else "image/{}_sat.jpg"
    for sample in dataset.samples:
        assert sample.image_path.read_bytes() == (dataset.root / source.format(sample.id)).read_bytes()


def test_inria_tiles_are_pieces_of_the_images(tmp_path):
    dataset = prepared("inria", tmp_path)
    whole = np.array(Image.open(dataset.root / "raw/train/images/vienna3.tif"))
    assert np.array_equal(dataset.image(dataset.samples[1]), whole[:, :1000])
    assert np.array_equal(dataset.image(dataset.samples[2]), whole[:, 1000:])


def test_inria_lists_27_images_of_25_tiles(tmp_path):
    for number in range(1, 37):
        for city in ("austin", "chicago", "kitsap", "tyrol-w", "vienna"):
            (tmp_path / f"{city}{number}.tif").touch()
    ids = listed_images("inria_split_test.txt", tmp_path, ".tif")
    assert len(set(ids)) == 27
    assert 25 * len(ids) == dataset_config("inria")[1]["expected_images"]
    assert (ids[0], ids[-1]) == ("vienna3", "tyrol-w36")


def test_wbs_si_lists_499_images(tmp_path):
    for number in range(9500):
        (tmp_path / f"water_body_{number}.jpg").touch()
    ids = listed_images("wbs_si_val.txt", tmp_path, ".jpg")
    assert len(set(ids)) == len(ids) == dataset_config("wbs_si")[1]["expected_images"]
    assert ids[:3] == ["water_body_2396", "water_body_1074", "water_body_2182"]


def test_the_list_of_wbs_si_grows_with_its_images(tmp_path):
    MINIATURES["wbs_si"](tmp_path)
    image = tmp_path / "WBS-SI/Images/water_body_1074.jpg"
    content = image.read_bytes()
    image.unlink()
    prepare("wbs_si", tmp_path, quiet=True)
    assert len(ob.load_dataset("wbs_si", tmp_path).samples) == 2
    image.write_bytes(content)
    prepare("wbs_si", tmp_path, quiet=True)
    assert [sample.id for sample in ob.load_dataset("wbs_si", tmp_path).samples] == IDS["wbs_si"]


@pytest.mark.parametrize("name", MINIATURES)
def test_a_second_run_does_nothing_and_an_interrupted_one_goes_on(name, tmp_path):
    dataset = prepared(name, tmp_path)
    before = files_of(dataset)
    prepare(name, tmp_path, quiet=True, workers=1)
    assert files_of(dataset) == before
    lost = dataset.samples[1].label_path
    content = lost.read_bytes()
    lost.unlink()
    prepare(name, tmp_path, quiet=True, workers=1)
    assert lost.read_bytes() == content
    assert {path for path, time in files_of(dataset).items() if before[path] != time} <= {
        sample.label_path for sample in dataset.samples if sample.id.startswith("vienna3")
    } | {lost}


@pytest.mark.parametrize("name", MINIATURES)
def test_masks_may_go_when_they_are_converted_but_not_before(name, tmp_path):
    dataset = prepared(name, tmp_path)
    mask = dataset.root / MASKS[name].format("vienna3" if name == "inria" else IDS[name][0])
    mask.unlink()
    if name != "inria":  # of which the tiles need the size of the image
        prepare(name, tmp_path, quiet=True)
    dataset.samples[1 if name == "inria" else 0].label_path.unlink()
    with pytest.raises(ob.OvssError, match=rf"(lacks 1 masks|1 files are missing), the first: .*{mask.stem}"):
        prepare(name, tmp_path, quiet=True)


@pytest.mark.parametrize("name", MINIATURES)
def test_missing_images_are_named(name, tmp_path):
    MINIATURES[name](tmp_path)
    folder = tmp_path / dataset_config(name)[1]["folders"][0]
    for path in [*folder.rglob("image"), *folder.rglob("images"), *folder.rglob("img"), *folder.rglob("Images")]:
        shutil.rmtree(path)
    with pytest.raises(ob.OvssError, match=r"there is no \*.* in .*|has none of the (27|499) images"):
        prepare(name, tmp_path, quiet=True)


def test_foreign_masks_are_refused(tmp_path):
    colours = np.zeros((6, 6, 3), np.uint8)
    colours[2:4] = 255, 0, 0
    Image.fromarray(colours).save(tmp_path / "red.png")
    with pytest.raises(ob.OvssError, match=r"red\.png is in colours"):
        binary(tmp_path / "red.png", 128)
    Image.fromarray(colours[..., 0] // 255).save(tmp_path / "ready.png")
    with pytest.raises(ob.OvssError, match=r"ready\.png holds 0 and 1.*already converted"):
        binary(tmp_path / "ready.png", 128)
    assert binary(tmp_path / "ready.png", 1).sum() == 12


def test_black_of_a_jpeg_mask_may_be_1(tmp_path):
    """Water bodies come as JPEG, in which a mask without an object need not be 0 everywhere."""
    Image.fromarray(np.ones((16, 16), np.uint8)).save(tmp_path / "black.jpg")
    assert np.array(Image.open(tmp_path / "black.jpg")).max() == 1
    assert not binary(tmp_path / "black.jpg", 128).any()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_masks_may_be_of_any_mode(mode, tmp_path):
    grey = np.zeros((6, 6), np.uint8)
    grey[1:3] = 255
    Image.fromarray(grey).convert(mode).save(tmp_path / "mask.png")
    assert np.array_equal(binary(tmp_path / "mask.png", 128), grey // 255)


@pytest.mark.parametrize("keep", [0, 20, 300])
def test_damaged_masks_are_named(keep, tmp_path):
    MINIATURES["whu_aerial"](tmp_path)
    path = tmp_path / "WHU-BD/val/label/11.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ob.OvssError, match=r"1 of 3 files could not be converted(?s:.*)label/11\.png"):
        prepare("whu_aerial", tmp_path, quiet=True)
