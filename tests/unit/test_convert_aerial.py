"""Potsdam, Vaihingen, iSAID, UAVid, OpenEarthMap and LoveDA: geometry, names and values of what is made of official files."""

import importlib.util
import shutil
from argparse import Namespace
from pathlib import Path

import mmseg
import numpy as np
import pytest
from PIL import Image

import ovss_bench as ob
from miniatures.aerial import MINIATURES
from ovss_bench.datasets.prepare import converters  # noqa: F401
from ovss_bench.datasets.prepare.conversion import noted
from ovss_bench.datasets.prepare.converters.aerial import boxes, isaid_label, isprs_label, uavid_label
from ovss_bench.datasets.prepare.run import prepare

FOLDERS = {"potsdam": "potsdam", "vaihingen": "vaihingen", "isaid": "iSAID", "uavid": "UAVid", "openearthmap": "OpenEarthMap"}
# Colours as text, from the tables of the data sets' documentation.
ISPRS = {"000000": 0, "ffffff": 1, "0000ff": 2, "00ffff": 3, "00ff00": 4, "ffff00": 5, "ff0000": 6, "0a141e": 0}
ISAID = {
    **{"000000": 0, "00003f": 1, "003f3f": 2, "003f00": 3, "003f7f": 4, "003fbf": 5, "003fff": 6, "007f3f": 7, "007f7f": 8},
    **{"00007f": 9, "0000bf": 10, "0000ff": 11, "00bf7f": 12, "007fbf": 13, "007fff": 14, "00649b": 15, "010203": 0},
}
UAVID = {"000000": 0, "800000": 1, "804080": 2, "c000c0": 3, "008000": 4, "808000": 5, "404000": 6, "400080": 3}


def prepared(name, root):
    MINIATURES[name](root)
    prepare(name, root, quiet=True, workers=1)
    return root / FOLDERS.get(name, "LoveDA")


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """name -> folder of the prepared data set, not to be written to."""
    folders = {}

    def get(name):
        if name not in folders:
            folders[name] = prepared(name, tmp_path_factory.mktemp(name))
        return folders[name]

    return get


def read(path):
    return np.array(Image.open(path))


def naive(path, values):
    """The label map of a coloured file, pixel by pixel."""
    rows = np.array(Image.open(path).convert("RGB"))
    return np.array([[values[bytes(pixel).hex()] for pixel in row] for row in rows], np.uint8)


def times(folder):
    return {path: path.stat().st_mtime_ns for kind in ("img_dir", "ann_dir") for path in (folder / kind).rglob("*.*")}


def test_potsdam_has_twelve_tiles_a_side_and_2016_in_all():
    places = boxes((6000, 6000), (512, 512), (512, 512))
    assert [left for _, _, left, _ in places[:12]] == [0, 512, 1024, 1536, 2048, 2560, 3072, 3584, 4096, 4608, 5120, 5488]
    assert sorted({top for top, *_ in places}) == [left for _, _, left, _ in places[:12]]
    assert places[-1] == (5488, 6000, 5488, 6000)
    assert 14 * len(places) == ob.datasets.base.dataset_config("potsdam")[1]["expected_images"] == 2016


def test_vaihingen_has_398_tiles():
    widths_and_heights = {
        **{2: (2428, 2767), 4: (1887, 2557), 6: (1887, 2557), 8: (1887, 2557), 10: (1887, 2557), 12: (1922, 2575)},
        **{14: (1919, 2565), 16: (1919, 2565), 20: (1866, 2315), 22: (1903, 2546), 24: (1903, 2546), 27: (1917, 3313)},
        **{29: (1917, 2563), 31: (1980, 2555), 33: (1581, 2555), 35: (2805, 1884), 38: (3816, 2550)},
    }
    counts = [len(boxes((height, width), (512, 512), (512, 512))) for width, height in widths_and_heights.values()]
    assert sum(counts) == ob.datasets.base.dataset_config("vaihingen")[1]["expected_images"] == 398


@pytest.mark.parametrize(
    ("side", "expected"),
    [(300, [0]), (896, [0]), (897, [0, 1]), (1408, [0, 512]), (1409, [0, 512, 513]), (2000, [0, 512, 1024, 1104])],
)
def test_isaid_tiles_overlap(side, expected):
    assert [top for top, *_ in boxes((side, 100), (896, 896), (512, 512))] == expected
    assert [left for _, _, left, _ in boxes((100, side), (896, 896), (512, 512))] == expected


@pytest.mark.parametrize(("width", "lefts"), [(3840, [0, 1280, 2560]), (4096, [0, 1280, 2560, 2816])])
def test_uavid_has_two_rows_of_tiles(width, lefts):
    assert boxes((2160, width), (1080, 1280), (1080, 1280)) == [
        (top, top + 1080, left, left + 1280) for top in (0, 1080) for left in lefts
    ]


