"""The data sets of MESS: values, tiles and names of what is made of raw files, and what is said about wrong ones."""

import io
import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ovss_bench as ob
from miniatures.mess import MINIATURES
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.prepare import converters  # noqa: F401
from ovss_bench.datasets.prepare.converters.mess import CWFID_TEST, grid, tiles
from ovss_bench.datasets.prepare.run import prepare

CONVERTED = [name for name in MINIATURES if "converter" in dataset_config(name)[1]["prepare"]]
AS_THEY_ARE = [name for name in MINIATURES if name not in CONVERTED]


def same(*values):
    return {value: value for value in values}


# From the table of datasets.md; colours as text.
VALUES = {
    "bdd100k": same(*range(19), 255),
    "dark_zurich": {
        **{0: 0, 7: 1, 8: 2, 11: 3, 12: 4, 13: 5, 17: 6, 19: 7, 20: 8, 21: 9, 22: 10, 23: 11, 24: 12, 25: 13, 26: 14, 27: 15},
        **{28: 16, 31: 17, 32: 18, 33: 19},
    },
    "atlantis": {0: 255, **{value: value - 1 for value in range(1, 57)}},
    "dram": {
        **{0: 11, 1: 11, 2: 11, 3: 0, 4: 1, 5: 2, 6: 11, 7: 11, 8: 3, 9: 4, 10: 5, 11: 11, 12: 6, 13: 7, 14: 11, 15: 8},
        **{16: 9, 17: 10, 18: 11, 19: 11, 20: 11, 255: 255},
    },
    "mess_isaid": {
        **{"000000": 0, "00003f": 1, "003f3f": 2, "003f00": 3, "003f7f": 4, "003fbf": 5, "003fff": 6, "007f3f": 7, "007f7f": 8},
        **{"00007f": 9, "0000bf": 10, "0000ff": 11, "00bf7f": 12, "007fbf": 13, "007fff": 14, "00649b": 15},
    },
    "mess_potsdam": {"ffffff": 0, "0000ff": 1, "00ffff": 2, "00ff00": 3, "ffff00": 4, "ff0000": 5}
    | {"fafafa": 0, "0404fa": 1, "04fafa": 2, "04fa04": 3, "fafa04": 4, "fa0404": 5},
    "floodnet": same(*range(10)),
    "mess_uavid": {
        **{"000000": 0, "800000": 1, "804080": 2, "008000": 3, "808000": 4, "400080": 5, "c000c0": 6, "404000": 7},
    },
    "kvasir_instrument": {"000000": 0, "ffffff": 1},
    "chase_db1": {False: 0, True: 1},
    "cryonuseg": {0: 0, 255: 1},
    "deepcrack": {0: 0, 255: 1},
    "suim": {"000000": 0, "0000ff": 1, "00ff00": 2, "00ffff": 3, "ff0000": 4, "ff00ff": 5, "ffff00": 6, "ffffff": 7},
    "cwfid": {"000000": 0, "ff0000": 1, "00ff00": 2},
}
# Where the raw label map of an id lies below the data root, for those of one map per image.
RAW = {
    "bdd100k": "bdd100k/labels/sem_seg/colormaps/val/{}.png",
    "atlantis": "atlantis/masks/test/*/{}.png",
    "kvasir_instrument": "kvasir-instrument/masks/{}.png",
    "chase_db1": "CHASEDB1/raw/{}_1stHO.png",
    "cryonuseg": "CryoNuSeg/raw/masks/{}.png",
    "deepcrack": "DeepCrack/test_lab/{}.png",
    "suim": "SUIM/TEST/masks/{}.bmp",
    "cwfid": "cwfid/annotations/{}_annotation.png",
}
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


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """name -> data root with the prepared data set, not to be written to."""
    roots = {}

    def get(name):
        writer = MINIATURES[name]
        if writer not in roots:
            roots[writer] = tmp_path_factory.mktemp(name)
            writer(roots[writer])
        prepare(name, roots[writer], quiet=True)
        return roots[writer]

    return get


@pytest.fixture
def own(tmp_path):
    """name -> data root with raw files that the test may change, and the data set once it is prepared."""

    def get(name):
        MINIATURES[name](tmp_path)
        return tmp_path

    return get


def made(name, root):
    prepare(name, root, quiet=True, workers=1)
    return ob.load_dataset(name, root)


def labels(dataset):
    return {sample.id: dataset.label(sample) for sample in dataset.samples}


def read(path):
    return np.array(Image.open(path))


def naive(array, values):
    """Pixel by pixel."""
    keys = (lambda pixel: bytes(pixel).hex()) if array.ndim == 3 else (lambda pixel: pixel.item())
    return np.array([[values[keys(pixel)] for pixel in row] for row in array])


def only(root, pattern):
    (path,) = root.glob(pattern)
    return path


