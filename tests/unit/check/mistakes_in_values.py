"""Mistakes in the values of labels, see `common.mistake`."""

import shutil
import struct
import warnings
import zlib

import numpy as np
from PIL import Image

from .common import (
    altered,
    label_paths,
    mistake,
)


@mistake("16 bits saved in 8", "ade847", "8 bits per pixel, for 847 classes", hint="16 bits")
def one_map_of_8_bits(dataset):
    path = label_paths(dataset)[0]
    altered(path, lambda label: label.astype(np.uint8))
    return [path]


@mistake("16 bits saved in 8", "ade847", "holds 255, and no label holds more", hint="16 bits")
def maps_that_were_of_8_bits(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: label.astype(np.uint8).astype(np.uint16))
    return [path for path in label_paths(dataset) if 255 in np.array(Image.open(path))]


def lowered(label):
    return np.where((label == 0) | (label == 255), 255, label - 1).astype(np.uint8)


def raised(label):
    return np.where(label == 255, 0, label + 1).astype(np.uint8)


@mistake("zero label reduced twice", "ade20k", "holds 255, and no label holds 150", hint="official archive")
def ade_lowered(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: lowered(label))
    return label_paths(dataset)


@mistake("zero label reduced twice", "voc20", "holds 255, and no label holds 20", hint="official archive")
def voc_lowered(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: lowered(label))
    return label_paths(dataset)


@mistake("zero label not reduced", "cityscapes", "holds 19, and no label holds 255", hint="v - 1")
def counted_from_one(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: raised(label))
    return [path for path in label_paths(dataset) if 19 in np.array(Image.open(path))]


@mistake("values outside the classes", "voc21", "21 (", "254 (", "%", hint="Classes are 0 to 20, ignored pixels 255")
def foreign_values(dataset):
    path = label_paths(dataset)[2]

    def change(label):
        label[:20], label[20:30] = 21, 254
        return label

    altered(path, change)
    return [path]


@mistake("values outside the classes", "ade847", "847 (", hint="Classes are 0 to 846, ignored pixels 65535")
def foreign_values_of_16_bits(dataset):
    path = label_paths(dataset)[0]

    def change(label):
        label[:20] = 847
        return label

    altered(path, change)
    return [path]


@mistake("ignored pixels missing", "voc21", "no label has ignored pixels", hint="must be 255")
def outlines_became_background(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: np.where(label == 255, 0, label))
    return [dataset.root / "SegmentationClass"]


@mistake("ignored pixels that should not be", "coco_object", "of the pixels are ignored (255)", hint="must belong to a class")
def unlabelled_pixels_ignored(dataset):
    path = label_paths(dataset)[0]

    def change(label):
        label[:10] = 255
        return label

    altered(path, change)
    return [path]


@mistake(
    "ignored pixels that should not be",
    "whu_aerial",
    "of the pixels are ignored (255)",
    hint="the object is 255, and must be 1",
)
def masks_of_0_and_255(dataset):
    path = label_paths(dataset)[0]
    altered(path, lambda label: label * 255)
    return [path]


def packed_png(depth, values):
    """A PNG file of grey of 1, 2 or 4 bits a pixel."""
    shifts = np.arange(8 - depth, -1, -depth)
    groups = np.pad(values, ((0, 0), (0, -values.shape[1] % len(shifts)))).reshape(len(values), -1, len(shifts))
    rows = (groups.astype(int) << shifts).sum(-1).astype(np.uint8)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", values.shape[1], len(values), depth, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@mistake("grey of fewer than 8 bits", "isaid", "4 bits of grey", "is read as", hint="8 bits per pixel, or with a palette")
def four_bits_of_grey(dataset):
    paths = [path for path in label_paths(dataset) if np.array(Image.open(path)).max() < 16][:2]
    for path in paths:
        path.write_bytes(packed_png(4, np.array(Image.open(path))))
    return paths


@mistake("grey of fewer than 8 bits", "udd5", "2 bits of grey", "3 is read as 255", hint="8 bits per pixel, or with a palette")
def two_bits_of_grey(dataset):
    path = label_paths(dataset)[0]
    path.write_bytes(packed_png(2, np.array(Image.open(path)) % 4))
    return [path]


