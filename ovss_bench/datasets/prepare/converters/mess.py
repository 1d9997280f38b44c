"""The data sets of MESS (arXiv 2306.15521): converts raw files to the output of the preparation scripts in blumenstiel/MESS.

The output is `images_detectron2/<split>` and `annotations_detectron2/<split>` below the data set's folder, with PNG label maps
of class numbers; 255 is ignored. Where MESS recompresses JPEG images, `images` chooses between recompressed images (`mess`) and
copies of the files (`original`). The `note` in each configs/dataset/<name>.yaml says where the raw files must be. FoodSeg103,
Corrosion CS, PST900 and ZeroWaste-f need no conversion. There is no converter for WorldFloods, because MESS scales its bands by
its own statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ....errors import OvssError
from ..conversion import CONVERTERS, Task, by_colour, files, labelled, numbered, write_label
from .aerial import POTSDAM_VAL, Box, isaid_label, isaid_sources, tiled, uavid_sources
from .mess_parts import IMAGES, LABELS, Reader, listed, one_of, pair, pictured, two_columns
from .values import black_or_white, brighter, by_rounded_colour, decoded, first_channel, luminance, numbers, some_numbers

TILE = 1024

# General


@CONVERTERS.register_module(name="bdd100k")
def bdd100k(folder: Path) -> Iterator[Task]:
    """The colour maps are palette images that hold train ids."""
    read = partial(numbers, codes={number: number for number in (*range(19), 255)})
    for source in files(folder / "labels/sem_seg/colormaps/val", "*.png"):
        yield labelled(read, source, folder / LABELS / "val" / source.name)


DARK_ZURICH = {old: new for new, old in enumerate((0, 7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33))}  # Cityscapes' ids


@CONVERTERS.register_module(name="dark_zurich")
def dark_zurich(folder: Path) -> Iterator[Task]:
    for source in files(folder / "gt/val/night/GOPR0356", "*_gt_labelIds.png"):
        invalid = source.with_name(source.name.replace("_gt_labelIds", "_gt_invGray"))
        target = folder / LABELS / "val" / source.name
        yield Task(valid_ids, (source, invalid, target), (target,))


def valid_ids(source: Path, invalid: Path, target: Path) -> None:
    """Ignores the pixels that annotators could not recognise at night, which are 255 in the mask of invalid pixels."""
    label, mask = numbers(source, DARK_ZURICH), first_channel(invalid)
    if mask.shape != label.shape:
        raise OvssError(f"{invalid} differs in size from {source}. Unpack the official archive again.")
    write_label(target, np.where(mask == 255, np.uint8(255), label))


@CONVERTERS.register_module(name="mhp_v1")
def mhp_v1(folder: Path, images: str = "mess") -> Iterator[Task]:
    persons: dict[str, list[Path]] = {}
    for path in files(folder / "annotations", "*.png"):  # <id>_<number of persons>_<person>.png
        persons.setdefault(path.stem.rsplit("_", 2)[0], []).append(path)
    for name in listed(folder / "test_list.txt"):
        image, target = folder / "images" / f"{name}.jpg", folder / LABELS / "test" / f"{name}.png"
        if name not in persons:
            raise OvssError(f"there is no {name}_*.png in {folder / 'annotations'}. Unpack the official archive again.")
        yield pictured(image, folder / IMAGES / "test" / image.name, images)
        yield Task(highest, (*persons[name], target), (target,))


def highest(*paths: Path) -> None:
    """Writes the maximum of the masks of all persons: where they overlap, the higher class number wins."""
    *sources, target = paths
    masks = [numbers(source, {number: number for number in range(19)}) for source in sources]
    for source, mask in zip(sources, masks, strict=True):
        if mask.shape != masks[0].shape:
            raise OvssError(f"{source} differs in size from {sources[0]}. Unpack the official archive again.")
    write_label(target, np.maximum.reduce(masks))


@CONVERTERS.register_module(name="atlantis")
def atlantis(folder: Path, images: str = "mess") -> Iterator[Task]:
    """Classes 1 to 56 become 0 to 55, and 0 is ignored. All images are put into one folder."""
    raw = folder / "images/test"
    read = partial(numbers, codes={0: 255} | {number: number - 1 for number in range(1, 57)})
    for image in files(raw, "**/*.jpg"):
        label = folder / "masks/test" / image.relative_to(raw).with_suffix(".png")
        yield from pair(read, image, label, folder, image.name, images)


DRAM = {old: new for new, old in enumerate((3, 4, 5, 8, 9, 10, 12, 13, 15, 16, 17))} | {255: 255}  # VOC's ids


@CONVERTERS.register_module(name="dram")
def dram(folder: Path, images: str = "mess") -> Iterator[Task]:
    """Classes other than the eleven become background, 11. File names are prefixed with the folder, which is the artist."""
    raw = folder / "raw/images"
    read = partial(some_numbers, codes=DRAM, others=11)
    for image in files(raw, "**/*.jpg"):
        label = folder / "raw/labels" / image.relative_to(raw).with_suffix(".png")
        yield from pair(read, image, label, folder, f"{image.parent.name}_{image.name}", images)


# Earth monitoring


@CONVERTERS.register_module(name="mess_isaid")
def mess_isaid(folder: Path) -> Iterator[Task]:
    """Colours of no class become background, as in mmsegmentation's converter."""
    return tiles(isaid_sources(folder), folder, "val", isaid_label)