def unpack(name, root):
    """The zip archives of the data set, so that what is in them can be changed before it is prepared."""
    for archive in dataset_config(name)[1]["prepare"].get("archives", ()):
        for inside, outside in archive["paths"].items():
            folder = root / dataset_config(name)[1]["folders"][0]
            if archive["file"].endswith(".zip"):
                with zipfile.ZipFile(root / archive["file"]) as file:
                    for member in file.namelist():
                        target = folder / outside / member.removeprefix(f"{inside}/" if inside else "")
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(file.read(member))


def times(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*.*") if path.is_file() and "detectron2" in str(path)}


# Values.


@pytest.mark.parametrize("name", RAW)
def test_every_pixel_has_its_class(name, ready):
    root = ready(name)
    for key, label in labels(ob.load_dataset(name, root)).items():
        assert np.array_equal(label, naive(read(only(root, RAW[name].format(key))), VALUES[name])), key


def test_dark_zurich_ignores_what_is_invalid(ready):
    root = ready("dark_zurich")
    for key, label in labels(ob.load_dataset("dark_zurich", root)).items():
        base = root / f"Dark_Zurich/gt/val/night/GOPR0356/{key}"
        expected = naive(read(f"{base}_gt_labelIds.png"), VALUES["dark_zurich"])
        invalid = read(f"{base}_gt_invGray.png") == 255
        assert invalid.any()
        expected[invalid] = 255
        assert np.array_equal(label, expected)
        assert (label == 0).any(), "unlabelled is a class"


def test_mhp_takes_the_highest_number_of_all_persons(ready):
    root, seen = ready("mhp_v1"), Counter()
    for key, label in labels(ob.load_dataset("mhp_v1", root)).items():
        paths = sorted((root / "LV-MHP-v1/annotations").glob(f"{key}_*.png"))
        expected = np.zeros((72, 96), int)
        for mask in map(read, paths):
            for y, x in np.ndindex(expected.shape):
                expected[y, x] = max(expected[y, x], mask[y, x])
        assert np.array_equal(label, expected)
        seen[len(paths)] += 1
    assert seen == {1: 1, 2: 2}


def test_dram_keeps_eleven_classes_and_puts_the_artist_in_front(ready):
    root = ready("dram")
    found = labels(ob.load_dataset("dram", root))
    assert set(found) == {"juan_gris_1", "juan_gris_2", "ilya_repin_1", "ilya_repin_portrait"}
    for key, label in found.items():
        artist, name = key.rsplit("_", 1)
        raw = only(root, f"DRAM_processed/raw/labels/*/{artist}/{name}.png")
        assert np.array_equal(label, naive(read(raw), VALUES["dram"]))


@pytest.mark.parametrize(("part", "plane"), [("lungs", 0), ("mediastinum", 10), ("bones", 24), ("diaphragm", 163)])
def test_paxray_takes_four_planes(part, plane, ready):
    root = ready(f"paxray_{part}")
    found = labels(ob.load_dataset(f"paxray_{part}", root))
    assert set(found) == {"0a1b", "0c2d", "0e3f"}
    for key, label in found.items():
        masks = np.load(root / f"paxray_dataset/labels/{key}.npy")
        assert masks.shape[0] == 166
        assert label.sum() > 0
        assert np.array_equal(label, masks[plane])


def test_cub_counts_from_the_number_of_the_folder(ready):
    root = ready("cub_200")
    found = labels(ob.load_dataset("cub_200", root))
    birds = {
        "Black_Footed_Albatross_0046_18": 1,
        "Horned_Puffin_0002_100726": 106,
        "Common_Yellowthroat_0003_190521": 200,
    }
    assert set(found) == set(birds)
    for key, number in birds.items():
        raw = read(only(root, f"CUB_200_2011/segmentations/*/{key}.png"))
        assert set(np.unique(raw)) == {0, 51, 128, 204, 255}
        assert np.array_equal(found[key], naive(raw, {0: 0, 51: 0, 128: 0, 204: number, 255: number}))


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
    for task in tiles(read, tmp_path / "image.png", tmp_path / "label.png", "a", tmp_path / "images", tmp_path / "labels"):
        task.make(*task.arguments)
    for number, (height, width) in enumerate([(1024, 1024), (1024, 10), (6, 1024), (6, 10)]):
        expected = np.full((1024, 1024), 255)
        expected[:height, :width] = number
        assert np.array_equal(read(tmp_path / f"labels/a_{number}.png"), expected)
        assert read(tmp_path / f"images/a_{number}.png").shape == (1024, 1024, 3)


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
    places = grid(*size)
    assert len(places) == number
    assert places[-1][2:] == (last, last + 1024)
    assert [left for _, _, left, _ in places if left < 1024] == [0] * (-(-size[0] // 1024))


def test_whole_data_sets_have_as_many_tiles_as_mess_says():
    assert dataset_config("mess_potsdam")[1]["expected_images"] == 14 * len(grid(6000, 6000))
    assert dataset_config("mess_uavid")[1]["expected_images"] == 70 * len(grid(2160, 3840))
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


# Of the data sets whose images MESS saves as JPEG again: an image as it is prepared, and where it comes from.
AGAIN = {
    "mhp_v1": ("LV-MHP-v1/images_detectron2/test/0017.jpg", "LV-MHP-v1/images/0017.jpg"),
    "atlantis": ("atlantis/images_detectron2/test/2001.jpg", "atlantis/images/test/canal/2001.jpg"),
    "dram": (
        "DRAM_processed/images_detectron2/test/juan_gris_1.jpg",
        "DRAM_processed/raw/images/Cubism/juan_gris/1.jpg",
    ),
    "chase_db1": ("CHASEDB1/images_detectron2/test/Image_05L.jpg", "CHASEDB1/raw/Image_05L.jpg"),
    "cub_200": (
        "CUB_200_2011/images_detectron2/test/Black_Footed_Albatross_0046_18.jpg",
        "CUB_200_2011/images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg",
    ),
}


def as_mess_saves_it(path):
    buffer = io.BytesIO()
    Image.open(path).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("name", AGAIN)
def test_images_are_jpeg_again_or_the_original_files(name, own, capsys):
    root, (made_at, raw) = own(name), AGAIN[name]
    prints = set()
    for options, kind in (({}, "mess"), ({"images": "original", "rerun": True}, "original"), ({}, "original")):
        prepare(name, root, workers=1, **options)
        assert f"(images={kind})" in capsys.readouterr().err
        wanted = as_mess_saves_it(root / raw) if kind == "mess" else (root / raw).read_bytes()
        assert (root / made_at).read_bytes() == wanted, kind
        prints.add(ob.load_dataset(name, root).fingerprint)
    assert len(prints) == 2, "the fingerprint tells them apart"
    with pytest.raises(ob.OvssError, match=r"holds images of images=original, and images=mess is asked for. Add rerun=true"):
        prepare(name, root, images="mess", quiet=True)


def test_every_data_set_with_a_choice_of_images_is_tested():
    assert {name for name in MINIATURES if dataset_config(name)[1]["prepare"].get("images")} == set(AGAIN)


def test_a_run_that_goes_on_makes_the_same_kind_of_images(own):
    root = own("atlantis")
    prepare("atlantis", root, images="original", workers=1, quiet=True)
    lost, raw = (root / path for path in AGAIN["atlantis"])
    lost.unlink()
    prepare("atlantis", root, workers=1, quiet=True)
    assert lost.read_bytes() == raw.read_bytes()


@pytest.mark.parametrize("options", [{}, {"images": "mess"}])
def test_images_of_a_kind_that_is_not_recorded_are_not_mixed_in_silence(options, own, capsys):
    """As earlier versions and MESS's own scripts have left them."""
    root = own("atlantis")
    prepare("atlantis", root, images="original", workers=1, quiet=True)
    lost, _ = (root / path for path in AGAIN["atlantis"])
    lost.unlink()
    (lost.parent / ".images").unlink()
    if options:
        with pytest.raises(ob.OvssError, match="of a kind that nobody has recorded, and images=mess is asked for"):
            prepare("atlantis", root, workers=1, **options)
        return
    prepare("atlantis", root, workers=1)
    said = capsys.readouterr().err
    assert "is not recorded; rerun=true makes all of them images=mess" in said
    assert "(images=" not in said


@pytest.mark.parametrize(
    ("name", "images", "said"),
    [
        ("deepcrack", "mess", r"images=mess: deepcrack has one kind of images only; a choice is with atlantis, chase_db1, "),
        ("voc21", "original", "voc21 has one kind of images only"),
        ("demo", "original", "demo has one kind of images only"),
        ("mhp_v1", "jpeg", "unknown kind of images of mhp_v1 'jpeg'. Known: mess, original"),
    ],
)
def test_a_choice_that_a_data_set_does_not_have_is_refused(name, images, said, tmp_path):
    with pytest.raises(ob.OvssError, match=said):
        prepare(name, tmp_path, images=images, quiet=True)


@pytest.mark.parametrize(
    ("name", "raw", "key"),
    [
        ("kvasir_instrument", "kvasir-instrument/images/ckcuajp4x00053b5y6a29jm3k.jpg", "ckcuajp4x00053b5y6a29jm3k"),
        ("cryonuseg", "CryoNuSeg/raw/images/Human_Larynx_02.tif", "Human_Larynx_02"),
    ],
)
def test_images_of_another_format_become_png(name, raw, key, ready):
    root = ready(name)
    dataset = ob.load_dataset(name, root)
    (sample,) = dataset.select(ids=[key])
    assert sample.image_path.suffix == ".png"
    assert np.array_equal(dataset.image(sample), read(root / raw))


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_others_need_no_conversion(name, ready):
    writer_root = ready(name)
    before = sorted(writer_root.rglob("*.*"))
    assert len(labels(made(name, writer_root))) >= 3
    assert [path for path in sorted(writer_root.rglob("*.*")) if path.name != ".lock"] == [
        path for path in before if path.name != ".lock"
    ]


# Borderline values.


def test_bits_are_set_above_128(own):
    root = own("mess_potsdam")
    path = root / "ISPRS_Potsdam/raw/5_Labels_all/top_potsdam_2_13_label.tif"
    unpack("mess_potsdam", root)
    colours = np.zeros((64, 1060, 3), np.uint8)
    colours[:] = (128, 129, 128)
    colours[:9] = (129, 255, 0)
    Image.fromarray(colours).save(path)
    label = labels(made("mess_potsdam", root))["2_13_0"]
    assert set(np.unique(label[:9])) == {4}
    assert set(np.unique(label[9:64])) == {3}


def test_vessels_are_128_and_more(own):
    root = own("chase_db1")
    unpack("chase_db1", root)
    raw = np.tile(np.array([0, 100, 127, 128, 200, 255], np.uint8), (72, 16))
    Image.fromarray(raw).save(root / "CHASEDB1/raw/Image_05L_1stHO.png")
    assert labels(made("chase_db1", root))["Image_05L"][0, :6].tolist() == [0, 0, 0, 1, 1, 1]


def test_isaid_takes_unknown_colours_for_background(own):
    root = own("mess_isaid")
    unpack("mess_isaid", root)
    colours = np.zeros((64, 1060, 3), np.uint8)
    colours[:, :7], colours[:, 7:9] = (1, 2, 3), (0, 100, 155)
    Image.fromarray(colours).save(root / "isaid/raw/Semantic_masks/P0003_instance_color_RGB.png")
    label = labels(made("mess_isaid", root))["P0003_0"]
    assert (label[:64, :7] == 0).all()
    assert (label[:64, 7:9] == 15).all()


# What is not black or white, or of no class, for the odd pixels of a map; and what they become.
ODD_PIXELS = {
    "kvasir_instrument": ("kvasir-instrument/masks/ckcub1tw000073b5y9w3kr4nv.png", [254, 128, 1], 0, "are neither 0 nor 255"),
    "cryonuseg": ("CryoNuSeg/raw/masks/Human_Larynx_02.png", [254, 128, 1], 0, "are neither 0 nor 255"),
    "deepcrack": ("DeepCrack/test_lab/11111.png", [254, 128, 1], 0, "are neither 0 nor 255"),
    "mess_potsdam": (
        "ISPRS_Potsdam/raw/5_Labels_all/top_potsdam_2_13_label.tif",
        [(128, 90, 10), (200, 0, 200), (0, 0, 0)],
        255,
        "have a colour of no class",
    ),
    "cwfid": ("cwfid/annotations/003_annotation.png", [(254, 0, 0), (0, 0, 255), (9, 9, 9)], 255, "have a colour of no class"),
    "mess_uavid": (
        "uavid_v1.5/uavid_val/seq16/Labels/000000.png",
        [(128, 10, 0), (1, 1, 1), (255, 255, 255)],
        255,
        "have a value of no class",
    ),
}


@pytest.mark.parametrize("name", ODD_PIXELS)
def test_a_few_odd_pixels_are_counted_and_do_not_block_the_set(name, own, capsys):
    root = own(name)
    unpack(name, root)
    path, odd, wanted, said = ODD_PIXELS[name]
    raw = read(root / path)
    before = raw.copy()
    for number, value in enumerate(odd):
        raw[5, 3 + number] = value
    Image.fromarray(raw).save(root / path)
    prepare(name, root, workers=1)
    message = capsys.readouterr().err
    assert f"note: 3 pixels of 1 label maps {said}" in message
    assert Path(path).name in message
    dataset = ob.load_dataset(name, root)
    first = {"mess_potsdam": "2_13_0", "mess_uavid": "seq16_000000_0"}.get(name)
    key = first or next(sample.id for sample in dataset.samples if Path(path).stem.removesuffix("_annotation") == sample.id)
    label = labels(dataset)[key]
    assert label[5, 3:6].tolist() == [wanted] * 3
    height, width = min(label.shape[0], before.shape[0]), min(label.shape[1], before.shape[1])
    expected = naive(before, VALUES[name])[:height, :width]
    expected[5, 3:6] = wanted
    assert np.array_equal(label[:height, :width], expected)


@pytest.mark.parametrize("name", ["kvasir_instrument", "cryonuseg", "deepcrack"])
def test_grey_outlines_of_masks_are_black(name, own):
    """As interpolation leaves them: many pixels, but fewer than are white."""
    root = own(name)
    path = root / ODD_PIXELS[name][0]
    mask = np.zeros((72, 96), np.uint8)
    mask[10:60, 10:60] = 100
    mask[15:55, 15:55] = 255
    Image.fromarray(mask).save(path)
    label = labels(made(name, root))[path.stem]
    assert np.array_equal(label, mask == 255)


# Wrong and missing files.


@pytest.mark.parametrize(
    ("name", "lost", "said"),
    [
        ("bdd100k", "bdd100k/labels", r"no \*\.png in .*colormaps/val"),
        ("dark_zurich", "Dark_Zurich/gt", r"no \*_gt_labelIds\.png in .*GOPR0356"),
        ("dark_zurich", "Dark_Zurich/gt/val/night/GOPR0356/GOPR0356_frame_000326_gt_invGray.png", "frame_000326_gt_invGray"),
        ("mhp_v1", "LV-MHP-v1/test_list.txt", "test_list.txt"),
        ("mhp_v1", "LV-MHP-v1/images/0017.jpg", r"images/0017\.jpg"),
        ("mhp_v1", "LV-MHP-v1/annotations/0004_01_01.png", r"no 0004_\*\.png in .*annotations"),
        ("mhp_v1", "LV-MHP-v1/annotations", r"no \*\.png in .*annotations"),
        ("atlantis", "atlantis/images", r"no \*\*/\*\.jpg in .*images/test"),
        ("atlantis", "atlantis/masks/test/fjord/4001.png", "masks/test/fjord/4001.png"),
        ("dram", "DRAM_processed/raw/images", r"no \*\*/\*\.jpg in .*raw/images"),
        ("dram", "DRAM_processed/raw/labels/Cubism/juan_gris/2.png", "raw/labels/Cubism/juan_gris/2.png"),
        ("mess_isaid", "isaid/raw/Semantic_masks/P0004_instance_color_RGB.png", "P0004_instance_color_RGB.png"),
        (
            "mess_potsdam",
            "ISPRS_Potsdam/raw/3_Ortho_IRRG/3_Ortho_IRRG/top_potsdam_7_13_IRRG.tif",
            "no top_potsdam_7_13_IRRG.tif",
        ),
        ("floodnet", "FloodNet-Supervised_v1.0/test/test-org-img", r"no \*\.jpg in .*test-org-img"),
        ("floodnet", "FloodNet-Supervised_v1.0/test/test-label-img/7301_lab.png", "7301_lab.png"),
        ("mess_uavid", "uavid_v1.5/uavid_val", r"no \*/Images/\*\.png in .*uavid_val"),
        ("mess_uavid", "uavid_v1.5/uavid_val/seq17/Labels", "seq17/Labels/000000.png"),
        ("kvasir_instrument", "kvasir-instrument/test.txt", "test.txt"),
        ("kvasir_instrument", "kvasir-instrument/images", "no ckcu8ty6z00003b5yzfaezbs5.jpg or .png in .*images"),
        ("kvasir_instrument", "kvasir-instrument/masks/ckcub1tw000073b5y9w3kr4nv.png", "masks/ckcub1tw000073b5y9w3kr4nv.png"),
        ("chase_db1", "CHASEDB1/raw/Image_05R_1stHO.png", "Image_05R_1stHO.png"),
        ("cryonuseg", "CryoNuSeg/raw/masks/Human_Larynx_02.png", "no Human_Larynx_02.png or .tif in .*masks"),
        ("paxray_lungs", "paxray_dataset/paxray.json", r"no paxray\.json in .*paxray_dataset"),
        ("paxray_bones", "paxray_dataset/labels/0c2d.npy", "labels/0c2d.npy"),
        ("deepcrack", "DeepCrack/test_lab", r"no \*\.png in .*test_lab"),
        ("suim", "SUIM/TEST/masks", r"no \*\.bmp in .*TEST/masks"),
        ("cwfid", "cwfid/images/003_image.png", "images/003_image.png"),
        ("cwfid", "cwfid/annotations", r"no \*_annotation\.png in .*annotations"),
    ],
)
def test_missing_raw_files_are_named(name, lost, said, own):
    root = own(name)
    unpack(name, root)
    path = root / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ob.OvssError, match=said):
        prepare(name, root, quiet=True, workers=1)
    with pytest.raises(ob.OvssError):
        _ = ob.load_dataset(name, root).samples


def test_missing_archives_are_named(tmp_path):
    with pytest.raises(
        ob.OvssError, match=r"(?s)segmentations\.tgz.*CUB_200_2011/segmentations.*non-commercial.*vision\.caltech"
    ):
        prepare("cub_200", tmp_path, quiet=True)
    with pytest.raises(ob.OvssError, match=r"(?s)5_Labels_all\.zip.*ISPRS_Potsdam/raw/5_Labels_all.*after a request"):
        prepare("mess_potsdam_rgb", tmp_path, quiet=True)


@pytest.mark.parametrize("name", ["mess_potsdam", "cwfid"])
def test_training_images_only_are_refused(name, own):
    root = own(name)
    unpack(name, root)
    for path in [*root.rglob("*[27]_13_label.tif"), *root.rglob("0[06][013]_annotation.png")]:
        path.unlink()
    with pytest.raises(ob.OvssError, match="of the test split" if name == "cwfid" else "of the val split"):
        prepare(name, root, quiet=True, workers=1)


def grey(*values):
    return np.tile(np.array(values, np.uint8), (72, 96 // len(values)))


def colour(*value):
    return np.full((72, 96, 3), value, np.uint8)


@pytest.mark.parametrize(
    ("name", "path", "content", "said"),
    [
        ("bdd100k", "bdd100k/labels/sem_seg/colormaps/val/7d06fefd-f7be05a6.png", grey(3, 19), r"values \[19\]"),
        ("bdd100k", "bdd100k/labels/sem_seg/colormaps/val/7d06fefd-f7be05a6.png", colour(128, 64, 128), "3 channels"),
        ("dark_zurich", "Dark_Zurich/gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_labelIds.png", grey(0, 1), r"values \[1\]"),
        ("dark_zurich", "Dark_Zurich/gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_invGray.png", grey(0, 1).T, "another size"),
        ("mhp_v1", "LV-MHP-v1/annotations/0017_02_02.png", grey(0, 19), r"0017_02_02\.png holds the values \[19\]"),
        ("mhp_v1", "LV-MHP-v1/annotations/0017_02_02.png", grey(0, 9).T, "0017_02_02.png has another size"),
        ("atlantis", "atlantis/masks/test/canal/2001.png", grey(0, 57), r"values \[57\]"),
        ("atlantis", "atlantis/masks/test/canal/2001.png", grey(0, 255), r"values \[255\]"),
        ("dram", "DRAM_processed/raw/labels/Cubism/juan_gris/1.png", colour(0, 0, 3), "not a map of class numbers"),
        ("mess_isaid", "isaid/raw/Semantic_masks/P0004_instance_color_RGB.png", np.ones((80, 96), np.uint8), "one channel"),
        ("mess_isaid", "isaid/raw/Semantic_masks/P0004_instance_color_RGB.png", colour(0, 0, 63), "another size"),
        (
            "mess_potsdam",
            "ISPRS_Potsdam/raw/5_Labels_all/top_potsdam_2_13_label.tif",
            np.zeros((64, 1060, 3), np.uint8),
            r"\[0, 0, 0\]",
        ),
        (
            "floodnet",
            "FloodNet-Supervised_v1.0/test/test-label-img/7301_lab.png",
            np.full((80, 96), 10, np.uint8),
            r"values \[10\]",
        ),
        ("mess_uavid", "uavid_v1.5/uavid_val/seq16/Labels/000000.png", np.full((64, 1060, 3), 77, np.uint8), r"values \[77\]"),
        ("mess_uavid", "uavid_v1.5/uavid_val/seq16/Labels/000000.png", np.ones((64, 1060), np.uint8), "one channel"),
        ("kvasir_instrument", "kvasir-instrument/masks/ckcub1tw000073b5y9w3kr4nv.png", grey(0, 254), r"values \[254\]"),
        ("cryonuseg", "CryoNuSeg/raw/masks/Human_Larynx_02.png", grey(0, 1), r"values \[1\]"),
        ("deepcrack", "DeepCrack/test_lab/11111.png", grey(0, 128), r"11111\.png holds the values \[128\]"),
        ("suim", "SUIM/TEST/masks/d_r_122_.bmp", grey(0, 1), "one channel"),
        ("cwfid", "cwfid/annotations/003_annotation.png", colour(0, 0, 255), r"\[0, 0, 255\]"),
        ("cwfid", "cwfid/annotations/003_annotation.png", grey(0, 2), "one channel"),
    ],
)
def test_what_no_official_map_holds_is_refused(name, path, content, said, own):
    root = own(name)
    unpack(name, root)
    Image.fromarray(content).save(root / path)
    with pytest.raises(ob.OvssError, match=said) as error:
        prepare(name, root, quiet=True, workers=1)
    assert Path(path).name in str(error.value)
    with pytest.raises(ob.OvssError):
        _ = ob.load_dataset(name, root).samples


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("images.txt", "1\n", "images.txt has the line '1', expected a number and a value"),
        ("train_test_split.txt", "2 0 1\n", "train_test_split.txt has the line '2 0 1'"),
        ("images.txt", "2 Albatross/a.jpg\n", "images.txt names Albatross/a.jpg"),
    ],
)
def test_damaged_lists_are_named(file, text, said, own):
    root = own("cub_200")
    prepare("cub_200", root, quiet=True, workers=1)
    (root / "CUB_200_2011" / file).write_text(text)
    for archive in root.glob("*.tgz"):
        archive.unlink()
    (root / "CUB_200_2011/images/Albatross").mkdir()
    (root / "CUB_200_2011/segmentations/Albatross").mkdir()
    (root / "CUB_200_2011/images/Albatross/a.jpg").touch()
    (root / "CUB_200_2011/segmentations/Albatross/a.png").touch()
    with pytest.raises(ob.OvssError, match=said):
        prepare("cub_200", root, quiet=True, workers=1, rerun=True)


def test_numbers_beyond_a_byte_are_refused(own):
    root = own("atlantis")
    Image.fromarray(np.full((72, 96), 256 + 3, np.uint16)).save(root / "atlantis/masks/test/canal/2001.png")
    with pytest.raises(ob.OvssError, match=r"2001\.png holds the values \[259\]"):
        prepare("atlantis", root, quiet=True, workers=1)


def test_paxray_arranged_by_hand_is_accepted(own):
    """raw/test.txt, raw/images and raw/masks, as earlier versions asked for; or the archive as it is, below raw."""
    root = own("paxray_lungs")
    folder = root / "paxray_dataset"
    whole = labels(made("paxray_lungs", root))
    for name in ("images_detectron2", "annotations_detectron2"):
        shutil.rmtree(folder / name)
    (folder / "raw").mkdir()
    for name in ("images", "labels", "paxray.json"):
        (folder / name).rename(folder / "raw" / name)
    prepare("paxray_lungs", root, quiet=True, workers=1)
    (folder / "raw/paxray.json").unlink()
    (folder / "raw/labels").rename(folder / "raw/masks")
    (folder / "raw/test.txt").write_text("".join(f"{key}\n" for key in whole))
    again = labels((prepare("paxray_lungs", root, quiet=True, rerun=True, workers=1), ob.load_dataset("paxray_lungs", root))[1])
    assert again.keys() == whole.keys()
    assert all(np.array_equal(again[key], whole[key]) for key in whole)


PAIR = ["images/0c2d.png", "labels/0c2d.npy"]


@pytest.mark.parametrize(
    "test",
    [[PAIR], [{"a": PAIR[0], "b": PAIR[1], "n": 3}], {"0c2d": {"image": PAIR[0], "masks": PAIR[1], "view": "frontal"}}],
    ids=["pairs", "keys", "by id"],
)
def test_paxray_entries_name_image_and_masks(test, own):
    root = own("paxray_lungs")
    (root / "paxray_dataset/paxray.json").write_text(json.dumps({"train": [], "test": test}))
    assert list(labels(made("paxray_lungs", root))) == ["0c2d"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no list of the test split"),
        ("{", "no list of the test split"),
        ("[" * 100_000, "no list of the test split"),
        ("[]", "no list of the test split"),
        ("7", "no list of the test split"),
        ('{"val": []}', "no list of the test split"),
        ('{"test": null}', "no list of the test split"),
        ('{"test": []}', "names no image of the test split"),
        ('{"test": {}}', "names no image of the test split"),
        ('{"test": [7]}', "an entry of the test split is 7"),
        ('{"test": [["images/0c2d.png"]]}', "an entry of the test split is "),
        ('{"test": "0c2d"}', "an entry of the test split is 0"),
        ('{"test": [["images/0c2d.png", "images/0a1b.png", "labels/0c2d.npy"]]}', "an entry of the test split is "),
        ('{"test": [["/etc/0c2d.png", "labels/0c2d.npy"]]}', "below its folder"),
        ('{"test": [["images/../../0c2d.png", "labels/0c2d.npy"]]}', "below its folder"),
        ('{"test": [["images/0c2d\\u0000.png", "labels/0c2d.npy"]]}', "below its folder"),
        ('{"test": [["images/0000.png", "labels/0000.npy"]]}', r"2 files are missing.*images/0000\.png"),
        (b"\xff\xfe\x00", r"paxray\.json cannot be read"),
    ],
)
def test_a_damaged_paxray_json_is_named(content, said, own):
    root = own("paxray_lungs")
    path = root / "paxray_dataset/paxray.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ob.OvssError, match=said):
        prepare("paxray_lungs", root, quiet=True, workers=1)


def archive_of_arrays(path):
    np.savez(path.open("wb"), a=np.zeros(3))


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        (np.zeros((4, 72, 96), bool), r"the shape \(4, 72, 96\)"),
        (np.zeros((72, 96), bool), r"the shape \(72, 96\)"),
        (np.zeros((166, 0, 96), bool), r"the shape \(166, 0, 96\)"),
        (np.full((166, 7, 9), 2, np.uint8), r"the values \[2\]"),
        (np.full((166, 7, 9), 0.5), r"the values \[0\.5\]"),
        (np.full((166, 7, 9), np.nan, np.float32), r"the values \[nan\]"),
        (np.full((166, 7, 9), "x"), "the values"),
        (np.full((166, 7, 9), None), "is not the masks of an image"),
        (archive_of_arrays, "an archive of arrays"),
        (lambda path: path.write_bytes(b"PK\3\4 cut"), "is not the masks of an image"),
        (lambda path: path.write_bytes(b""), "is not the masks of an image"),
        (lambda path: path.write_bytes(b"\x93NUMPY\1\0\x10\0{'descr': ('|b1'\n\n"), "is not the masks of an image"),
        (lambda path: path.write_text("<html>"), "is not the masks of an image"),
    ],
)
def test_damaged_paxray_masks_are_named(masks, said, own):
    root = own("paxray_lungs")
    path = root / "paxray_dataset/labels/0c2d.npy"
    masks(path) if callable(masks) else np.save(path, masks)
    with pytest.raises(ob.OvssError, match=rf"0c2d\.npy is not the masks of an image: .*{said}|0c2d\.npy {said}"):
        prepare("paxray_lungs", root, quiet=True, workers=1)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("atlantis", "atlantis/masks/test/canal/2001.png"),
        ("mess_uavid", "uavid_v1.5/uavid_val/seq16/Labels/000000.png"),
        ("mess_uavid", "uavid_v1.5/uavid_val/seq16/Images/000000.png"),
        ("paxray_lungs", "paxray_dataset/labels/0c2d.npy"),
    ],
)
@pytest.mark.parametrize("keep", [0, 30, 0.6])
def test_truncated_files_are_named(name, path, keep, own):
    root = own(name)
    path = root / path
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(ob.OvssError, match=path.name):
        prepare(name, root, quiet=True, workers=1)


