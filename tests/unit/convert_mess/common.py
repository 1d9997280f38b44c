"""Helpers of the tests of MESS's data sets."""

import zipfile

import numpy as np
from PIL import Image

import ovss_bench as ob
from miniatures.mess import MINIATURES
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.prepare import converters  # noqa: F401
from ovss_bench.datasets.prepare.run import prepare

CONVERTED = [name for name in MINIATURES if "converter" in dataset_config(name)[1]["prepare"]]


AS_THEY_ARE = [name for name in MINIATURES if name not in CONVERTED]


def same(*values):
    return {value: value for value in values}


# From MESS's preparation scripts; colours as hexadecimal text.
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


def grey(*values):
    return np.tile(np.array(values, np.uint8), (72, 96 // len(values)))


def colour(*value):
    return np.full((72, 96, 3), value, np.uint8)
