"""MESS: kinds of images, data sets without conversion, odd pixels."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ovss_bench as ob
from miniatures.mess import MINIATURES
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.prepare import converters  # noqa: F401
from ovss_bench.datasets.prepare.run import prepare

from .common import AS_THEY_ARE, VALUES, labels, made, naive, read, unpack

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
    with pytest.raises(ob.OvssError, match=r"holds images of images=original, not images=mess\. Add rerun=true"):
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
        with pytest.raises(ob.OvssError, match="of a kind that is not recorded, not images=mess"):
            prepare("atlantis", root, workers=1, **options)
        return
    prepare("atlantis", root, workers=1)
    said = capsys.readouterr().err
    assert "is not recorded; rerun=true makes all of them images=mess" in said
    assert "(images=" not in said


@pytest.mark.parametrize(
    ("name", "images", "said"),
    [
        (
            "deepcrack",
            "mess",
            r"images=mess: deepcrack has only one kind of images; atlantis, chase_db1, .* offer a choice",
        ),
        ("voc21", "original", "voc21 has only one kind of images"),
        ("demo", "original", "demo has only one kind of images"),
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