POTSDAM = numbered("ffffff 0000ff 00ffff 00ff00 ffff00 ff0000")  # without the black boundaries


def potsdam_tiles(folder: Path, orthophotos: str, kind: str) -> Iterator[Task]:
    """The existing images of mmsegmentation's val split, with the labels that include boundaries."""
    images, labels = (
        {path.name: path for path in files(folder / "raw" / where, "**/top_potsdam_*.tif")}
        for where in (orthophotos, "5_Labels_all")
    )
    if not (val := [name for name in POTSDAM_VAL if f"top_potsdam_{name}_label.tif" in labels]):
        raise OvssError(f"{folder / 'raw/5_Labels_all'} has no label of the val split ({', '.join(POTSDAM_VAL)}).")
    names = {name: f"top_potsdam_{name}_{kind}.tif" for name in val}
    if missing := [image for image in names.values() if image not in images]:
        raise OvssError(f"there is no {missing[0]} in {folder / 'raw' / orthophotos}. Unpack {orthophotos}.zip there.")
    sources = [(name, images[image], labels[f"top_potsdam_{name}_label.tif"]) for name, image in names.items()]
    read = partial(decoded, values=partial(by_rounded_colour, colours=POTSDAM))
    yield from tiles(sources, folder, "test", read, part=kind.lower())


for _name, _orthophotos, _kind in (("mess_potsdam", "3_Ortho_IRRG", "IRRG"), ("mess_potsdam_rgb", "2_Ortho_RGB", "RGB")):
    CONVERTERS.register_module(name=_name, module=partial(potsdam_tiles, orthophotos=_orthophotos, kind=_kind))


@CONVERTERS.register_module(name="floodnet")
def floodnet(folder: Path) -> Iterator[Task]:
    """Image tiles are JPEG files with Pillow's default quality."""
    read = partial(numbers, codes={number: number for number in range(10)})
    images = files(folder / "test/test-org-img", "*.jpg")
    sources = [(image.stem, image, folder / "test/test-label-img" / f"{image.stem}_lab.png") for image in images]
    return tiles(sources, folder, "test", read, suffix=".jpg")


UAVID = {0: 0, 38: 1, 90: 2, 75: 3, 113: 4, 34: 5, 79: 6, 57: 7}  # luminance of the colour -> class


@CONVERTERS.register_module(name="mess_uavid")
def mess_uavid(folder: Path) -> Iterator[Task]:
    return tiles(uavid_sources(folder / "uavid_val"), folder, "val", partial(luminance, codes=UAVID))


def tiles(
    sources: Iterable[tuple[str, Path, Path]], folder: Path, split: str, read: Reader, suffix: str = ".png", part: str = ""
) -> Iterator[Task]:
    """MESS's tiles `<name>_<number>` of each (name, image, label). Image tiles are in the folder `part` of the split."""
    folders = folder / IMAGES / split / part, folder / LABELS / split
    return tiled(sources, folders, "{name}_{number}", grid, read, (suffix, ".png"), fill=255)


