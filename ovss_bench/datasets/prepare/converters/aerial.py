"""Aerial images of several classes: Potsdam, Vaihingen, iSAID and UAVid in tiles, and OpenEarthMap's val images.

Geometry, names and colours of the tiles are those of mmsegmentation's converters (tools/dataset_converters/{potsdam,vaihingen,
isaid}.py) and, for UAVid and OpenEarthMap, of likyoo/SegEarth-OV's. LoveDA, UDD5 and VDD need no conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ....errors import OvssError
from ....image import refuse_odd
from ..conversion import (
    CONVERTERS,
    FEW,
    Task,
    by_colour,
    copy,
    files,
    image_size,
    note_pixels,
    numbered,
    require,
    starts,
    table,
    words,
    write_image,
)

Box = tuple[int, int, int, int]  # top, bottom, left, right in pixels


POTSDAM_VAL = ["5_15", "6_15", "6_13", "3_13", "4_14", "6_14", "5_14", "2_13", "4_15", "2_14", "5_13", "4_13", "3_14", "7_13"]
VAIHINGEN_VAL = [f"area{number}" for number in (6, 24, 35, 16, 14, 22, 10, 4, 2, 20, 8, 31, 33, 27, 38, 12, 29)]

# Both ISPRS sets: black (eroded boundaries, which reduce_zero_label ignores), impervious surface, building, low vegetation,
# tree, car, clutter. The original converters compare 4 R + 3 G + 2 B instead of colours.
ISPRS_COLOURS = numbered("000000 ffffff 0000ff 00ffff 00ff00 ffff00 ff0000")
ISPRS_KEYS = table({4 * r + 3 * g + 2 * b: value for (r, g, b), value in ISPRS_COLOURS.items()}, 255, size=9 * 255 + 1)
# Background, ship, storage tank, baseball diamond, tennis court, basketball court, ground track field, bridge, large vehicle,
# small vehicle, helicopter, swimming pool, roundabout, soccer field, plane, harbour.
ISAID_COLOURS = numbered(
    "000000 00003f 003f3f 003f00 003f7f 003fbf 003fff 007f3f 007f7f 00007f 0000bf 0000ff 00bf7f 007fbf 007fff 00649b"
)
# Clutter, building, road, moving car, tree, low vegetation, human; static cars are cars, too.
UAVID_COLOURS = numbered("000000 800000 804080 400080 008000 808000 404000") | {(192, 0, 192): 3}


@CONVERTERS.register_module(name="potsdam")
def potsdam(folder: Path) -> Iterator[Task]:
    """raw/images and raw/labels, as the two archives unpack: top_potsdam_<row>_<column>_....tif, also of the training split."""

    def name(path: Path) -> str:
        return "_".join(path.stem.split("_")[2:4])

    return _isprs(folder, POTSDAM_VAL, name)


@CONVERTERS.register_module(name="vaihingen")
def vaihingen(folder: Path) -> Iterator[Task]:
    """raw/images (the folder `top` of the archive) and raw/labels: top_mosaic_09cm_area<n>....tif of both splits; false colours
    (infrared, red, green) are kept."""

    def name(path: Path) -> str:
        return path.stem.split("_")[3]

    return _isprs(folder, VAIHINGEN_VAL, name)


def _isprs(folder: Path, val: list[str], name: Callable[[Path], str]) -> Iterator[Task]:
    """Tiles of 512 beside each other: the converters' "stride" of 256 only counts them; tiles start at multiples of 512."""
    images, labels = (
        {name(path): path for path in files(folder / "raw" / kind, "**/top_*.tif") if name(path) in val}
        for kind in ("images", "labels")
    )
    for one, other, kind in ((images, labels, "labels"), (labels, images, "images")):
        missing = [source for key, source in one.items() if key not in other]
        if missing:
            raise OvssError(f"{folder / 'raw' / kind} has nothing for {missing[0].name}. Unpack the official archive again.")
    if not images:
        raise OvssError(f"{folder / 'raw/images'} has no image of the val split ({', '.join(val)}).")
    sources = [(key, images[key], labels[key]) for key in val if key in images]
    yield from tiled(sources, folder, "val", (512, 512), (512, 512), "{name}_{left}_{top}_{right}_{bottom}", isprs_label)


@CONVERTERS.register_module(name="isaid")
def isaid(folder: Path) -> Iterator[Task]:
    """Tiles of 896 every 512 pixels of raw/images and raw/Semantic_masks.

    mmsegmentation's converter writes the images as BMP under names that end in .png; here they are PNG, of the same content.
    """
    images = files(folder / "raw/images", "*.png")
    suffix = "_instance_color_RGB"
    sources = [(path.stem, path, folder / "raw/Semantic_masks" / f"{path.stem}{suffix}.png") for path in images]
    name = "{name}_{top}_{bottom}_{left}_{right}"
    yield from tiled(sources, folder, "val", (896, 896), (512, 512), name, isaid_label, suffix, fill=255)


@CONVERTERS.register_module(name="uavid")
def uavid(folder: Path) -> Iterator[Task]:
    """Tiles of 1280 x 1080 (width x height) beside each other of raw/test_gt/<sequence>/{Images,Labels}."""
    images = files(folder / "raw/test_gt", "*/Images/*.png")
    sources = [
        (f"{path.parts[-3]}_{path.stem}", path, path.parent.with_name("Labels") / path.name)  # of the same name
        for path in images
    ]
    name = "{name}_{top}_{bottom}_{left}_{right}"
    yield from tiled(sources, folder, "test", (1080, 1280), (1080, 1280), name, uavid_label)