@pytest.mark.parametrize(
    ("name", "source", "fill", "corners"),
    [
        ("potsdam", "top_potsdam_5_15_label_noBoundary.tif", 0, {"5_15_0_0_512_512": (0, 0), "5_15_88_0_600_512": (0, 88)}),
        ("potsdam", "top_potsdam_7_13_label_noBoundary.tif", 0, {"7_13_0_0_512_512": (0, 0), "7_13_0_8_512_520": (8, 0)}),
        (
            "vaihingen",
            "top_mosaic_09cm_area38_noBoundary.tif",
            0,
            {"area38_0_0_512_512": (0, 0), "area38_0_88_512_600": (88, 0)},
        ),
        ("isaid", "P0003_instance_color_RGB.png", 255, {"P0003_0_896_0_896": (0, 0), "P0003_0_896_104_1000": (0, 104)}),
        ("isaid", "P0004_instance_color_RGB.png", 255, {"P0004_0_896_0_896": (0, 0)}),
        ("isaid", "P0019_instance_color_RGB.png", 255, {"P0019_0_896_0_896": (0, 0), "P0019_8_904_0_896": (8, 0)}),
        ("uavid", "21", 0, {"seq21_000000_0_1080_0_1280": (0, 0), "seq21_000000_0_1080_120_1400": (0, 120)}),
        ("uavid", "42", 0, {"seq42_000000_0_1080_0_1280": (0, 0)}),
    ],
)
def test_tiles_hold_the_values_of_their_colours(ready, name, source, fill, corners):
    folder, config = ready(name), ob.datasets.base.dataset_config(name)[1]
    source, values = {
        "isaid": (f"raw/Semantic_masks/{source}", ISAID),
        "uavid": (f"raw/test_gt/seq{source}/Labels/000000.png", UAVID),
    }.get(name, (f"raw/labels/{source}", ISPRS))
    whole = naive(folder / source, values)
    height, width = (1080, 1280) if name == "uavid" else (896, 896) if name == "isaid" else (512, 512)
    whole = np.pad(whole, [(0, max(0, height - whole.shape[0])), (0, max(0, width - whole.shape[1]))], constant_values=fill)
    key = next(iter(corners)).rsplit("_", 4)[0]
    there = {path.name for path in (folder / config["labels"]).glob(f"{key}_*")}
    assert there == {f"{tile}{config['label_suffix']}" for tile in corners}
    assert {path.name for path in (folder / config["images"]).glob(f"{key}_*")} == {f"{tile}.png" for tile in corners}
    for tile, (top, left) in corners.items():
        label = read(folder / config["labels"] / f"{tile}{config['label_suffix']}")
        assert label.dtype == np.uint8
        assert np.array_equal(label, whole[top : top + height, left : left + width])


@pytest.mark.parametrize(
    ("source", "tile"),
    [("P0003", "P0003_0_896_104_1000"), ("P0004", "P0004_0_896_0_896"), ("P0019", "P0019_8_904_0_896")],
)
def test_isaid_images_are_padded_with_black_and_written_as_png(ready, source, tile):
    folder = ready("isaid")
    path = folder / "img_dir/val" / f"{tile}.png"
    assert Image.open(path).format == "PNG"
    whole = np.array(Image.open(folder / "raw/images" / f"{source}.png").convert("RGB"))
    top, left = (int(tile.split("_")[i]) for i in (1, 3))
    expected, part = np.zeros((896, 896, 3), np.uint8), whole[top : top + 896, left : left + 896]
    expected[: part.shape[0], : part.shape[1]] = part
    assert np.array_equal(read(path), expected)


