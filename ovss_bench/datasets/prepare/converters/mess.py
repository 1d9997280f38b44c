"""The data sets of MESS (arXiv 2306.15521), from their raw files to the output of blumenstiel/MESS's preparation scripts.

The output is `images_detectron2/<split>` and `annotations_detectron2/<split>` below the data set's folder, with PNG label maps
of class numbers, 255 ignored. Where MESS saves JPEG images as JPEG again, `images` chooses between that (`mess`) and copies of
the files (`original`). The `note` of each configs/dataset/<name>.yaml says where the raw files must lie. FoodSeg103, Corrosion
CS, PST900 and ZeroWaste-f need no conversion; there is no converter for WorldFloods, whose bands MESS scales by its own
statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ....errors import OvssError
from ..conversion import CONVERTERS, Task, files, image_size, require, write_label
from .aerial import POTSDAM_VAL, cut, isaid_label, read_picture
from .mess_parts import (
    IMAGES,
    LABELS,
    Reader,
    bits,
    black_or_white,
    brighter,
    colours,
    columns,
    first_channel,
    labelled,
    listed,
    luminance,
    numbers,
    one_of,
    pictured,
    some_numbers,
    unique,
)

TILE = 1024

# General


@CONVERTERS.register_module(name="bdd100k")
def bdd100k(folder: Path) -> Iterator[Task]:
    """The colour maps are palette images of train ids."""
    read = partial(numbers, codes={number: number for number in (*range(19), 255)})
    for source in files(folder / "labels/sem_seg/colormaps/val", "*.png"):
        yield labelled(read, source, folder / LABELS / "val" / source.name)


DARK_ZURICH = {old: new for new, old in enumerate((0, 7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33))}  # Cityscapes' ids


@CONVERTERS.register_module(name="dark_zurich")
def dark_zurich(folder: Path) -> Iterator[Task]:
    for source in files(folder / "gt/val/night/GOPR0356", "*_gt_labelIds.png"):
        invalid = source.with_name(source.name.replace("_gt_labelIds", "_gt_invGray"))
        target = folder / LABELS / "val" / source.name
        require([invalid])
        yield Task(valid_ids, (source, invalid, target), (target,))


def valid_ids(source: Path, invalid: Path, target: Path) -> None:
    """Pixels that the annotators could not recognise at night, 255 in the mask of invalid pixels, are ignored."""
    label, mask = numbers(source, DARK_ZURICH), first_channel(invalid)
    if mask.shape != label.shape:
        raise OvssError(f"{invalid} has another size than {source}. Unpack the official archive again.")
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
        yield Task(highest, (persons[name], target), (target,))


def highest(sources: Sequence[Path], target: Path) -> None:
    """The maximum of the masks of all persons: where they overlap, the higher class number wins."""
    masks = [numbers(source, {number: number for number in range(19)}) for source in sources]
    for source, mask in zip(sources, masks, strict=True):
        if mask.shape != masks[0].shape:
            raise OvssError(f"{source} has another size than {sources[0]}. Unpack the official archive again.")
    write_label(target, np.maximum.reduce(masks))


@CONVERTERS.register_module(name="atlantis")
def atlantis(folder: Path, images: str = "mess") -> Iterator[Task]:
    """Classes 1 to 56; the folders of the images are flattened."""
    raw = folder / "images/test"
    pictures = files(raw, "**/*.jpg")
    unique((image.stem for image in pictures), raw)
    read = partial(numbers, codes={0: 255} | {number: number - 1 for number in range(1, 57)})
    for image in pictures:
        label = folder / "masks/test" / image.relative_to(raw).with_suffix(".png")
        yield pictured(image, folder / IMAGES / "test" / image.name, images)
        yield labelled(read, label, folder / LABELS / "test" / label.name)


DRAM = {old: new for new, old in enumerate((3, 4, 5, 8, 9, 10, 12, 13, 15, 16, 17))} | {255: 255}  # VOC's ids


@CONVERTERS.register_module(name="dram")
def dram(folder: Path, images: str = "mess") -> Iterator[Task]:
    """Other classes than the eleven become background, 11. Names are prefixed with the artist, the name of the folder."""
    raw = folder / "raw/images"
    named = [(image, f"{image.parent.name}_{image.stem}") for image in files(raw, "**/*.jpg")]
    unique((name for _, name in named), raw)
    for image, name in named:
        label = folder / "raw/labels" / image.relative_to(raw).with_suffix(".png")
        yield pictured(image, folder / IMAGES / "test" / f"{name}.jpg", images)
        yield labelled(partial(some_numbers, codes=DRAM, others=11), label, folder / LABELS / "test" / f"{name}.png")


# Earth monitoring


@CONVERTERS.register_module(name="mess_isaid")
def mess_isaid(folder: Path) -> Iterator[Task]:
    """Colours of no class become background, as in mmsegmentation's converter."""
    for image in files(folder / "raw/images", "*.png"):
        label = folder / "raw/Semantic_masks" / f"{image.stem}_instance_color_RGB.png"
        yield from tiles(isaid_label, image, label, image.stem, folder / IMAGES / "val", folder / LABELS / "val")