def as_the_known_converters_write(path):
    """Those of iSAID and UAVid: 1 bit a pixel with a palette of one colour (mmsegmentation, issue 1504)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.fromarray(np.array(Image.open(path)), mode="P").save(path)


@mistake("too few bits for the classes", "isaid", "1 bits per pixel", hint="newer versions of Pillow")
def all_labels_of_one_bit(dataset):
    for path in label_paths(dataset):
        as_the_known_converters_write(path)
    return label_paths(dataset)


@mistake(
    "too few bits for the classes", "uavid", "1 bits per pixel, and 1 is not in the palette", hint="newer versions of Pillow"
)
def one_label_of_one_bit(dataset):
    path = label_paths(dataset)[0]
    as_the_known_converters_write(path)
    return [path]


@mistake("too few bits for the classes", "udd5", "1 bits per pixel, as in all label maps, for 5 classes", hint="Pillow")
def all_labels_of_one_bit_of_grey(dataset):
    for path in label_paths(dataset):
        Image.fromarray(np.array(Image.open(path)) > 0).save(path)
    return label_paths(dataset)


@mistake("palette of another order", "voc21", "has the colour of", "in its palette", hint="contradict each other")
def classes_in_another_order_with_their_colours(dataset):
    """Every class number one higher, and so are the colours; 0 and 255 stay."""
    order = np.array([0, *range(2, 21), 1, *range(21, 256)], np.uint8)
    for path in label_paths(dataset):
        with Image.open(path) as image:
            label, palette = np.array(image), np.array(image.getpalette()).reshape(-1, 3)
        moved = palette.copy()
        moved[order[: len(palette)]] = palette
        picture = Image.fromarray(order[label])
        picture.putpalette(moved.astype(np.uint8).tobytes())
        picture.save(path)
    return label_paths(dataset)


@mistake("masks of 0 and 255", "whu_aerial", "no label map holds anything but 0 and 255", hint="Divide")
def all_masks_of_0_and_255(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: label * 255)
    return label_paths(dataset)


@mistake("everything ignored", "voc21", "all pixels of all label maps are ignored (255)", hint="encoding")
def empty_labels(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: np.full_like(label, 255))
    return [dataset.root / dataset.config["labels"]]


@mistake("everything ignored", "ade20k", "all pixels of all label maps are ignored (255)", hint="encoding")
def labels_of_zeros_that_are_reduced(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: np.zeros_like(label))
    return [dataset.root / dataset.config["labels"]]


@mistake("everything ignored", "ade20k", "all pixels of all label maps are ignored (255)", hint="encoding")
def empty_labels_of_a_set_that_is_reduced(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: np.full_like(label, 255))
    return [dataset.root / dataset.config["labels"]]


@mistake("hardly any classes", "cryonuseg", "1 of 2 classes occur in 30 images", hint="a converter has probably lost them")
def masks_without_an_object(dataset):
    """Of a whole set: of a part, it says nothing."""
    for path in label_paths(dataset):
        altered(path, lambda label: np.zeros_like(label))
    first, *_ = dataset.samples
    for number in range(len(dataset.samples), 30):
        for path in (first.image_path, first.label_path):
            shutil.copy(path, path.with_stem(f"{path.stem}_{number}"))
    return [dataset.root / dataset.config["labels"]]


@mistake("one class nearly everywhere", "isaid", "of the pixels that are not ignored are 1 ship", hint="lost in a conversion")
def all_that_is_something_became_ships(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: np.where(label == 255, 255, 1).astype(np.uint8))
    return [dataset.root / dataset.config["labels"]]


@mistake("labels of another size", "voc21", "pixels (height x width), its image", hint="original size")
def a_row_is_missing(dataset):
    path = label_paths(dataset)[0]
    altered(path, lambda label: label[:-1])
    return [path]


@mistake("labels of another size", "voc21", "pixels (height x width), its image", hint="neither rotated")
def a_label_turned(dataset):
    path = label_paths(dataset)[0]
    altered(path, lambda label: np.ascontiguousarray(label.T))
    return [path]
