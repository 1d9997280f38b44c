"""Aerial images of several classes: ISPRS and iSAID as archives of large coloured label maps, UAVid and OpenEarthMap unpacked,
UDD5 and VDD as they are used. Large images are small scenes, enlarged four times."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .drawing import encoded, scene, write_files, write_zip

# RGB in the order of the values that stand for them.
ISPRS = [(0, 0, 0), (255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0), (10, 20, 30)]
ISAID = [
    *((0, 0, 0), (0, 0, 63), (0, 63, 63), (0, 63, 0), (0, 63, 127), (0, 63, 191), (0, 63, 255), (0, 127, 63), (0, 127, 127)),
    *((0, 0, 127), (0, 0, 191), (0, 0, 255), (0, 191, 127), (0, 127, 191), (0, 127, 255), (0, 100, 155), (1, 2, 3)),
]
UAVID = [
    *((0, 0, 0), (128, 0, 0), (128, 64, 128), (192, 0, 192), (0, 128, 0), (128, 128, 0), (64, 64, 0)),
    (64, 0, 128),  # moving cars
]


def large(seed: int, values: Sequence[int], size: tuple[int, int], outline: int | None = None):
    """A scene of `size`, multiples of 4: pixels are squares of 4."""
    arrays = scene(seed, values, (size[0] // 4, size[1] // 4), outline)
    return [array.repeat(4, 0).repeat(4, 1) for array in arrays]


def coloured(label: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    return np.array(colours, np.uint8)[label]


def write_potsdam(root: Path) -> None:
    """Two images of val in two tiles each, one of train; one colour is unknown, as at the seams of some official maps."""
    images, labels = {}, {}
    for number, (name, size) in enumerate({"2_10": (512, 512), "5_15": (512, 600), "7_13": (520, 512)}.items()):
        image, label = large(number + 1, [1, 2, 3, 4, 5, 6, 7], size, outline=0)
        images[f"2_Ortho_RGB/top_potsdam_{name}_RGB.tif"] = encoded(image, "TIFF")
        images[f"2_Ortho_RGB/top_potsdam_{name}_RGB.tfw"] = b"0.05\n"
        labels[f"top_potsdam_{name}_label_noBoundary.tif"] = encoded(coloured(label, ISPRS), "TIFF", compression="tiff_lzw")
    write_zip(root / "2_Ortho_RGB.zip", images)
    write_zip(root / "5_Labels_all_noBoundary.zip", labels)


def write_vaihingen(root: Path) -> None:
    """Two areas of val in two tiles each, one of train; area 9 has a label only."""
    images, labels = {"dsm/dsm_09cm_matching_area6.tif": b"heights"}, {}
    for number, (name, size) in enumerate(
        {"area1": (512, 512), "area9": (512, 512), "area6": (512, 640), "area38": (600, 512)}.items()
    ):
        image, label = large(number + 10, [6, 5, 4, 3, 2, 1], size, outline=0)
        if name != "area9":
            images[f"top/top_mosaic_09cm_{name}.tif"] = encoded(image, "TIFF")
        labels[f"top_mosaic_09cm_{name}_noBoundary.tif"] = encoded(coloured(label, ISPRS), "TIFF", compression="tiff_lzw")
    name = "ISPRS_semantic_labeling_Vaihingen"
    write_zip(root / f"{name}.zip", images)
    write_zip(root / f"{name}_ground_truth_eroded_COMPLETE.zip", labels)


def write_isaid(root: Path) -> None:
    """One image of two tiles, one in grey that is smaller than a tile, one that is too narrow; one colour is unknown."""
    images, labels = {}, {}
    for number, (name, size) in enumerate({"P0003": (896, 1000), "P0004": (300, 500), "P0019": (904, 600)}.items()):
        values = [0, *(5 * number + i + 1 for i in range(5)), 16]
        image, label = large(number + 20, values, size)
        images[f"images/{name}.png"] = encoded(image[..., 0] if name == "P0004" else image, "PNG", compress_level=1)
        labels[f"images/{name}_instance_color_RGB.png"] = encoded(coloured(label, ISAID), "PNG")
    write_zip(root / "iSAID/val/images/part1.zip", images)
    write_zip(root / "iSAID/val/Semantic_masks/images.zip", labels)


def write_uavid(root: Path) -> None:
    """An image of two tiles, another of one: sequences name their images alike."""
    files = {}
    for number, (name, size) in enumerate({"seq21": (1080, 1400), "seq42": (1080, 1280)}.items()):
        image, label = large(number + 30, [[0, 1, 2, 3, 4, 7], [5, 6, 7, 1, 2, 3]][number], size)
        files[f"{name}/Images/000000.png"] = encoded(image, "PNG", compress_level=1)
        files[f"{name}/Labels/000000.png"] = encoded(coloured(label, UAVID), "PNG")
    write_files(root / "UAVid/raw/test_gt", files)


def write_loveda(root: Path) -> None:
    """Two rural and two urban images, with no data around the pieces."""
    files = {"Train/Rural/images_png/0.png": b"not of val"}
    for number, (place, name) in enumerate((("Rural", 2522), ("Rural", 2523), ("Urban", 3514), ("Urban", 3515))):
        image, label = scene(number + 40, [1 + (3 * number + i) % 7 for i in range(6)], (96, 112), outline=0)
        files[f"Val/{place}/images_png/{name}.png"] = encoded(image, "PNG")
        files[f"Val/{place}/masks_png/{name}.png"] = encoded(label.astype(np.uint8), "PNG")
    write_zip(root / "Val.zip", files)


def write_openearthmap(root: Path) -> None:
    """Three images of val in two regions, one of train; a fourth of val is one of xBD's, which are not there."""
    val = ["aachen_3.tif", "aachen_10.tif", "tokyo_2.tif", "joplin_1.tif"]
    files = {"val.txt": "".join(f"{name}\n" for name in val).encode(), "train.txt": b"tokyo_1.tif\n"}
    for number, name in enumerate([*val[:3], "tokyo_1.tif"]):
        image, label = scene(number + 50, [(2 * number + i) % 9 for i in range(6)], (100, 100))
        region = name.split("_")[0]
        files[f"{region}/images/{name}"] = encoded(image, "TIFF", compression="tiff_lzw")
        files[f"{region}/labels/{name}"] = encoded(label.astype(np.uint8), "TIFF", compression="tiff_lzw")
    write_files(root / "OpenEarthMap/raw/OpenEarthMap_wo_xBD", files)


def write_udd5(root: Path) -> None:
    write_files(root / "UDD/UDD/UDD5", _ready("val", "DJI_00{:02}", 5))


def write_vdd(root: Path) -> None:
    write_files(root / "VDD/VDD", _ready("test", "DJI_05{:02}", 7))


def _ready(split: str, pattern: str, classes: int) -> dict[str, bytes]:
    """Three images of the split and one of train."""
    files = {}
    for number in range(4):
        image, label = scene(number + 10 * classes, [(3 * number + i) % classes for i in range(classes)], (90, 120))
        folder, name = "train" if number == 3 else split, pattern.format(number)
        files[f"{folder}/src/{name}.JPG"] = encoded(image, "JPEG", quality=92)
        files[f"{folder}/gt/{name}.png"] = encoded(label.astype(np.uint8), "PNG")
    return files


MINIATURES = {
    "potsdam": write_potsdam,
    "vaihingen": write_vaihingen,
    "isaid": write_isaid,
    "uavid": write_uavid,
    "loveda": write_loveda,
    "openearthmap": write_openearthmap,
    "udd5": write_udd5,
    "vdd": write_vdd,
}
