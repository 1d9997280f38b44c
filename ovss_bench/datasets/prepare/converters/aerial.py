"""Multi-class aerial images: tiles of Potsdam, Vaihingen, iSAID and UAVid, and the val images of OpenEarthMap.

Tile geometry, names and colours follow mmsegmentation's converters (tools/dataset_converters/{potsdam,vaihingen,isaid}.py) and,
for UAVid and OpenEarthMap, those of likyoo/SegEarth-OV. LoveDA, UDD5 and VDD need no conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ....errors import OvssError
from ....image import refuse_ambiguous
from ..conversion import CONVERTERS, Task, by_colour, copied, files, lookup_table, numbered, require, words, write_image
from .values import decoded, image_size

Box = tuple[int, int, int, int]  # the SIDES in pixels
SIDES = ("top", "bottom", "left", "right")

# Patterns of tile names.
COLUMNS_FIRST, ROWS_FIRST = "{name}_{left}_{top}_{right}_{bottom}", "{name}_{top}_{bottom}_{left}_{right}"
ISAID_SUFFIX = "_instance_color_RGB.png"  # label maps
POTSDAM_VAL = ["5_15", "6_15", "6_13", "3_13", "4_14", "6_14", "5_14", "2_13", "4_15", "2_14", "5_13", "4_13", "3_14", "7_13"]
VAIHINGEN_VAL = [f"area{number}" for number in (6, 24, 35, 16, 14, 22, 10, 4, 2, 20, 8, 31, 33, 27, 38, 12, 29)]

# Potsdam and Vaihingen: black (eroded boundaries, which reduce_zero_label ignores), impervious surface, building, low
# vegetation, tree, car, clutter. The original converters compare 4 R + 3 G + 2 B instead of colours.
ISPRS_COLOURS = numbered("000000 ffffff 0000ff 00ffff 00ff00 ffff00 ff0000")
ISPRS_KEYS = lookup_table({4 * r + 3 * g + 2 * b: value for (r, g, b), value in ISPRS_COLOURS.items()}, 255, size=9 * 255 + 1)
# Background, ship, storage tank, baseball diamond, tennis court, basketball court, ground track field, bridge, large vehicle,
# small vehicle, helicopter, swimming pool, roundabout, soccer field, plane, harbour.
ISAID_COLOURS = numbered(
    "000000 00003f 003f3f 003f00 003f7f 003fbf 003fff 007f3f 007f7f 00007f 0000bf 0000ff 00bf7f 007fbf 007fff 00649b"
)
# Clutter, building, road, car (moving), tree, low vegetation, human; static cars have the same class as moving cars.
UAVID_COLOURS = numbered("000000 800000 804080 400080 008000 808000 404000") | {(192, 0, 192): 3}


@CONVERTERS.register_module(name="potsdam")
def potsdam(folder: Path) -> Iterator[Task]:
    """Tiles of raw/images and raw/labels, as unpacked from the two archives: top_potsdam_<row>_<column>_....tif of both
    splits."""
    return _isprs(folder, POTSDAM_VAL, slice(2, 4))


@CONVERTERS.register_module(name="vaihingen")
def vaihingen(folder: Path) -> Iterator[Task]:
    """Tiles of raw/images (`top` in the archive) and raw/labels: top_mosaic_09cm_area<n>....tif of both splits, in false
    colours."""
    return _isprs(folder, VAIHINGEN_VAL, slice(3, 4))


def _isprs(folder: Path, val: list[str], parts: slice) -> Iterator[Task]:
    """Tiles of 512 x 512 without overlap (mmseg's "stride" of 256 only counts them). The `parts` of a file name identify its
    area."""
    images, labels = (
        {"_".join(path.stem.split("_")[parts]): path for path in files(folder / "raw" / kind, "**/top_*.tif")}
        for kind in ("images", "labels")
    )
    for one, other, kind in ((images, labels, "labels"), (labels, images, "images")):
        if missing := [one[key].name for key in val if key in one and key not in other]:
            raise OvssError(f"{folder / 'raw' / kind} has no file for {missing[0]}. Unpack the official archive again.")
    sources = [(key, images[key], labels[key]) for key in val if key in images]
    if not sources:
        raise OvssError(f"{folder / 'raw/images'} has no image of the val split ({', '.join(val)}).")
    grid = partial(boxes, tile=(512, 512), step=(512, 512))
    return tiled(sources, split_folders(folder, "val"), COLUMNS_FIRST, grid, isprs_label)


def split_folders(folder: Path, split: str) -> tuple[Path, Path]:
    """The folders of images and labels in mmsegmentation's layout."""
    return folder / "img_dir" / split, folder / "ann_dir" / split


@CONVERTERS.register_module(name="isaid")
def isaid(folder: Path) -> Iterator[Task]:
    """Tiles of 896 x 896 with a stride of 512 from raw/images and raw/Semantic_masks.

    mmsegmentation's converter writes the images as BMP under names that end in .png; here they are PNG with the same content.
    """
    grid, folders = partial(boxes, tile=(896, 896), step=(512, 512)), split_folders(folder, "val")
    return tiled(isaid_sources(folder), folders, ROWS_FIRST, grid, isaid_label, (".png", ISAID_SUFFIX), fill=255)


def isaid_sources(folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """Name, image and label map of each raw image."""
    for path in files(folder / "raw/images", "*.png"):
        yield path.stem, path, folder / "raw/Semantic_masks" / f"{path.stem}{ISAID_SUFFIX}"


@CONVERTERS.register_module(name="uavid")
def uavid(folder: Path) -> Iterator[Task]:
    """Adjacent tiles of 1280 x 1080 (width x height) from raw/test_gt/<sequence>/{Images,Labels}."""
    grid = partial(boxes, tile=(1080, 1280), step=(1080, 1280))
    return tiled(uavid_sources(folder / "raw/test_gt"), split_folders(folder, "test"), ROWS_FIRST, grid, uavid_label)


def uavid_sources(folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """Name, image and label map of each raw image. The name includes the sequence, since file names repeat."""
    for path in files(folder, "*/Images/*.png"):
        yield f"{path.parts[-3]}_{path.stem}", path, path.parent.with_name("Labels") / path.name


@CONVERTERS.register_module(name="openearthmap")
def openearthmap(folder: Path) -> Iterator[Task]:
    """Copies the existing images of val.txt (those of xBD do not exist) and their labels from the folders of the regions."""
    raw = folder / "raw/OpenEarthMap_wo_xBD"
    val = set(words(raw / "val.txt"))
    images = [path for path in files(raw, "*/images/*.tif") if path.name in val]
    if not images:
        raise OvssError(f"{raw} has no image of its val.txt. Unpack the official archive again.")
    for image in images:
        both = image, image.parent.with_name("labels") / image.name
        for source, where in zip(both, split_folders(folder, "val"), strict=True):
            yield copied(source, where / image.name)


def boxes(size: tuple[int, int], tile: tuple[int, int], step: tuple[int, int]) -> list[Box]:
    """The tiles of an image; all arguments are (height, width). Tiles start every `step` pixels, and the last ones end at the
    border. If the image is smaller than a tile, tiles extend beyond it."""
    rows, columns = (
        sorted({min(start, max(0, length - side)) for start in range(0, max(0, length - side) + stride, stride)})
        for length, side, stride in zip(size, tile, step, strict=True)
    )
    return [(top, top + tile[0], left, left + tile[1]) for top in rows for left in columns]


def tiled(
    sources: Iterable[tuple[str, Path, Path]],
    folders: tuple[Path, Path],
    name: str,
    grid: Callable[[tuple[int, int]], list[Box]],
    read_label: Callable[[Path], np.ndarray],
    suffixes: tuple[str, str] = (".png", ".png"),
    fill: int = 0,
) -> Iterator[Task]:
    """Two tasks for each (name, image, label) that cut the files into tiles in the two folders.

    `name` is the pattern of tile names without suffix, `grid` returns the tiles for a size (height, width), and `fill` is the
    label beyond the image.
    """
    sources = list(sources)
    require([path for _, *both in sources for path in both])
    for stem, image, label in sources:
        size = image_size(image)
        if size != image_size(label):
            raise OvssError(f"{label} differs in size from {image}. Unpack the official archives again.")
        named = {
            name.format(name=stem, number=number, **dict(zip(SIDES, box, strict=True))): box
            for number, box in enumerate(grid(size))
        }
        kinds = zip((image, label), folders, suffixes, (read_picture, read_label), (0, fill), strict=True)
        for source, folder, suffix, read, beyond in kinds:
            places = {folder / f"{key}{suffix}": box for key, box in named.items()}
            yield Task(cut_tiles, (source, places, read, beyond), tuple(places))


def cut_tiles(source: Path, places: dict[Path, Box], read: Callable[[Path], np.ndarray], fill: int) -> None:
    """Writes the tiles of `read(source)`, padded with `fill` on the right and at the bottom."""
    array = read(source)
    beyond = [max(0, max(box[i] for box in places.values()) - array.shape[axis]) for axis, i in enumerate((1, 3))]
    array = np.pad(array, [(0, more) for more in beyond] + [(0, 0)] * (array.ndim - 2), constant_values=fill)
    for target, (top, bottom, left, right) in places.items():
        write_image(target, np.ascontiguousarray(array[top:bottom, left:right]), compress_level=1)  # for speed


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) RGB of an 8-bit image of any mode. Raises OvssError for other bit depths, which Pillow would clip."""
    refuse_ambiguous(f"image {path}", path.read_bytes())
    with Image.open(path) as image:
        if image.mode[0] in "IF":
            raise OvssError(f"image {path} has one band of 16 bits or more, expected 8. Unpack the official archive again.")
        return np.array(image.convert("RGB"))


def _isprs_values(image: np.ndarray) -> np.ndarray:
    red, green, blue = (image[..., channel].astype(np.uint16) for channel in range(3))
    return ISPRS_KEYS[4 * red + 3 * green + 2 * blue]


# Colours of no class become 0, as in the original converters. Only UAVid limits their share.
isprs_label = partial(decoded, values=_isprs_values, other=0, most=1)
isaid_label = partial(decoded, values=partial(by_colour, colours=ISAID_COLOURS), other=0, most=1)
uavid_label = partial(decoded, values=partial(by_colour, colours=UAVID_COLOURS), other=0)