POTSDAM = {(1, 1, 1): 0, (0, 0, 1): 1, (0, 1, 1): 2, (0, 1, 0): 3, (1, 1, 0): 4, (1, 0, 0): 5}


@CONVERTERS.register_module(name="mess_potsdam")
def mess_potsdam(folder: Path) -> Iterator[Task]:
    return potsdam_tiles(folder, "3_Ortho_IRRG", "IRRG")


@CONVERTERS.register_module(name="mess_potsdam_rgb")
def mess_potsdam_rgb(folder: Path) -> Iterator[Task]:
    return potsdam_tiles(folder, "2_Ortho_RGB", "RGB")


def potsdam_tiles(folder: Path, orthophotos: str, kind: str) -> Iterator[Task]:
    """The existing images of mmsegmentation's val split, with the labels that include boundaries."""
    images, labels = (
        {path.name: path for path in files(folder / "raw" / where, "**/top_potsdam_*.tif")}
        for where in (orthophotos, "5_Labels_all")
    )
    val = [name for name in POTSDAM_VAL if f"top_potsdam_{name}_label.tif" in labels]
    if not val:
        raise OvssError(f"{folder / 'raw/5_Labels_all'} has no label of the val split ({', '.join(POTSDAM_VAL)}).")
    for name in val:
        image, label = f"top_potsdam_{name}_{kind}.tif", f"top_potsdam_{name}_label.tif"
        if image not in images:
            raise OvssError(f"there is no {image} in {folder / 'raw' / orthophotos}. Unpack {orthophotos}.zip there.")
        where = folder / IMAGES / "test" / kind.lower(), folder / LABELS / "test"
        yield from tiles(partial(bits, codes=POTSDAM), images[image], labels[label], name, *where)


@CONVERTERS.register_module(name="floodnet")
def floodnet(folder: Path) -> Iterator[Task]:
    """Tiles of the images are JPEG files of Pillow's default quality."""
    read = partial(numbers, codes={number: number for number in range(10)})
    for image in files(folder / "test/test-org-img", "*.jpg"):
        label = folder / "test/test-label-img" / f"{image.stem}_lab.png"
        yield from tiles(read, image, label, image.stem, folder / IMAGES / "test", folder / LABELS / "test", ".jpg")


UAVID = {0: 0, 38: 1, 90: 2, 75: 3, 113: 4, 34: 5, 79: 6, 57: 7}  # by the luminance of the colour


@CONVERTERS.register_module(name="mess_uavid")
def mess_uavid(folder: Path) -> Iterator[Task]:
    for image in files(folder / "uavid_val", "*/Images/*.png"):
        sequence = image.parents[1]
        where = folder / IMAGES / "val", folder / LABELS / "val"
        name, label = f"{sequence.name}_{image.stem}", sequence / "Labels" / image.name
        yield from tiles(partial(luminance, codes=UAVID), image, label, name, *where)


# Medical sciences


@CONVERTERS.register_module(name="kvasir_instrument")
def kvasir_instrument(folder: Path) -> Iterator[Task]:
    for name in listed(folder / "test.txt"):
        image, label = one_of(folder / "images", name, (".jpg", ".png")), folder / "masks" / f"{name}.png"
        yield pictured(image, folder / IMAGES / "test" / f"{name}.png")
        yield labelled(black_or_white, label, folder / LABELS / "test" / f"{name}.png")


@CONVERTERS.register_module(name="chase_db1")
def chase_db1(folder: Path, images: str = "mess") -> Iterator[Task]:
    """The first observer's vessels in all images from the ninth on; values of 128 and more are white, as in mmsegmentation's
    converter, according to which some maps are not purely black and white."""
    for image in files(folder / "raw", "Image_*.jpg")[8:]:
        label = image.with_name(f"{image.stem}_1stHO.png")
        yield pictured(image, folder / IMAGES / "test" / image.name, images)
        yield labelled(partial(brighter, threshold=127, number=1), label, folder / LABELS / "test" / f"{image.stem}.png")


