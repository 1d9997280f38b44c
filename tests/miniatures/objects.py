"""Buildings, roads and water: images and grey masks as the official archives unpack, with values between black and white."""

from pathlib import Path

import numpy as np

from .drawing import encoded, scene, write_files


def drawn(seed: int, size: tuple[int, int] = (96, 112)) -> tuple[np.ndarray, np.ndarray]:
    """An image and its mask (H, W) uint8: 0 and 255, and round the pieces 127, which is no object, and 128, which is one."""
    image, label = scene(seed, [0, 1, 1, 2, 2], size, outline=3)
    mask = np.array([0, 255, 255, 127], np.uint8)[label]
    mask[::2][label[::2] == 3] = 128
    return image, mask


def write_whu_aerial(root: Path) -> None:
    files = {"train/image/0.png": b"not of val"}
    for name in (1, 2, 11):
        image, mask = drawn(name)
        files[f"val/image/{name}.png"] = encoded(image, "PNG")
        files[f"val/label/{name}.png"] = encoded(mask, "PNG")
    write_files(root / "WHU-BD", files)


def write_whu_sat_ii(root: Path) -> None:
    """The second mask has one bit per pixel."""
    files = {"train/image/1.tif": b"not of the test"}
    for name in (100, 101, 2000):
        image, mask = drawn(name)
        files[f"test/image/{name}.tif"] = encoded(image, "TIFF")
        files[f"test/label/{name}.tif"] = encoded(mask >= 128 if name == 101 else mask, "TIFF")
    write_files(root / "WHU_Sat_II/1.cropped", files)


def write_inria(root: Path) -> None:
    """Two of the 27 images, of which one has two tiles, and one that is not of them; scenes enlarged four times."""
    files = {}
    for seed, (name, size) in enumerate({"vienna3": (250, 500), "tyrol-w25": (250, 250), "austin2": (250, 250)}.items()):
        image, mask = (array.repeat(4, 0).repeat(4, 1) for array in drawn(seed, size))
        files[f"images/{name}.tif"] = encoded(image, "TIFF", compression="tiff_lzw")
        files[f"gt/{name}.tif"] = encoded(mask, "TIFF", compression="tiff_lzw")
    write_files(root / "inria/raw/train", files)


def write_xbd(root: Path) -> None:
    """Three places before and after; after, targets hold the damage, 1 to 4."""
    files = {}
    for seed, name in enumerate(("guatemala-volcano_00000003", "hurricane-florence_00000011", "socal-fire_00000007")):
        for number, when in enumerate(("pre", "post")):
            image, target = scene(seed + 200, [[0, 1, 1, 1], [0, 1, 2, 4]][number])
            files[f"images/{name}_{when}_disaster.png"] = encoded(image, "PNG")
            files[f"targets/{name}_{when}_disaster_target.png"] = encoded(target.astype(np.uint8), "PNG")
    write_files(root / "xBD/test", files)


def write_chn6_cug(root: Path) -> None:
    write_files(root / "CHN6-CUG/val", _renamed(["am100001", "bj100002", "sh100003"], 300))


def write_deepglobe_road(root: Path) -> None:
    write_files(root / "GlobalRoadSet_Val/DeepGlobe_test_1530", _renamed(["104", "1038", "99987"], 310))


def _renamed(names: list[str], seed: int) -> dict[str, bytes]:
    """Masks in three equal channels."""
    files = {}
    for number, name in enumerate(names):
        image, mask = drawn(seed + number)
        files[f"image/{name}_sat.jpg"] = encoded(image, "JPEG", quality=92)
        files[f"label/{name}_mask.png"] = encoded(np.stack([mask] * 3, -1), "PNG")
    return files


def write_massachusetts_road(root: Path) -> None:
    write_files(root / "GlobalRoadSet_Val/Massachusetts_test_49", _roads(["10378780_15", "10828720_15", "26278840_15"], 320))


def write_spacenet_road(root: Path) -> None:
    names = [f"AOI_{number}_PS-RGB_img{37 * number}" for number in (2, 3, 5)]
    write_files(root / "GlobalRoadSet_Val/SpaceNet_test_567", _roads(names, 330))


def _roads(names: list[str], seed: int) -> dict[str, bytes]:
    files = {}
    for number, name in enumerate(names):
        image, mask = drawn(seed + number)
        files[f"img/{name}.jpg"] = encoded(image, "JPEG", quality=92)
        files[f"label/{name}.png"] = encoded(mask, "PNG")
    return files


def write_wbs_si(root: Path) -> None:
    """Three images of the list, not in its order, and one that is not of it; masks are JPEG."""
    files = {}
    for number in (1074, 2396, 791, 2):
        image, mask = drawn(number)
        files[f"Images/water_body_{number}.jpg"] = encoded(image, "JPEG", quality=92)
        files[f"Masks/water_body_{number}.jpg"] = encoded(mask, "JPEG", quality=75)
    write_files(root / "WBS-SI", files)


MINIATURES = {
    "whu_aerial": write_whu_aerial,
    "whu_sat_ii": write_whu_sat_ii,
    "inria": write_inria,
    "xbd": write_xbd,
    "chn6_cug": write_chn6_cug,
    "deepglobe_road": write_deepglobe_road,
    "massachusetts_road": write_massachusetts_road,
    "spacenet_road": write_spacenet_road,
    "wbs_si": write_wbs_si,
}