@CONVERTERS.register_module(name="openearthmap")
def openearthmap(folder: Path) -> Iterator[Task]:
    """Copies existing images of val.txt (those of xBD are missing) and their labels from the folders of the regions."""
    raw = folder / "raw/OpenEarthMap_wo_xBD"
    val = set(words(raw / "val.txt"))
    images = [path for path in files(raw, "*/images/*.tif") if path.name in val]
    if not images:
        raise OvssError(f"{raw} has no image of its val.txt. Unpack the official archive again.")
    labels = [path.parent.with_name("labels") / path.name for path in images]
    require(labels)
    for kind, sources in (("img_dir", images), ("ann_dir", labels)):
        for source in sources:
            target = folder / kind / "val" / source.name
            yield Task(copy, (source, target), (target,))


def boxes(size: tuple[int, int], tile: tuple[int, int], step: tuple[int, int]) -> list[Box]:
    """The tiles of an image; all arguments are (height, width). They start every `step` pixels, the last flush with the border;
    they extend beyond the image where it is smaller than a tile."""
    (height, width), (down, across) = tile, step
    rows, columns = starts(size[0], height, down), starts(size[1], width, across)
    return [(top, top + height, left, left + width) for top in rows for left in columns]


def tiled(
    sources: Iterable[tuple[str, Path, Path]],
    folder: Path,
    split: str,
    tile: tuple[int, int],
    step: tuple[int, int],
    name: str,
    read_label: Callable[[Path], np.ndarray],
    label_suffix: str = "",
    fill: int = 0,
) -> Iterator[Task]:
    """Two tasks for each (name, image, label), which cut the files into tiles below img_dir and ann_dir.

    `name` is the pattern of the tiles' names, `fill` the label beyond the image.
    """
    sources = list(sources)
    require([path for _, *both in sources for path in both])
    for stem, image, label in sources:
        size = image_size(image)
        if size != image_size(label):
            raise OvssError(f"{label} has another size than {image}. Unpack the official archives again.")
        places = {
            name.format(name=stem, top=box[0], bottom=box[1], left=box[2], right=box[3]): box for box in boxes(size, tile, step)
        }
        pictures = {folder / "img_dir" / split / f"{key}.png": box for key, box in places.items()}
        maps = {folder / "ann_dir" / split / f"{key}{label_suffix}.png": box for key, box in places.items()}
        yield Task(cut, (image, pictures, read_picture, 0), tuple(pictures))
        yield Task(cut, (label, maps, read_label, fill), tuple(maps))


def cut(source: Path, places: dict[Path, Box], read: Callable[[Path], np.ndarray], fill: int) -> None:
    """Writes the tiles of `read(source)`, padded with `fill` on the right and at the bottom."""
    array = read(source)
    beyond = [max(0, max(box[i] for box in places.values()) - array.shape[axis]) for axis, i in enumerate((1, 3))]
    array = np.pad(array, [(0, more) for more in beyond] + [(0, 0)] * (array.ndim - 2), constant_values=fill)
    for target, (top, bottom, left, right) in places.items():
        write_image(target, np.ascontiguousarray(array[top:bottom, left:right]), compress_level=1)  # for speed


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) RGB of an 8-bit image of any mode. Raises OvssError for other depths, which Pillow would clip."""
    refuse_odd(f"image {path}", path.read_bytes())
    with Image.open(path) as image:
        if image.mode[0] in "IF":
            raise OvssError(f"image {path} has one band of 16 bits or more, expected 8. Unpack the official archive again.")
        return np.array(image.convert("RGB"))


def isprs_label(path: Path) -> np.ndarray:
    return _decoded(path, _isprs_values)


def isaid_label(path: Path) -> np.ndarray:
    return _decoded(path, partial(by_colour, colours=ISAID_COLOURS, default=255))


def uavid_label(path: Path) -> np.ndarray:
    """Raises OvssError if more than a few pixels have unofficial colours."""
    return _decoded(path, partial(by_colour, colours=UAVID_COLOURS, default=255), FEW)


def _isprs_values(image: np.ndarray) -> np.ndarray:
    red, green, blue = (image[..., channel].astype(np.uint16) for channel in range(3))
    return ISPRS_KEYS[4 * red + 3 * green + 2 * blue]


def _decoded(path: Path, values: Callable[[np.ndarray], np.ndarray], most: float = 1, rows: int = 128) -> np.ndarray:
    """(H, W) uint8: `values` of the colours of a label map, in blocks of rows, since maps have up to 60 million pixels. Colours
    of no class (255) become 0, as in the original converters, with a note.

    Raises OvssError for a map without colours, or if the share of colours of no class exceeds `most`.
    """
    with Image.open(path) as file:
        if file.mode in ("1", "L", "I", "I;16"):
            raise OvssError(f"label map {path} has one channel, expected RGB colours. Unpack the official archive again.")
        image = np.array(file.convert("RGB"))
    label = np.concatenate([values(image[top : top + rows]) for top in range(0, len(image), rows)])
    other = label == 255
    if other.mean() > most:
        wrong = np.unique(image[other][:10_000], axis=0)[:3].tolist()
        raise OvssError(f"label map {path} has the colours {wrong} (RGB), which belong to no class. Unpack it again.")
    note_pixels(other.sum(), "have a colour of no class; they count as 0")
    label[other] = 0
    return label
