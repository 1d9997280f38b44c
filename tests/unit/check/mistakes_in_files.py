"""Mistakes in lists, files and formats, see `common.mistake`."""

import shutil

import numpy as np
from PIL import Image

from .common import (
    altered,
    label_paths,
    mistake,
)


@mistake("ids listed twice", "voc21", "2007_000033", hint="once")
def a_line_twice(dataset):
    path = dataset.root / dataset.config["ids"]
    path.write_text(path.read_text() + "2007_000033\n")
    return [path]


@mistake("missing ids", "voc21", "2012_000001 is in val.txt", hint="list")
def an_id_without_files(dataset):
    path = dataset.root / dataset.config["ids"]
    path.write_text(path.read_text() + "2012_000001\n")
    return [dataset.root / "JPEGImages/2012_000001.jpg"]


@mistake("label without image", "voc21", "there is no image JPEGImages/2007_000033.jpg", hint="JPEGImages/<id>.jpg")
def an_image_is_not_there(dataset):
    dataset.samples[0].image_path.unlink()
    return [dataset.samples[0].label_path]


@mistake("label without image", "ade20k", "there is no image", hint="images/validation/<id>.jpg")
def an_image_of_no_list_is_not_there(dataset):
    dataset.samples[0].image_path.unlink()
    return [dataset.samples[0].label_path]


@mistake("label without image", "ade20k", "there is no image", "there is", ".JPEG", hint="images/validation/<id>.jpg")
def an_image_of_another_suffix(dataset):
    path = dataset.samples[1].image_path
    path.rename(path.with_suffix(".JPEG"))
    return [dataset.samples[1].label_path]


@mistake("image without label", "ade20k", "there is no label annotations/validation/", hint="annotations/validation/<id>.png")
def a_label_is_not_there(dataset):
    dataset.samples[1].label_path.unlink()
    return [dataset.samples[1].image_path]


@mistake("image without label", "ade20k", "but there is", ".tif", hint="annotations/validation/<id>.png")
def labels_of_another_suffix(dataset):
    for path in label_paths(dataset):
        path.rename(path.with_suffix(".tif"))
    return [sample.image_path for sample in dataset.samples]


@mistake("image without label", "voc21", "but there is SegmentationClass/new/2007_000033.png", hint="move")
def a_label_in_another_folder(dataset):
    path = dataset.samples[0].label_path
    (path.parent / "new").mkdir()
    path.rename(path.parent / "new" / path.name)
    return [dataset.samples[0].image_path]


@mistake("ids of another split", "ade20k", "ADE_train_00000001", hint="papers report on")
def an_image_of_the_training_split(dataset):
    sample, paths = dataset.samples[0], []
    for path in (sample.image_path, sample.label_path):
        paths.append(path.with_stem("ADE_train_00000001"))
        path.rename(paths[-1])
    return paths[:1]


@mistake("list of another split", "voc21", "1 of 1 ids are in train.txt", "2007_000032", hint="official list")
def the_list_of_the_training_split(dataset):
    folder = (dataset.root / dataset.config["ids"]).parent
    shutil.copy(folder / "train.txt", folder / "val.txt")
    return [folder / "val.txt"]


@mistake("list of another split", "voc21", "1 of 5 ids are in train.txt", "2007_000032", hint="official list")
def training_and_validation_together(dataset):
    folder = (dataset.root / dataset.config["ids"]).parent
    (folder / "trainval.txt").write_text((folder / "train.txt").read_text() + (folder / "val.txt").read_text())
    shutil.copy(folder / "trainval.txt", folder / "val.txt")
    return [folder / "val.txt"]


@mistake("unreadable images", "voc21", hint="copy or download")
def images_empty_truncated_and_none(dataset):
    paths = [sample.image_path for sample in dataset.samples[:3]]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:-900])
    paths[2].write_text("<html>not found</html>")
    return paths


@mistake("unreadable images", "voc21", "16 bits a band, but 99 %", hint="save them with 8 ")
def an_image_of_12_bits(dataset):
    path = dataset.samples[0].image_path
    Image.fromarray(np.array(Image.open(path).convert("L")).astype(np.uint16) * 16).save(path, "PNG")
    return [path]


@mistake("unreadable labels", "voc21", "cannot be read", "bytes", hint="convert them again")
def labels_empty_truncated_and_none(dataset):
    paths = label_paths(dataset)[:3]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:-300])
    paths[2].write_text("<html>not found</html>")
    return paths


@mistake("unreadable labels", "ade847", "cannot be read", hint="convert them again")
def labels_of_16_bits_truncated(dataset):
    paths = label_paths(dataset)[:1]
    paths[0].write_bytes(paths[0].read_bytes()[:300])
    return paths


@mistake("labels saved as JPEG", "voc21", "a JPEG file", hint="to PNG")
def jpeg_under_the_name_of_png(dataset):
    paths = label_paths(dataset)[1:3]
    for path in paths:
        Image.fromarray(np.array(Image.open(path))).save(path, "JPEG")
    return paths


@mistake("labels saved as JPEG", "voc21", "a JPEG file", hint="to PNG")
def colours_as_jpeg(dataset):
    path = label_paths(dataset)[0]
    Image.open(path).convert("RGB").save(path, "JPEG")
    return [path]


@mistake("colours instead of class numbers", "voc21", "have colours from the data set's palette", hint="by_colour")
def a_palette_file_converted_to_colours(dataset):
    path = label_paths(dataset)[0]
    Image.open(path).convert("RGB").save(path)
    return [path]


@mistake("several channels", "voc21", "all channels are equal", hint="one channel")
def numbers_in_three_channels(dataset):
    path = label_paths(dataset)[0]
    altered(path, lambda label: np.stack([label] * 3, axis=-1))
    return [path]


@mistake("several channels", "ade20k", "colours such as (7, 7, 9)", hint="one channel")
def unknown_colours(dataset):
    path = label_paths(dataset)[0]
    altered(path, lambda label: np.full((*label.shape, 3), (7, 7, 9), np.uint8))
    return [path]
