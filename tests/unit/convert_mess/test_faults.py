"""MESS: missing, wrong and damaged raw files, and interrupted runs."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ovss_bench as ob
from ovss_bench.datasets.prepare import converters  # noqa: F401
from ovss_bench.datasets.prepare.run import prepare

from .common import CONVERTED, colour, grey, labels, made, times, unpack

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


@pytest.mark.parametrize(
    ("name", "path", "content", "said"),
    [
        ("bdd100k", "bdd100k/labels/sem_seg/colormaps/val/7d06fefd-f7be05a6.png", grey(3, 19), r"values \[19\]"),
        ("bdd100k", "bdd100k/labels/sem_seg/colormaps/val/7d06fefd-f7be05a6.png", colour(128, 64, 128), "3 channels"),
        ("dark_zurich", "Dark_Zurich/gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_labelIds.png", grey(0, 1), r"values \[1\]"),
        (
            "dark_zurich",
            "Dark_Zurich/gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_invGray.png",
            grey(0, 1).T,
            "differs in size",
        ),
        ("mhp_v1", "LV-MHP-v1/annotations/0017_02_02.png", grey(0, 19), r"0017_02_02\.png holds the values \[19\]"),
        ("mhp_v1", "LV-MHP-v1/annotations/0017_02_02.png", grey(0, 9).T, "0017_02_02.png differs in size"),
        ("atlantis", "atlantis/masks/test/canal/2001.png", grey(0, 57), r"values \[57\]"),
        ("atlantis", "atlantis/masks/test/canal/2001.png", grey(0, 255), r"values \[255\]"),
        ("dram", "DRAM_processed/raw/labels/Cubism/juan_gris/1.png", colour(0, 0, 3), "not an 8-bit map of class numbers"),
        ("mess_isaid", "isaid/raw/Semantic_masks/P0004_instance_color_RGB.png", np.ones((80, 96), np.uint8), "one channel"),
        ("mess_isaid", "isaid/raw/Semantic_masks/P0004_instance_color_RGB.png", colour(0, 0, 63), "differs in size"),
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
        ("deepcrack", "DeepCrack/test_lab/11111.png", grey(0, 255).astype(np.uint16), r"11111\.png is not an 8-bit mask"),
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
        ("", r"test split of .*paxray\.json cannot be read"),
        ("{", r"test split of .*paxray\.json cannot be read"),
        ("[" * 100_000, r"test split of .*paxray\.json cannot be read"),
        ("[]", r"test split of .*paxray\.json cannot be read"),
        ("7", r"test split of .*paxray\.json cannot be read"),
        ('{"val": []}', r"test split of .*paxray\.json cannot be read"),
        ('{"test": null}', r"test split of .*paxray\.json cannot be read"),
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
        (np.full((166, 7, 9), None), ""),
        (archive_of_arrays, "an archive of arrays"),
        (lambda path: path.write_bytes(b"PK\3\4 cut"), ""),
        (lambda path: path.write_bytes(b""), ""),
        (lambda path: path.write_bytes(b"\x93NUMPY\1\0\x10\0{'descr': ('|b1'\n\n"), ""),
        (lambda path: path.write_text("<html>"), ""),
    ],
)
def test_damaged_paxray_masks_are_named(masks, said, own):
    root = own("paxray_lungs")
    path = root / "paxray_dataset/labels/0c2d.npy"
    masks(path) if callable(masks) else np.save(path, masks)
    with pytest.raises(ob.OvssError, match=rf"file of masks .*0c2d\.npy cannot be read: .*{said}.*Expected \(166, height"):
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
        (
            "atlantis",
            "atlantis/images/test/fjord/4001.jpg",
            "canal/4001.jpg",
            r"fjord/4001\.jpg would both become .*4001\.jpg",
        ),
        (
            "dram",
            "DRAM_processed/raw/images/Cubism/juan_gris/1.jpg",
            "../Realism/juan_gris/1.jpg",
            r"Realism/juan_gris/1\.jpg would both become .*test/juan_gris_1\.jpg",
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