@pytest.mark.parametrize(
    ("name", "folder", "copy", "said"),
    [
        ("atlantis", "atlantis/images/test/fjord/4001.jpg", "canal/4001.jpg", "4001 in several folders"),
        (
            "dram",
            "DRAM_processed/raw/images/Cubism/juan_gris/1.jpg",
            "../Realism/juan_gris/1.jpg",
            "juan_gris_1 in several folders",
        ),
    ],
)
def test_flattened_names_must_be_unique(name, folder, copy, said, own):
    root = own(name)
    target = (root / folder).parents[1] / copy
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / folder, target)
    with pytest.raises(ob.OvssError, match=said):
        prepare(name, root, quiet=True, workers=1)


def test_cryonuseg_is_read_as_mess_leaves_it(own):
    """Without the folder of the split; complete, it needs no raw files."""
    root = own("cryonuseg")
    dataset, folder = made("cryonuseg", root), root / "CryoNuSeg"
    ids, fingerprint = [sample.id for sample in dataset.samples], dataset.fingerprint
    for name in ("images_detectron2", "annotations_detectron2"):
        (folder / name / "test").rename(folder / "test")
        (folder / name).rmdir()
        (folder / "test").rename(folder / name)
    shutil.rmtree(folder / "raw")
    flat = ob.load_dataset("cryonuseg", root)
    assert ([sample.id for sample in flat.samples], flat.fingerprint) == (ids, fingerprint)
    assert flat.samples[0].image_path.parent == folder / "images_detectron2"
    prepare("cryonuseg", root, quiet=True)
    shutil.rmtree(folder / "annotations_detectron2")
    with pytest.raises(
        ob.OvssError, match=r"(?s)'cryonuseg' was not found in .*images_detectron2/test\|images_detectron2/<id>\.png"
    ):
        ob.load_dataset("cryonuseg", root)


