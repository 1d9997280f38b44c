"""`tools/datasets.py check`: reads every image and label of a data set and reports every mistake with a fix.

`CHECKS` lists the checks in order. Later checks skip a label map that an earlier one has reported, since one mistake may have
several symptoms.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from ...errors import OvssError
from ...files import data_files, user_path, write_text
from ...process import in_processes
from ...progress import Progress
from .. import expected
from ..base import Sample, SegDataset, load_dataset
from ..config import pattern_of
from ..layout import data_root
from ..lists import repeated
from .manifest import Finding, Report, compare, read_manifest
from .survey import IMAGES, Found, Pair, Survey, mistake, read_pair
from .values import NOT_AS_STORED, UNLIKELY, notes

# JPEG scatters values along outlines. A pixel is scattered if at most one neighbour has its value; a value is stray if most of
# its pixels are scattered. A label map counts as compressed if half of its values are stray, or a tenth of its pixels that
# belong to no class are scattered.
STRAY_VALUES, STRAY_SHARE, SCATTERED_OUTSIDE = 3, 0.5, 0.1
SPLITS = re.compile("train|val|test")
Place = str | Path | None


@mistake(
    "number of images",
    "Is this the list or folder of another split, or an incomplete copy? Results on it are marked as partial. {again}",
)
def number_of_images(survey: Survey) -> Found:
    lists = {path.name: len(ids) for path, ids in _sibling_lists(survey)}
    if wrong := expected.wrong_count(survey.config, len(survey.ids), lists):
        yield survey.list_file or survey.image_folder, wrong


@mistake("ids listed twice", "List every id once: a repeated image would count several times.")
def ids_twice(survey: Survey) -> Found:
    if twice := list(repeated(survey.pairs)):
        yield survey.list_file, f"{len(twice)} images are listed more than once: {_some(twice)}"


@mistake(
    "missing ids",
    "Is this the list for this release and split (one id per line, without folder and suffix), or is the copy incomplete? "
    "{again}",
)
def missing_ids(survey: Survey) -> Found:
    for pair in survey.pairs:
        if not os.path.isfile(pair.image_path) and not os.path.isfile(pair.label_path):
            place = survey.list_file or survey.image_folder
            yield pair.image_path, f"{pair.id} is in {place.name}, but has neither image nor label"


@mistake("label without image", "{pairs} Copy the images or correct their names. {again}")
def label_without_image(survey: Survey) -> Found:
    for image, label in [*((pair.image_path, pair.label_path) for pair in survey.pairs), *survey.orphans()]:
        if os.path.isfile(label) and not os.path.isfile(image):
            yield label, f"there is no image {_below(survey, image)}{_similar(image)}"


@mistake("image without label", "{pairs} Rename or move the labels, or remove what does not belong. {again}")
def image_without_label(survey: Survey) -> Found:
    for pair in survey.pairs:
        image, label = pair.image_path, pair.label_path
        if os.path.isfile(image) and not os.path.isfile(label):
            other = survey.label_files.get(label.name)
            similar = f"; but there is {_below(survey, other)}" if other else _similar(label)
            yield image, f"there is no label {_below(survey, label)}{similar}"


@mistake("ids of another split", "These images are not in the split that papers report on: use only that split, from {link}.")
def unlike_the_split(survey: Survey) -> Found:
    foreign = set(expected.foreign_ids(survey.config, survey.ids))
    for pair in survey.pairs:
        if pair.id in foreign:
            yield pair.image_path, f"the id {pair.id} does not match this split ({expected.pattern(survey.config)})"


@mistake(
    "list of another split",
    "This is the list of the training or test split, or a mixture of splits: restore the official list.",
)
def ids_of_another_split(survey: Survey) -> Found:
    for path, ids in _sibling_lists(survey):
        shared = sorted(ids & survey.ids)
        if shared:
            yield survey.list_file, f"{len(shared)} of {len(survey.ids)} ids are in {path.name} as well: {_some(shared)}"


@mistake(
    "unreadable images",
    "Empty, truncated or damaged files: copy or download them again. Images with 12 bits, floating point or many bands: save "
    "them with 8 bits per band. {again}",
)
def unreadable_image(survey: Survey) -> Found:
    for pair in survey.pairs:
        if pair.image_error:
            yield pair.image_path, pair.image_error


@mistake("unreadable labels", "Empty, truncated or damaged files: copy or convert them again. {again}")
def unreadable_label(survey: Survey) -> Found:
    for pair in survey.pairs:
        if pair.label_error:
            yield pair.label_path, pair.label_error


@mistake(
    "labels saved as JPEG",
    "JPEG compression changes class numbers irreversibly: convert the official labels to PNG again. {again}",
)
def jpeg(survey: Survey) -> Found:
    by_format = survey.config["label_suffix"].lower() not in (".jpg", ".jpeg")
    for pair in survey.pairs:
        if pair.format == "JPEG" and by_format:
            yield pair.label_path, "a JPEG file"
        elif pair.stray >= max(STRAY_VALUES, STRAY_SHARE * len(pair.values)) or pair.scattered_outside > SCATTERED_OUTSIDE:
            what = f"{len(pair.values)} different values; {pair.stray} of them occur in single pixels"
            yield pair.label_path, f"{what}, as left by JPEG compression along outlines"


@mistake(
    "colours instead of class numbers",
    "Every pixel must hold its class number, which is the position of its colour in the palette: "
    "ovss_bench.datasets.prepare.conversion.by_colour converts colours to numbers. Open palette PNGs without converting them "
    "to RGB. {again}",
)
def palette_colours(survey: Survey) -> Found:
    known = {tuple(colour) for colour in survey.dataset.palette}
    for pair in survey.coloured:
        colours = {colour: pixels for colour, pixels in pair.colours.items() if any(colour)}  # every palette has black
        share = sum(pixels for colour, pixels in colours.items() if colour in known) / max(sum(colours.values()), 1)
        if share > 0.5 and not _grey(colours):
            yield pair.label_path, f"{share:.0%} of the pixels that are not black have colours from the data set's palette"


@mistake(
    "several channels",
    "A label map has one channel of class numbers. Convert colours to numbers with the data set's table "
    "(ovss_bench.datasets.prepare.conversion.by_colour). {again}",
)
def several_channels(survey: Survey) -> Found:
    for pair in survey.coloured:
        grey = "all channels are equal: one of them is the label" if _grey(pair.colours) else None
        yield pair.label_path, f"several channels; {grey or f'colours such as {_some(pair.colours)}'}"


@mistake(
    "16 bits saved in 8",
    "Class numbers above 255 do not fit into 8 bits; they have wrapped around or were clipped. Convert the labels again, to 16 "
    "bits. {again}",
)
def sixteen_bits_in_eight(survey: Survey) -> Found:
    folded = 255 in survey.pixels and max(survey.pixels) <= 255 and survey.ignored > 255
    for pair in survey.labels if max(survey.count, survey.ignored) > 256 else ():
        if pair.bits <= 8:
            yield pair.label_path, f"{pair.bits} bits per pixel, for {survey.count} classes"
        elif folded and 255 in pair.values:
            yield pair.label_path, f"holds 255, and no label holds more, for {survey.count} classes"


@mistake(
    "zero label reduced twice",
    "The data set's rules ignore 0 and lower every other number by one, but these labels are already lowered. Use the labels "
    "of the official archive. {again}",
)
def reduced_twice(survey: Survey) -> Found:
    ignored, count = survey.ignored, survey.count
    if not survey.shifts or ignored not in survey.pixels or count in survey.pixels or set(survey.pixels) <= {0, ignored}:
        return  # if everything is ignored, all_ignored reports it
    # Official labels of a data set with a label map also hold 255, but nearly all of them hold 0, the background, too.
    if survey.dataset.label_map and 2 * sum(0 in pair.values for pair in survey.labels) >= len(survey.labels):
        return
    for pair in survey.labels:
        if ignored in pair.values:
            yield pair.label_path, f"holds {ignored}, and no label holds {count}: classes already start at 0"


@mistake(
    "zero label not reduced",
    "0 seems to mean unlabelled: change it to {ignored} and every other number v to v - 1 (or, in your own YAML file, set "
    "reduce_zero_label: true). {again}",
)
def not_reduced(survey: Survey) -> Found:
    if not survey.shifts and survey.foreign == {survey.count} and survey.ignored not in survey.pixels:
        for pair in survey.labels:
            if survey.count in pair.values:
                yield pair.label_path, f"holds {survey.count}, and no label holds {survey.ignored}: classes start at 1"


@mistake(
    "values outside the classes",
    "Classes are 0 to {last}, ignored pixels {ignored}. Do these labels belong to another data set, or need conversion "
    "(all ids instead of train ids, 0 and 255 instead of 0 and 1)? {again}",
)
def values_outside(survey: Survey) -> Found:
    for pair in survey.labels:
        total = sum(pair.values.values())
        shares = [f"{value} ({n / total:.2%})" for value, n in pair.values.items() if value in survey.foreign]
        if shares:
            yield pair.label_path, f"holds {_some(shares)} of the pixels"


@mistake(
    "ignored pixels missing",
    "Unlabelled pixels and outlines must be {ignored}; an image editor or a conversion may have changed them. {again}",
)
def ignored_missing(survey: Survey) -> Found:
    read = {pair.label_path for pair in survey.pairs if pair.values}
    expected_here = read and survey.facts.get("ignored") is True and not survey.explained & read
    if expected_here and survey.ignored not in survey.histogram:
        yield survey.label_folder, "no label has ignored pixels; the official ones have some"


@mistake(
    "ignored pixels that should not be",
    "Every pixel must belong to a class: in masks of 0 and 255 the object is 255, and must be 1. {again}",
)
def ignored_there(survey: Survey) -> Found:
    for pair in survey.labels if survey.facts.get("ignored") is False else ():
        pixels = sum(n for value, n in pair.values.items() if survey.class_of[value] == survey.ignored)
        if pixels:
            what = f"{pixels / sum(pair.values.values()):.1%} of the pixels are ignored ({survey.ignored})"
            yield pair.label_path, f"{what}; the official labels have no such pixels"


@mistake(
    "labels of another size",
    "Labels must have the original size of the image, neither rotated nor resized. Is this the label of another image? {again}",
)
def other_size(survey: Survey) -> Found:
    for pair in survey.pairs:
        if pair.image_size and pair.label_size and pair.image_size != pair.label_size:
            (height, width), image = pair.label_size, pair.image_size
            yield pair.label_path, f"{height} x {width} pixels (height x width), its image {image[0]} x {image[1]}"


CHECKS = (
    *(number_of_images, ids_twice, missing_ids, label_without_image, image_without_label, unlike_the_split),
    *(ids_of_another_split, unreadable_image, unreadable_label, *NOT_AS_STORED, jpeg, palette_colours, several_channels),
    *(sixteen_bits_in_eight, reduced_twice, not_reduced, values_outside, ignored_missing, ignored_there, other_size),
    *UNLIKELY,
)


def check(
    name: str, root: Place = None, *, workers: int | None = None, out: Place = None, against: Place = None, quiet: bool = False
) -> Report:
    """Reads a whole data set and reports its mistakes. `out` is the file for the manifest (JSON), `against` the manifest to
    compare with. Raises OvssError if the data set is missing or half prepared."""
    theirs = read_manifest(user_path(against), name) if against is not None else None
    dataset = load_dataset(name, root)
    _ = dataset.classes, dataset.label_map  # imports mmseg once, before the processes start
    pairs: dict[Sample, Pair] = {}
    with Progress(quiet).start(f"check of {dataset.name}", len(dataset.listed)) as bar:
        for sample, pair in in_processes(partial(read_pair, dataset), dataset.listed, workers or os.cpu_count() or 1):
            pairs[sample] = pair
            bar.advance()
    survey = Survey(dataset, [pairs[sample] for sample in dataset.listed])
    report = _report(survey, _placeholders(name, dataset, root))
    if theirs is not None:
        report.findings.extend(compare(report, theirs, dataset))
    if out is not None:
        write_text(user_path(out), json.dumps(report.manifest(), indent=1) + "\n")
    return report


def _report(survey: Survey, placeholders: dict[str, object]) -> Report:
    findings, dataset, fingerprint = [], survey.dataset, None
    for entry in CHECKS:
        hint = entry.hint.format(**placeholders).strip()
        found = [Finding(entry.kind, file, what, hint) for file, what in entry.find(survey)]
        survey.explained |= {finding.file for finding in found}
        findings += found
    with suppress(OvssError):  # files are missing, unreadable or listed twice
        fingerprint = dataset.fingerprint
    return Report(
        dataset.name,
        dataset.root,
        findings,
        len(survey.ids),
        dataset.classes,
        dataset.ignore_index,
        survey.histogram,
        {pair.id: pair.digest for pair in survey.pairs},
        fingerprint,
        hashlib.sha256("".join(f"{name}\n" for name in sorted(survey.ids)).encode()).hexdigest(),
        list(notes(survey)),
    )


def _placeholders(name: str, dataset: SegDataset, root: Place) -> dict[str, object]:
    """The values of the placeholders in hints."""
    config = dataset.config
    again = f"Get them again from {config.get('link', 'the source of the data set')}."
    if "prepare" in config:
        again = f"To restore them: python tools/datasets.py prepare {name} data_root={data_root(root)} rerun=true"
    if config.get("loader") == "demo":
        again = f"Delete {dataset.root} to draw the scenes again."
    pairs = f"Image {pattern_of(config, 'image')} and label {pattern_of(config, 'label')} are a pair."
    values = {"ignored": dataset.ignore_index, "last": len(dataset.classes) - 1, "link": config.get("link", "its source")}
    return {"again": again, "pairs": pairs, **values}


def _sibling_lists(survey: Survey) -> Iterator[tuple[Path, set[str]]]:
    """The lists of other splits next to this one, e.g. train.txt and test.txt next to val.txt, but not trainval.txt."""
    if survey.list_file is None:
        return
    this = set(SPLITS.findall(survey.list_file.stem))
    for path in data_files(survey.list_file.parent, "*.txt"):
        split = set(SPLITS.findall(path.stem))
        if path != survey.list_file and len(split) == 1 and split != this and (this or split == {"train"}):
            yield path, set(filter(None, map(str.strip, path.read_text("utf-8", "replace").splitlines())))


def _grey(colours: Iterable[tuple[int, ...]]) -> bool:
    return all(len(set(colour)) == 1 for colour in colours)


def _below(survey: Survey, path: Path) -> str:
    return path.relative_to(survey.dataset.root).as_posix()


def _similar(path: Path) -> str:
    """For messages: the files that differ from a missing file only in suffix."""
    stem = path.name.partition(".")[0]
    others = [other.name for other in data_files(path.parent, f"{escape(stem)}*") if other.suffix.lower() in IMAGES]
    return f"; but there is {_some(others)}" if others else ""


def _some(values: Any) -> str:
    values = [str(value) for value in values]
    return ", ".join(values[:8]) + (" ..." if len(values) > 8 else "")
