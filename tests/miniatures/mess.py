"""The data sets of MESS: archives or raw files as the `note` of each configuration asks for them; where nothing is converted,
what is read."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from mmseg.datasets import BDD100KDataset

from .drawing import encoded, scene, write_files, write_tar, write_zip

SIZE = (72, 96)
# Raw colours and values by class, as datasets describe them.
ISAID = (
    *((0, 0, 0), (0, 0, 63), (0, 63, 63), (0, 63, 0), (0, 63, 127), (0, 63, 191), (0, 63, 255), (0, 127, 63)),
    *((0, 127, 127), (0, 0, 127), (0, 0, 191), (0, 0, 255), (0, 191, 127), (0, 127, 191), (0, 127, 255), (0, 100, 155)),
)
POTSDAM = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0))
UAVID = ((0, 0, 0), (128, 0, 0), (128, 64, 128), (0, 128, 0), (128, 128, 0), (64, 0, 128), (192, 0, 192), (64, 64, 0))
SUIM = tuple((255 * (n // 4), 255 * (n // 2 % 2), 255 * (n % 2)) for n in range(8))
CWFID = ((0, 0, 0), (255, 0, 0), (0, 255, 0))
DARK_ZURICH = (0, 7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def turn(number: int, classes: Sequence[int], pieces: int = 5) -> list[int]:
    """The first class and `pieces` others, of which each number takes the next, -1 the last."""
    return [classes[0], *(classes[1:][(pieces * number + i) % (len(classes) - 1)] for i in range(pieces))]


def panorama(seed: int, classes: Sequence[int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A scene of up to 70 x 100 pixels after the other along the longer side, with all classes."""
    height, width = size
    across, step = (width >= height), 106
    parts = []
    for number, start in enumerate(range(0, max(size), step)):
        rest = min(step, max(size) - start)
        parts.append(scene(seed + number, turn(seed + number, classes), (height, rest) if across else (rest, width)))
    return tuple(np.concatenate(part, 1 if across else 0) for part in zip(*parts, strict=True))


def png(label: np.ndarray) -> bytes:
    return encoded(label.astype(np.uint8), "PNG")


def jpeg(image: np.ndarray) -> bytes:
    return encoded(image, "JPEG", quality=92, comment=b"drawn")  # which Pillow copies from a picture to its files