# Going on.


@pytest.mark.parametrize("name", CONVERTED)
def test_a_second_run_does_nothing(name, ready):
    root = ready(name)
    before = times(root)
    assert before
    prepare(name, root, quiet=True)
    assert times(root) == before


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bdd100k", "labels"),
        *((name, kind) for name in ("cub_200", "mess_isaid", "paxray_bones") for kind in ("images", "labels")),
    ],
)
def test_an_interrupted_run_goes_on(name, kind, own):
    root = own(name)
    dataset = made(name, root)
    folder = dataset.root / dataset.config[kind]
    before = {path: path.read_bytes() for path in folder.iterdir()}
    lost = sorted(before)[1]
    lost.unlink()
    (folder / f".unfinished-{dataset.config['prepare']['converter']}").write_text("python tools/datasets.py prepare it")
    with pytest.raises(ob.OvssError, match=r"half prepared.*tools/datasets\.py prepare"):
        ob.load_dataset(name, root)
    untouched = {path: path.stat().st_mtime_ns for path in before if path.stem[:5] != lost.stem[:5]}
    prepare(name, root, quiet=True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    assert len(untouched) >= 2


def test_one_bad_map_does_not_keep_the_others(own):
    root = own("deepcrack")
    path = root / "DeepCrack/test_lab/11112-1.png"
    good = path.read_bytes()
    buffer = io.BytesIO()
    Image.fromarray(grey(0, 3)).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ob.OvssError, match="1 of 3 files could not be converted"):
        prepare("deepcrack", root, quiet=True)
    path.write_bytes(good)
    assert len(labels(made("deepcrack", root))) == 3
