"""MESS: every pixel has its class."""

from collections import Counter

import numpy as np
import pytest

import ovss_bench as ob
from ovss_bench.datasets.prepare import converters  # noqa: F401

from .common import VALUES, labels, naive, only, read

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