def grid(size: tuple[int, int]) -> list[Box]:
    """The tiles of an image of `size` (height, width), row by row without overlap; the last ones may extend beyond it."""
    return [(top, top + TILE, left, left + TILE) for top in range(0, size[0], TILE) for left in range(0, size[1], TILE)]


# Medical sciences


@CONVERTERS.register_module(name="kvasir_instrument")
def kvasir_instrument(folder: Path) -> Iterator[Task]:
    for name in listed(folder / "test.txt"):
        image, label = one_of(folder / "images", name, (".jpg", ".png")), folder / "masks" / f"{name}.png"
        yield from pair(black_or_white, image, label, folder, f"{name}.png")


@CONVERTERS.register_module(name="chase_db1")
def chase_db1(folder: Path, images: str = "mess") -> Iterator[Task]:
    """The first observer's vessels in all images from the ninth on. White means 128 or more, as in mmsegmentation's
    converter."""
    read = partial(brighter, threshold=127, number=1)
    for image in files(folder / "raw", "Image_*.jpg")[8:]:
        yield from pair(read, image, image.with_name(f"{image.stem}_1stHO.png"), folder, image.name, images)


@CONVERTERS.register_module(name="cryonuseg")
def cryonuseg(folder: Path) -> Iterator[Task]:
    for image in files(folder / "raw/images", "*.tif"):
        label = one_of(folder / "raw/masks", image.stem, (".png", ".tif"))
        yield from pair(black_or_white, image, label, folder, f"{image.stem}.png")


# Engineering


@CONVERTERS.register_module(name="deepcrack")
def deepcrack(folder: Path) -> Iterator[Task]:
    for source in files(folder / "test_lab", "*.png"):
        yield labelled(black_or_white, source, folder / LABELS / "test" / source.name)


# Agriculture and biology

SUIM = numbered("000000 0000ff 00ff00 00ffff ff0000 ff00ff ffff00 ffffff")


@CONVERTERS.register_module(name="suim")
def suim(folder: Path) -> Iterator[Task]:
    read = partial(decoded, values=partial(by_rounded_colour, colours=SUIM))
    for source in files(folder / "TEST/masks", "*.bmp"):
        yield labelled(read, source, folder / LABELS / "test" / f"{source.stem}.png")


@CONVERTERS.register_module(name="cub_200")
def cub_200(folder: Path, images: str = "mess") -> Iterator[Task]:
    """The bird is where the mask exceeds 128; its class is the number at the start of the folder name."""
    training = dict(two_columns(folder / "train_test_split.txt"))
    for number, name in two_columns(folder / "images.txt"):
        if training.get(number) == "0":
            image, label = folder / "images" / name, (folder / "segmentations" / name).with_suffix(".png")
            read = partial(brighter, threshold=128, number=species(name, folder))
            yield from pair(read, image, label, folder, image.name, images)


def species(name: str, folder: Path) -> int:
    number = name.partition(".")[0]
    if not (number.isascii() and number.isdigit() and 1 <= int(number) <= 200):
        raise OvssError(f"{folder / 'images.txt'} names {name}, expected <number of the species>.<name>/<image>.jpg.")
    return int(number)


CWFID = numbered("000000 ff0000 00ff00")
CWFID_TEST = (1, 3, 4, 9, 10, 13, 15, 21, 22, 26, 28, 29, 30, 32, 35, 39, 44, 47, 48, 54, 60)


@CONVERTERS.register_module(name="cwfid")
def cwfid(folder: Path) -> Iterator[Task]:
    """The existing images of the test split."""
    ids = {path.name.removesuffix("_annotation.png") for path in files(folder / "annotations", "*_annotation.png")}
    test = [name for name in (f"{number:03}" for number in CWFID_TEST) if name in ids]
    if not test:
        raise OvssError(f"{folder / 'annotations'} has no map of the test split (001, 003, ...). Unpack the official archive.")
    read = partial(decoded, values=partial(by_colour, colours=CWFID))
    for name in test:
        image, label = folder / "images" / f"{name}_image.png", folder / "annotations" / f"{name}_annotation.png"
        yield pictured(image, folder / IMAGES / "test" / image.name)
        yield labelled(read, label, folder / LABELS / "test" / label.name)