def mmsegs_converter(name):
    path = Path(mmseg.__file__).parent / ".mim/tools/dataset_converters" / f"{name}.py"
    if not path.is_file():
        pytest.skip("this package of mmseg has no converters")
    spec = importlib.util.spec_from_file_location(f"mmseg_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["potsdam", "vaihingen", "isaid"])
def test_tiles_equal_those_of_mmsegs_own_converter(name, ready, tmp_path):
    folder, theirs = ready(name), mmsegs_converter(name)
    for kind in ("img_dir", "ann_dir"):
        (tmp_path / kind / "val").mkdir(parents=True)
    if name == "isaid":
        # Of a palette image without colours today's Pillow keeps one bit per pixel.
        theirs.Image = Namespace(open=Image.open, fromarray=lambda array, mode=None: Image.fromarray(array))
        for path in (folder / "raw/images").glob("*.png"):
            theirs.slide_crop_image(path, tmp_path, "val", 896, 896, 384)
        for path in (folder / "raw/Semantic_masks").glob("*.png"):
            theirs.slide_crop_label(path, tmp_path, "val", 896, 896, 384)
    else:
        theirs.args = Namespace(clip_size=512, stride_size=256)
        more = (theirs.args,) if name == "potsdam" else ()
        train = ("_2_10_", "area1", "area9")
        for source, kind in (("images", "img_dir"), ("labels", "ann_dir")):
            for path in (folder / "raw" / source).rglob("*.tif"):
                if not any(part in path.name.replace(".", "_") for part in train):
                    theirs.clip_big_image(path, tmp_path / kind / "val", *more, to_label=kind == "ann_dir")
    for kind in ("img_dir", "ann_dir"):
        expected, made = ({path.name: path for path in (root / kind / "val").iterdir()} for root in (tmp_path, folder))
        assert expected.keys() == made.keys()
        assert all(np.array_equal(read(expected[key]), read(made[key])) for key in expected)


def test_isprs_colours_are_matched_by_their_sum(tmp_path):
    colours = [(0, 0, 255), (0, 170, 0), (0, 171, 0), (255, 255, 254), (255, 0, 0), (0, 0, 0)]  # 510, 510, 513, 2293, 1020, 0
    Image.fromarray(np.array([colours], np.uint8)).save(tmp_path / "a.tif")
    assert isprs_label(tmp_path / "a.tif").tolist() == [[2, 2, 0, 0, 6, 0]]


def test_openearthmap_takes_the_val_images_that_are_there(ready):
    folder = ready("openearthmap")
    raw = folder / "raw/OpenEarthMap_wo_xBD"
    for kind, source in (("img_dir", "images"), ("ann_dir", "labels")):
        made = {path.name: path.read_bytes() for path in (folder / kind / "val").iterdir()}
        assert made.keys() == {"aachen_3.tif", "aachen_10.tif", "tokyo_2.tif"}
        assert all(data == (raw / name.split("_")[0] / source / name).read_bytes() for name, data in made.items())


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_images_of_more_than_8_bits_are_not_cut(dtype, tmp_path):
    MINIATURES["uavid"](tmp_path)
    path = next((tmp_path / "UAVid/raw/test_gt").glob("*/Images/*.png"))
    height, width = read(path).shape[:2]
    Image.fromarray(np.full((height, width), 40_000).astype(dtype)).save(path, "PNG" if dtype == np.uint16 else "TIFF")
    with pytest.raises(ob.OvssError, match=rf"{path.name} (holds|has one band of)"):
        prepare("uavid", tmp_path, quiet=True, workers=1)


def test_two_raw_files_that_become_one_are_named(tmp_path):
    """In every converter: it is seen in the tasks, before any of them runs."""
    MINIATURES["openearthmap"](tmp_path)
    raw = tmp_path / "OpenEarthMap/raw/OpenEarthMap_wo_xBD"
    for kind in ("images", "labels"):
        shutil.copy(raw / "tokyo" / kind / "tokyo_2.tif", raw / "aachen" / kind)
    with pytest.raises(ob.OvssError, match=r"aachen/images/tokyo_2\.tif and .*tokyo/images/tokyo_2\.tif would both become .*"):
        prepare("openearthmap", tmp_path, quiet=True)
    assert not (tmp_path / "OpenEarthMap/img_dir").exists()


def test_loveda_merges_both_scenes(ready):
    folder = ready("loveda")
    for kind in ("img_dir", "ann_dir"):
        assert {path.name for path in (folder / kind / "val").iterdir()} == {"2522.png", "2523.png", "3514.png", "3515.png"}
    dataset = ob.load_dataset("loveda", folder)
    stored = read(dataset.samples[0].label_path)
    assert set(np.unique(stored)) <= set(range(8))
    assert np.array_equal(dataset.label(dataset.samples[0]), np.array([255, 0, 1, 2, 3, 4, 5, 6])[stored])


@pytest.mark.parametrize("name", FOLDERS)
def test_a_second_run_does_nothing_and_an_interrupted_one_goes_on(name, tmp_path):
    folder = prepared(name, tmp_path)
    before = times(folder)
    prepare(name, tmp_path, quiet=True)
    assert times(folder) == before
    for kind in ("img_dir", "ann_dir"):
        lost = sorted(path for path in before if kind in path.parts)[-1]
        content = lost.read_bytes()
        lost.unlink()
        prepare(name, tmp_path, quiet=True)
        assert lost.read_bytes() == content
        assert times(folder).keys() == before.keys()


@pytest.mark.parametrize(
    ("name", "lost", "message"),
    [
        ("potsdam", "raw/images/2_Ortho_RGB/top_potsdam_7_13_RGB.tif", r"raw/images has no file for top_potsdam_7_13_label"),
        ("potsdam", "raw/labels/top_potsdam_5_15_label_noBoundary.tif", r"raw/labels has no file for top_potsdam_5_15_RGB"),
        (
            "vaihingen",
            "raw/labels/top_mosaic_09cm_area6_noBoundary.tif",
            r"raw/labels has no file for top_mosaic_09cm_area6\.tif",
        ),
        (
            "isaid",
            "raw/Semantic_masks/P0004_instance_color_RGB.png",
            r"1 files are missing, the first: .*P0004_instance_color_RGB",
        ),
        ("isaid", "raw/images", r"isaid needs archives"),
        ("uavid", "raw/test_gt/seq42/Labels", r"1 files are missing, the first: .*seq42/Labels/000000\.png"),
        ("uavid", "raw/test_gt", r"there is no \*/Images/\*\.png in .*raw/test_gt"),
        ("openearthmap", "raw/OpenEarthMap_wo_xBD/val.txt", r"1 files are missing.*val\.txt"),
        ("openearthmap", "raw/OpenEarthMap_wo_xBD/tokyo/labels/tokyo_2.tif", r"1 files are missing.*tokyo/labels/tokyo_2\.tif"),
    ],
)
def test_missing_files_are_named(name, lost, message, tmp_path):
    folder = prepared(name, tmp_path)
    shutil.rmtree(folder / lost) if (folder / lost).is_dir() else (folder / lost).unlink()
    for archive in tmp_path.rglob("*.zip"):
        archive.unlink()
    with pytest.raises(ob.OvssError, match=message):
        prepare(name, tmp_path, quiet=True, rerun=True)


@pytest.mark.parametrize("name", ["potsdam", "vaihingen"])
def test_images_of_train_alone_are_not_enough(name, tmp_path):
    folder = prepared(name, tmp_path)
    for path in (folder / "raw").rglob("*.tif"):
        if not any(part in path.name for part in ("_2_10_", "area1")):
            path.unlink()
    shutil.rmtree(folder / "img_dir")
    with pytest.raises(ob.OvssError, match="no image of the val split"):
        prepare(name, tmp_path, quiet=True)


def test_colours_that_uavid_does_not_use_are_refused(tmp_path):
    MINIATURES["uavid"](tmp_path)
    path = tmp_path / "UAVid/raw/test_gt/seq42/Labels/000000.png"
    label = read(path)
    label[: len(label) // 50] = 9, 8, 7
    Image.fromarray(label).save(path)
    with pytest.raises(
        ob.OvssError, match=r"1 of 4 files could not be converted(?s:.*)seq42/Labels/000000\.png.*\[\[9, 8, 7\]\]"
    ):
        prepare("uavid", tmp_path, quiet=True)
    with pytest.raises(ob.OvssError, match="half prepared"):
        ob.load_dataset("uavid", tmp_path)


@pytest.mark.parametrize("convert", [isprs_label, isaid_label, uavid_label])
def test_a_few_pixels_of_other_colours_are_counted_and_become_zero(convert, tmp_path):
    image = np.zeros((20, 20, 3), np.uint8)
    image[3, 4] = 9, 8, 7
    Image.fromarray(image).save(tmp_path / "a.png")
    noted()
    assert not convert(tmp_path / "a.png").any()
    assert noted() == [("have a colour of no class; they count as 0", 1)]


@pytest.mark.parametrize("convert", [isprs_label, isaid_label, uavid_label])
def test_labels_in_grey_are_refused(convert, tmp_path):
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "grey.png")
    with pytest.raises(ob.OvssError, match=r"grey\.png has one channel"):
        convert(tmp_path / "grey.png")


@pytest.mark.parametrize("convert", [isaid_label, uavid_label])
def test_palettes_and_alpha_are_colours(convert, tmp_path):
    colours = Image.fromarray(np.array([[(0, 0, 0), (0, 63, 0) if convert is isaid_label else (192, 0, 192)]], np.uint8))
    for mode in ("P", "RGBA"):
        colours.convert(mode, **({"palette": Image.Palette.ADAPTIVE} if mode == "P" else {})).save(tmp_path / "a.png")
        assert convert(tmp_path / "a.png").tolist() == [[0, 3]]


def test_a_label_of_another_size_is_refused(tmp_path):
    MINIATURES["uavid"](tmp_path)
    path = tmp_path / "UAVid/raw/test_gt/seq21/Labels/000000.png"
    Image.fromarray(read(path)[:, :-4]).save(path)
    with pytest.raises(ob.OvssError, match=r"seq21/Labels/000000\.png differs in size from"):
        prepare("uavid", tmp_path, quiet=True)


@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_damaged_images_are_named(keep, tmp_path):
    MINIATURES["uavid"](tmp_path)
    path = tmp_path / "UAVid/raw/test_gt/seq21/Images/000000.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ob.OvssError, match=r"seq21/Images/000000\.png"):
        prepare("uavid", tmp_path, quiet=True)
