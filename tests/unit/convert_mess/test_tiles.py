"""MESS: tiles and splits."""

import numpy as np
import pytest
from PIL import Image

import ovss_bench as ob
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.prepare import converters  # noqa: F401
from ovss_bench.datasets.prepare.converters.mess import CWFID_TEST, grid, tiles

from .common import VALUES, naive, read, times

# The raw image and label map, and the names of the wide, the small and the high image that are cut.
WHOLE = {
    "mess_isaid": (
        "isaid/raw/images/{}.png",
        "isaid/raw/Semantic_masks/{}_instance_color_RGB.png",
        ["P0003", "P0004", "P0007"],
    ),
    "mess_potsdam": (
        "ISPRS_Potsdam/raw/3_Ortho_IRRG/3_Ortho_IRRG/top_potsdam_{}_IRRG.tif",
        "ISPRS_Potsdam/raw/5_Labels_all/top_potsdam_{}_label.tif",
        ["2_13", None, "7_13"],
    ),
    "floodnet": (
        "FloodNet-Supervised_v1.0/test/test-org-img/{}.jpg",
        "FloodNet-Supervised_v1.0/test/test-label-img/{}_lab.png",
        ["6412", "7301", "10165"],
    ),
    "mess_uavid": (
        "uavid_v1.5/uavid_val/{}/Images/000000.png",
        "uavid_v1.5/uavid_val/{}/Labels/000000.png",
        ["seq16", None, "seq17"],
    ),
}


# Number of a tile -> its rows and columns, of these three.
BOXES = [
    {0: ((0, 64), (0, 1024)), 1: ((0, 64), (1024, 1060))},
    {0: ((0, 80), (0, 96))},
    {0: ((0, 1024), (0, 60)), 1: ((1024, 1040), (0, 60))},
]


# Tiles.


@pytest.mark.parametrize("name", WHOLE)
def test_tiles_are_where_they_belong(name, ready):
    root, (image_path, label_path, stems) = ready(name), WHOLE[name]
    dataset = ob.load_dataset(name, root)
    samples = {sample.id: sample for sample in dataset.samples}
    expected = set()
    for stem, boxes in zip(stems, BOXES, strict=True):
        if stem is None:
            continue
        image = np.array(Image.open(root / image_path.format(stem)).convert("RGB"))
        whole = naive(read(root / label_path.format(stem)), VALUES[name])
        for number, ((top, bottom), (left, right)) in boxes.items():
            key = f"{stem}_000000_{number}" if name == "mess_uavid" else f"{stem}_{number}"
            expected.add(key)
            padded, picture = np.full((1024, 1024), 255), np.zeros((1024, 1024, 3), np.uint8)
            padded[: bottom - top, : right - left] = whole[top:bottom, left:right]
            picture[: bottom - top, : right - left] = image[top:bottom, left:right]
            assert np.array_equal(dataset.label(samples[key]), padded), key
            found = dataset.image(samples[key]).astype(int)
            if name == "floodnet":  # a JPEG file again
                assert samples[key].image_path.read_bytes().startswith(b"\xff\xd8")
                assert np.abs(found - picture).mean() < 2
            else:
                assert np.array_equal(found, picture), key
    assert set(samples) == expected


def test_potsdam_has_the_same_labels_under_both_kinds_of_images(ready):
    root = ready("mess_potsdam")
    before = times(root)
    infrared, visible = (ob.load_dataset(name, ready(name)) for name in ("mess_potsdam", "mess_potsdam_rgb"))
    assert {path: times(root)[path] for path in before} == before
    assert infrared.fingerprint != visible.fingerprint
    for one, other in zip(infrared.samples, visible.samples, strict=True):
        assert one.label_path == other.label_path
        assert np.array_equal(infrared.image(one), visible.image(other)[..., [1, 0, 2]])


def test_tiles_go_row_by_row(tmp_path):
    """Four quadrants, of which only the first is a full tile."""
    label = np.zeros((1030, 1034), np.uint8)
    label[:1024, 1024:], label[1024:, :1024], label[1024:, 1024:] = 1, 2, 3
    for path in ("image.png", "label.png"):
        Image.fromarray(label).save(tmp_path / path)
    for task in tiles([("a", tmp_path / "image.png", tmp_path / "label.png")], tmp_path, "val", read):
        task.make(*task.arguments)
    for number, (height, width) in enumerate([(1024, 1024), (1024, 10), (6, 1024), (6, 10)]):
        expected = np.full((1024, 1024), 255)
        expected[:height, :width] = number
        assert np.array_equal(read(tmp_path / f"annotations_detectron2/val/a_{number}.png"), expected)
        assert read(tmp_path / f"images_detectron2/val/a_{number}.png").shape == (1024, 1024, 3)


@pytest.mark.parametrize(
    ("size", "number", "last"),
    [
        ((6000, 6000), 36, 5120),
        ((2160, 3840), 12, 3072),
        ((3000, 4000), 12, 3072),
        ((3072, 4592), 15, 4096),
        ((1024, 1024), 1, 0),
    ],
)
def test_tiles_of_full_size_images_are_counted(size, number, last):
    places = grid(size)
    assert len(places) == number
    assert places[-1][2:] == (last, last + 1024)
    assert [left for _, _, left, _ in places if left < 1024] == [0] * (-(-size[0] // 1024))


def test_whole_data_sets_have_as_many_tiles_as_mess_says():
    assert dataset_config("mess_potsdam")[1]["expected_images"] == 14 * len(grid((6000, 6000)))
    assert dataset_config("mess_uavid")[1]["expected_images"] == 70 * len(grid((2160, 3840)))
    assert dataset_config("cwfid")[1]["expected_images"] == len(set(CWFID_TEST)) == 21


# Which images, and as what.


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("bdd100k", ["7d06fefd-f7be05a6", "7d128593-0ccfea4c", "8a0d7a2b-1b7c62d5", "9aa94005-ff1d4c9a"]),
        ("mhp_v1", ["0004", "0017", "1201"]),
        ("atlantis", ["2001", "2002", "3001", "4001"]),
        ("chase_db1", ["Image_05L", "Image_05R", "Image_06L"]),
        ("kvasir_instrument", ["ckcu8ty6z00003b5yzfaezbs5", "ckcuajp4x00053b5y6a29jm3k", "ckcub1tw000073b5y9w3kr4nv"]),
        ("cwfid", ["001", "003", "060"]),
    ],
)
def test_training_images_are_left_out(name, ids, ready):
    assert [sample.id for sample in ob.load_dataset(name, ready(name)).samples] == ids


def test_images_that_mess_leaves_as_they_are_are_the_same_files(ready):
    root = ready("paxray_bones") / "paxray_dataset"
    assert (root / "images_detectron2/test/0c2d.png").read_bytes() == (root / "images/0c2d.png").read_bytes()