def coloured(label: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    return np.array(colours, np.uint8)[label]


def in_place(
    folder: str, images: str, labels: str, classes: int, ids: Sequence[str], image_suffix: str, label_suffix: str
) -> Callable[[Path], None]:
    """A writer of what is read as it is."""

    def write(root: Path) -> None:
        for number, name in enumerate(ids):
            last = name == ids[-1]
            image, label = scene(number, turn(-1 if last else number, range(classes)), SIZE)
            format = "JPEG" if image_suffix in (".jpg", ".jpeg") else "PNG"
            files = {f"{images}/{name}{image_suffix}": encoded(image, format), f"{labels}/{name}{label_suffix}": png(label)}
            write_files(root / folder, files)

    return write


def write_bdd100k(root: Path) -> None:
    palette = [value for colour in BDD100KDataset.METAINFO["palette"] for value in colour]
    palette += [0] * (768 - len(palette))
    val = ["7d06fefd-f7be05a6", "7d128593-0ccfea4c", "8a0d7a2b-1b7c62d5", "9aa94005-ff1d4c9a"]
    for number, name in enumerate(["train/0000f77c-6257be58", *(f"val/{name}" for name in val)]):
        image, label = scene(number, turn(number, range(19)), SIZE, outline=255)
        colours = encoded(label.astype(np.uint8), "PNG", palette)
        write_files(root / "bdd100k", {f"images/10k/{name}.jpg": jpeg(image), f"labels/sem_seg/colormaps/{name}.png": colours})


def write_dark_zurich(root: Path) -> None:
    for number in range(4):
        image, label = scene(number, turn(number, DARK_ZURICH), SIZE, outline=-1)
        frame = f"night/GOPR0356/GOPR0356_frame_{321 + 5 * number:06}"
        files = {
            f"rgb_anon/val/{frame}_rgb_anon.png": png(image),
            f"gt/val/{frame}_gt_labelIds.png": png(np.maximum(label, 0)),
            f"gt/val/{frame}_gt_labelTrainIds.png": png(label % 19),
            f"gt/val/{frame}_gt_invGray.png": png(np.where(label < 0, 255, 0)),
        }
        write_files(root / "Dark_Zurich", files)


def write_mhp_v1(root: Path) -> None:
    """Maps of persons that overlap, one or two for each image."""
    test = ["0004", "0017", "1201"]
    for number, name in enumerate(["0001", *test]):
        image, label = scene(number, turn(number, range(19), 6), SIZE)
        persons = [label] if number == 1 else [np.where(np.arange(96) < 60, label, 0), np.where(np.arange(96) < 40, 0, label)]
        files = {f"annotations/{name}_{len(persons):02}_{n:02}.png": png(person) for n, person in enumerate(persons, 1)}
        write_files(root / "LV-MHP-v1", files | {f"images/{name}.jpg": jpeg(image)})
    write_files(root / "LV-MHP-v1", {"test_list.txt": "".join(f"{name}.jpg\n" for name in test).encode()})


def write_atlantis(root: Path) -> None:
    names = ["train/canal/1000", "test/canal/2001", "test/canal/2002", "test/wetland/3001", "test/fjord/4001"]
    for number, name in enumerate(names):
        image, label = scene(number, turn(number - 4, range(1, 57), 6), SIZE, outline=0)
        write_files(root / "atlantis", {f"images/{name}.jpg": jpeg(image), f"masks/{name}.png": png(label)})


def write_dram(root: Path) -> None:
    """Values of all of VOC's classes."""
    names = ["Cubism/juan_gris/1", "Cubism/juan_gris/2", "Realism/ilya_repin/1", "Realism/ilya_repin/portrait"]
    for number, name in enumerate(names):
        image, label = scene(number, turn(number, range(21)), SIZE, outline=255)
        write_files(root / "DRAM_processed/raw", {f"images/{name}.jpg": jpeg(image), f"labels/{name}.png": png(label)})


def write_mess_isaid(root: Path) -> None:
    images, labels = {}, {}
    for number, (name, size) in enumerate({"P0003": (64, 1060), "P0004": (80, 96), "P0007": (1040, 60)}.items()):
        image, label = panorama(10 * number, range(16), size)
        images[f"images/{name}.png"] = png(image)
        labels[f"images/{name}_instance_color_RGB.png"] = png(coloured(label, ISAID))
    write_zip(root / "iSAID/val/images/part1.zip", images)
    write_zip(root / "iSAID/val/Semantic_masks/images.zip", labels)


def write_mess_potsdam(root: Path) -> None:
    """Label maps of which some values are a little off; 2_10 is of the training split."""
    archives = {"2_Ortho_RGB": {}, "3_Ortho_IRRG": {}, "5_Labels_all": {}}
    for number, (name, size) in enumerate({"2_10": (64, 90), "2_13": (64, 1060), "7_13": (1040, 60)}.items()):
        image, label = panorama(10 * number, range(6), size)
        colours = coloured(label, POTSDAM)
        colours[::7, ::5] = np.where(colours[::7, ::5] > 0, 250, 4)
        archives["2_Ortho_RGB"][f"2_Ortho_RGB/top_potsdam_{name}_RGB.tif"] = encoded(image, "TIFF")
        archives["3_Ortho_IRRG"][f"3_Ortho_IRRG/top_potsdam_{name}_IRRG.tif"] = encoded(image[..., [1, 0, 2]], "TIFF")
        archives["5_Labels_all"][f"top_potsdam_{name}_label.tif"] = encoded(colours, "TIFF")
    for name, files in archives.items():
        write_zip(root / f"{name}.zip", files)


def write_worldfloods(root: Path) -> None:
    """Prepared: tiles as MESS makes them, 255 where nothing was seen and beyond the image."""
    for number in range(4):
        image, label = scene(number, [number % 3, 0, 1, 2, 1, 2], SIZE, outline=255)
        beyond = [(0, 1024 - side) for side in SIZE]
        image, label = np.pad(image, [*beyond, (0, 0)]), np.pad(label, beyond, constant_values=255)
        bands = {"irrg": image[..., [1, 0, 2]], "rgb": image}
        files = {f"images_detectron2/test/{kind}/EMSR264_{number}.png": png(pixels) for kind, pixels in bands.items()}
        write_files(root / "WorldFloods", files | {f"annotations_detectron2/test/EMSR264_{number}.png": png(label)})


def write_floodnet(root: Path) -> None:
    for number, (name, size) in enumerate({"6412": (64, 1060), "7301": (80, 96), "10165": (1040, 60)}.items()):
        image, label = panorama(10 * number, range(10), size)
        files = {f"test/test-org-img/{name}.jpg": jpeg(image), f"test/test-label-img/{name}_lab.png": png(label)}
        write_files(root / "FloodNet-Supervised_v1.0", files)


def write_mess_uavid(root: Path) -> None:
    sizes = {"uavid_train/seq1": (64, 90), "uavid_val/seq16": (64, 1060), "uavid_val/seq17": (1040, 60)}
    for number, (name, size) in enumerate(sizes.items()):
        image, label = panorama(10 * number, range(8), size)
        files = {f"{name}/Images/000000.png": png(image), f"{name}/Labels/000000.png": png(coloured(label, UAVID))}
        write_files(root / "uavid_v1.5", files)


def write_kvasir_instrument(root: Path) -> None:
    """Masks of three equal channels."""
    test = ["ckcu8ty6z00003b5yzfaezbs5", "ckcuajp4x00053b5y6a29jm3k", "ckcub1tw000073b5y9w3kr4nv"]
    for number, name in enumerate(["ckcu94fht00043b5yhtdobpwl", *test]):
        image, label = scene(number, [0, 1, 1], SIZE)
        masks = np.repeat(label[..., None], 3, 2) * 255
        write_files(root / "kvasir-instrument", {f"images/{name}.jpg": jpeg(image), f"masks/{name}.png": png(masks)})
    lists = {"test.txt": "".join(f"{name}\n" for name in test).encode(), "train.txt": b"ckcu94fht00043b5yhtdobpwl\n"}
    write_files(root / "kvasir-instrument", lists)


def write_chase_db1(root: Path) -> None:
    """Eight images of training and three of test; maps of one bit, of two observers."""
    files = {}
    for number, name in enumerate(f"{eye:02}{side}" for eye in range(1, 7) for side in "LR"):
        if number == 11:
            break
        image, label = scene(number, [0, 1, 1, 1], SIZE)
        files[f"Image_{name}.jpg"] = jpeg(image)
        files[f"Image_{name}_1stHO.png"] = encoded(label.astype(bool), "PNG")
        files[f"Image_{name}_2ndHO.png"] = encoded(label[::-1].astype(bool), "PNG")
    write_zip(root / "CHASEDB1.zip", files)


def write_cryonuseg(root: Path) -> None:
    for number, name in enumerate(["Human_AdrenalGland_01", "Human_Larynx_02", "Human_Pancreas_03"]):
        image, label = scene(number, [0, 1, 1, 1], SIZE)
        files = {f"images/{name}.tif": encoded(image, "TIFF"), f"masks/{name}.png": png(255 * label)}
        write_files(root / "CryoNuSeg/raw", files)


def write_paxray(root: Path) -> None:
    """166 planes each, of which four are used; one image is of another split."""
    split = {"train": [], "test": []}
    for number, name in enumerate(["0001", "0a1b", "0c2d", "0e3f"]):
        split["test" if number else "train"].append({"image": f"images/{name}.png", "target": f"labels/{name}.npy"})
        image, label = scene(number, range(5), SIZE)
        planes = np.zeros((166, *SIZE), bool)
        for value, plane in enumerate((0, 10, 24, 163), 1):
            planes[plane] = label == value
        planes[11] = label == 0
        buffer = io.BytesIO()
        np.save(buffer, planes)
        files = {f"images/{name}.png": png(image[..., 0]), f"labels/{name}.npy": buffer.getvalue()}
        write_files(root / "paxray_dataset", files)
    write_files(root / "paxray_dataset", {"paxray.json": json.dumps(split | {"label_dict": {"0": "lungs"}}).encode()})


def write_deepcrack(root: Path) -> None:
    for number, name in enumerate(["11111", "11112-1", "IMG_6537-1"]):
        image, label = scene(number, [0, 1, 1], SIZE)
        write_files(root / "DeepCrack", {f"test_img/{name}.jpg": jpeg(image), f"test_lab/{name}.png": png(255 * label)})


def write_pst900(root: Path) -> None:
    for number in range(4):
        name, (image, label) = f"{10 + number}_rgb_bag_{number}", scene(number, range(5), SIZE)
        images = {"thermal": image[..., 0], "thermal_pseudo": image[..., ::-1], "rgb": image}
        files = {f"{kind}/{name}.png": png(pixels) for kind, pixels in images.items()}
        write_files(root / "PST900_RGBT_Dataset/test", files | {f"labels/{name}.png": png(label)})


def write_suim(root: Path) -> None:
    for number, name in enumerate(["d_r_122_", "f_r_1017_", "n_l_30_"]):
        image, label = scene(number, turn(number, range(8)), SIZE)
        files = {f"images/{name}.jpg": jpeg(image), f"masks/{name}.bmp": encoded(coloured(label, SUIM), "BMP")}
        write_files(root / "SUIM/TEST", files)


def write_cub_200(root: Path) -> None:
    """Grey masks: how many of the annotators saw the bird."""
    base, files, masks, listed, split = "CUB_200_2011", {}, {}, "", ""
    names = [
        "001.Black_footed_Albatross/Black_Footed_Albatross_0001_796111",
        "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18",
        "106.Horned_Puffin/Horned_Puffin_0002_100726",
        "106.Horned_Puffin/Horned_Puffin_0010_100765",
        "200.Common_Yellowthroat/Common_Yellowthroat_0003_190521",
    ]
    for number, name in enumerate(names, 1):
        image, label = scene(number, [0, 51, 128, 204, 255], SIZE)
        files[f"{base}/images/{name}.jpg"] = jpeg(image)
        masks[f"segmentations/{name}.png"] = png(label)
        listed += f"{number} {name}.jpg\n"
        split += f"{number} {int(number in (1, 4))}\n"
    files |= {f"{base}/images.txt": listed.encode(), f"{base}/train_test_split.txt": split.encode()}
    write_tar(root / "CUB_200_2011.tgz", files, "w:gz")
    write_tar(root / "segmentations.tgz", masks, "w:gz")


def write_cwfid(root: Path) -> None:
    for number, name in enumerate(["001", "002", "003", "060"]):  # 002 is of the training split
        image, label = scene(number, [0, 1, 2, 1, 2], SIZE)
        files = {f"images/{name}_image.png": png(image), f"annotations/{name}_annotation.png": png(coloured(label, CWFID))}
        write_files(root / "cwfid", files)


CORROSION = "Corrosion Condition State Classification/original/Test"
WASTE = "splits_final_deblurred/test"
MINIATURES = {
    "bdd100k": write_bdd100k,
    "dark_zurich": write_dark_zurich,
    "mhp_v1": write_mhp_v1,
    "foodseg103": in_place(
        *("FoodSeg103", "Images/img_dir/test", "Images/ann_dir/test", 104),
        *(["00000048", "00000052", "00000093", "00000117", "00000121"], ".jpg", ".png"),
    ),
    "atlantis": write_atlantis,
    "dram": write_dram,
    "mess_isaid": write_mess_isaid,
    "mess_potsdam": write_mess_potsdam,
    "mess_potsdam_rgb": write_mess_potsdam,
    "worldfloods": write_worldfloods,
    "worldfloods_rgb": write_worldfloods,
    "floodnet": write_floodnet,
    "mess_uavid": write_mess_uavid,
    "kvasir_instrument": write_kvasir_instrument,
    "chase_db1": write_chase_db1,
    "cryonuseg": write_cryonuseg,
    "paxray_lungs": write_paxray,
    "paxray_mediastinum": write_paxray,
    "paxray_bones": write_paxray,
    "paxray_diaphragm": write_paxray,
    "corrosion_cs": in_place(CORROSION, "images", "masks", 4, ["1", "12", "107"], ".jpeg", ".png"),
    "deepcrack": write_deepcrack,
    "pst900": write_pst900,
    "pst900_pseudo": write_pst900,
    "pst900_rgb": write_pst900,
    "zerowaste": in_place(
        *("zerowaste-f", f"{WASTE}/data", f"{WASTE}/sem_seg", 5),
        *(["01_frame_000010", "01_frame_000040", "02_frame_000070"], ".PNG", ".PNG"),
    ),
    "suim": write_suim,
    "cub_200": write_cub_200,
    "cwfid": write_cwfid,
}