@CONVERTERS.register_module(name="cryonuseg")
def cryonuseg(folder: Path) -> Iterator[Task]:
    for image in files(folder / "raw/images", "*.tif"):
        label = one_of(folder / "raw/masks", image.stem, (".png", ".tif"))
        yield pictured(image, folder / IMAGES / "test" / f"{image.stem}.png")
        yield labelled(black_or_white, label, folder / LABELS / "test" / f"{image.stem}.png")


# Engineering


@CONVERTERS.register_module(name="deepcrack")
def deepcrack(folder: Path) -> Iterator[Task]:
    for source in files(folder / "test_lab", "*.png"):
        yield labelled(black_or_white, source, folder / LABELS / "test" / source.name)


# Agriculture and biology

SUIM = {(number >> 2 & 1, number >> 1 & 1, number & 1): number for number in range(8)}  # black 0, blue 1, ..., white 7


@CONVERTERS.register_module(name="suim")
def suim(folder: Path) -> Iterator[Task]:
    for source in files(folder / "TEST/masks", "*.bmp"):
        yield labelled(partial(bits, codes=SUIM), source, folder / LABELS / "test" / f"{source.stem}.png")


@CONVERTERS.register_module(name="cub_200")
def cub_200(folder: Path, images: str = "mess") -> Iterator[Task]:
    """The bird is where the mask exceeds 128; its class is the number at the start of its folder's name."""
    training = dict(columns(folder / "train_test_split.txt"))
    for number, name in columns(folder / "images.txt"):
        if training.get(number) == "0":
            image, label = folder / "images" / name, (folder / "segmentations" / name).with_suffix(".png")
            read = partial(brighter, threshold=128, number=species(name, folder))
            yield pictured(image, folder / IMAGES / "test" / image.name, images)
            yield labelled(read, label, folder / LABELS / "test" / label.name)


def species(name: str, folder: Path) -> int:
    number = name.partition(".")[0]
    if not (number.isascii() and number.isdigit() and 1 <= int(number) <= 200):
        raise OvssError(f"{folder / 'images.txt'} names {name}, expected <number of the species>.<name>/<image>.jpg.")
    return int(number)


CWFID = {(0, 0, 0): 0, (255, 0, 0): 1, (0, 255, 0): 2}
CWFID_TEST = (1, 3, 4, 9, 10, 13, 15, 21, 22, 26, 28, 29, 30, 32, 35, 39, 44, 47, 48, 54, 60)


@CONVERTERS.register_module(name="cwfid")
def cwfid(folder: Path) -> Iterator[Task]:
    """The existing images of the test split."""
    ids = {path.name.removesuffix("_annotation.png") for path in files(folder / "annotations", "*_annotation.png")}
    test = [name for name in (f"{number:03}" for number in CWFID_TEST) if name in ids]
    if not test:
        raise OvssError(
            f"{folder / 'annotations'} has no map of the test split (001, 003, ...). Unpack the official archive again."
        )
    for name in test:
        image, label = folder / "images" / f"{name}_image.png", folder / "annotations" / f"{name}_annotation.png"
        yield pictured(image, folder / IMAGES / "test" / image.name)
        yield labelled(partial(colours, codes=CWFID), label, folder / LABELS / "test" / label.name)


# Tiles.


def tiles(
    read: Reader, image: Path, label: Path, name: str, images: Path, labels: Path, suffix: str = ".png"
) -> Iterator[Task]:
    """Two tasks that cut an image and its label map into `<name>_<k>` below the folders `images` and `labels`."""
    require([label])
    size = image_size(label)
    if image_size(image) != size:
        raise OvssError(f"{label} has another size than {image}. Unpack the official archives again.")
    pictures = {images / f"{name}_{k}{suffix}": box for k, box in enumerate(grid(*size))}
    maps = {labels / f"{name}_{k}.png": box for k, box in enumerate(grid(*size))}
    yield Task(cut, (image, pictures, read_picture, 0), tuple(pictures))
    yield Task(cut, (label, maps, read, 255), tuple(maps))


def grid(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """Top, bottom, left and right of MESS's tiles: row by row without overlap; the last ones extend beyond the image."""
    return [(top, top + TILE, left, left + TILE) for top in range(0, height, TILE) for left in range(0, width, TILE)]
