"""`tools/datasets.py check`: reads every image and label of a data set, and reports every mistake with its repair.

`CHECKS` is the list of mistakes, in order. The first check that reports a label map explains it, and later ones skip it, since
one mistake may show in several ways.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from ...files import data_files, user_path, write_text
from ...process import in_processes
from ...progress import Progress
from .. import expected
from ..base import Sample, SegDataset, load_dataset
from ..layout import data_root
from ..lists import twice
from .manifest import Finding, Report, compare, read_manifest
from .survey import IMAGES, Found, Seen, Survey, look, mistake
from .values import NOT_AS_STORED, UNLIKELY, notes

# JPEG scatters values along outlines: pixels with at most one neighbour of the same value. A value is stray if most of its
# pixels are scattered. After JPEG half the values of a map are stray, or a tenth of the pixels of no class are scattered.
STRAY_VALUES, STRAY_SHARE, SCATTERED_OUTSIDE = 3, 0.5, 0.1
SPLITS = re.compile("train|val|test")


@mistake(
    "number of images",
    "Is it the list, or the folder, of another split, or an incomplete copy? Results on it are marked as partial. {again}",
)
def number_of_images(survey: Survey) -> Found:
    lists = {path.name: len(ids) for path, ids in _sibling_lists(survey)}
    wrong = expected.of_other_number(survey.dataset.config, len(survey.ids), lists)
    if wrong:
        yield survey.list_file or _images(survey), wrong


@mistake("ids listed twice", "List every id once: such an image would count twice.")
def ids_twice(survey: Survey) -> Found:
    pairs = list(twice([seen.sample for seen in survey.seen]))
    if pairs:
        yield survey.list_file, f"{len(pairs)} images are listed more than once: {_some(pairs)}"


@mistake(
    "missing ids",
    "The list names missing images: is it the list of this release and split (one id per line, without folder "
    "and suffix), or was only a part copied? {again}",
)
def missing_ids(survey: Survey) -> Found:
    for seen in survey.seen:
        if not os.path.isfile(seen.sample.image_path) and not os.path.isfile(seen.sample.label_path):
            listed = (survey.list_file or _images(survey)).name
            yield seen.sample.image_path, f"{seen.sample.id} is in {listed}, but has neither image nor label"


@mistake("label without image", "{pairs} Copy the images, or correct their names. {again}")
def label_without_image(survey: Survey) -> Found:
    for seen in survey.seen:
        image, label = seen.sample.image_path, seen.sample.label_path
        if os.path.isfile(label) and not os.path.isfile(image):
            yield label, f"there is no image {_below(survey, image)}{_instead(image)}"
    images, labels = _images(survey), survey.dataset.root / survey.dataset.config["labels"]
    for path in survey.orphans:
        name = path.relative_to(labels).as_posix().removesuffix(survey.dataset.config["label_suffix"])
        image = images / f"{name}{survey.dataset.config['image_suffix']}"
        yield path, f"there is no image {_below(survey, image)}{_instead(image)}"


@mistake("image without label", "{pairs} Rename or move the labels, or remove what does not belong. {again}")
def image_without_label(survey: Survey) -> Found:
    for seen in survey.seen:
        image, label = seen.sample.image_path, seen.sample.label_path
        if os.path.isfile(image) and not os.path.isfile(label):
            other = survey.label_files.get(label.name)
            moved = f"; but there is {_below(survey, other)}" if other else ""
            yield image, f"there is no label {_below(survey, label)}{moved or _instead(label)}"


@mistake("ids of another split", "These files are not in the split that the papers report on: use only that one, from {link}.")
def unlike_the_split(survey: Survey) -> Found:
    config = survey.dataset.config
    foreign = set(expected.of_other_splits(config, survey.ids))
    for seen in survey.seen:
        if seen.sample.id in foreign:
            what = f"the id {seen.sample.id} is not like those of this split ({expected.pattern(config)})"
            yield seen.sample.image_path, what


@mistake(
    "list of another split",
    "A list of the training or test split was taken for this one, or they are mixed: restore the official list.",
)
def ids_of_another_split(survey: Survey) -> Found:
    for path, ids in _sibling_lists(survey):
        shared = sorted(ids & survey.ids.keys())
        if shared:
            yield survey.list_file, f"{len(shared)} of {len(survey.ids)} ids are in {path.name} as well: {_some(shared)}"


@mistake(
    "unreadable images",
    "Empty, truncated or damaged: copy or download them again. Of 12 bits, floating point or many bands: save them with 8 "
    "bits a band. {again}",
)
def unreadable_image(survey: Survey) -> Found:
    for seen in survey.seen:
        if seen.image_error:
            yield seen.sample.image_path, seen.image_error


@mistake("unreadable labels", "Empty, truncated or damaged: copy or convert them again. {again}")
def unreadable_label(survey: Survey) -> Found:
    for seen in survey.seen:
        if seen.label_error:
            yield seen.sample.label_path, seen.label_error


@mistake(
    "labels saved as JPEG",
    "The labels went through JPEG, which changes class numbers irreversibly: convert the official ones again, to PNG. {again}",
)
def jpeg(survey: Survey) -> Found:
    by_format = survey.dataset.config["label_suffix"].lower() not in (".jpg", ".jpeg")
    for seen in survey.seen:
        if seen.format == "JPEG" and by_format:
            yield seen.sample.label_path, "a JPEG file"
        elif seen.stray >= max(STRAY_VALUES, STRAY_SHARE * len(seen.values)) or seen.scattered_outside > SCATTERED_OUTSIDE:
            what = f"{len(seen.values)} different values, of which {seen.stray} occur in single pixels"
            yield seen.sample.label_path, f"{what}, as compression leaves them along outlines"


@mistake(
    "colours instead of class numbers",
    "Every pixel must hold the number of its class, which is the position of its colour in the palette: "
    "ovss_bench.datasets.prepare.conversion.by_colour turns colours into numbers. Open palette PNGs as they are, without "
    "converting them to RGB. {again}",
)
def palette_colours(survey: Survey) -> Found:
    known = {tuple(colour) for colour in survey.dataset.palette}
    for seen in survey.coloured:
        colours = {colour: pixels for colour, pixels in seen.colours.items() if any(colour)}  # every palette has black
        share = sum(pixels for colour, pixels in colours.items() if colour in known) / max(sum(colours.values()), 1)
        if share > 0.5 and not _grey(colours):
            yield seen.sample.label_path, f"{share:.0%} of the pixels that are not black have colours of the data set's palette"


@mistake(
    "several channels",
    "A label map has one channel of class numbers. Turn colours into numbers by the data set's own table "
    "(ovss_bench.datasets.prepare.conversion.by_colour). {again}",
)
def several_channels(survey: Survey) -> Found:
    for seen in survey.coloured:
        what = f"colours such as {_some(seen.colours)}"
        if _grey(seen.colours):
            what = "all channels are equal: one of them is the label"
        yield seen.sample.label_path, f"several channels; {what}"


@mistake(
    "16 bits saved in 8",
    "Class numbers above 255 do not fit into 8 bits, and were folded or cut: convert the labels again to 16 bits. {again}",
)
def sixteen_bits_in_eight(survey: Survey) -> Found:
    wide = max(len(survey.dataset.classes), survey.dataset.ignore_index) > 256
    folded = 255 in survey.pixels and max(survey.pixels) <= 255 and survey.dataset.ignore_index > 255
    for seen in survey.labels if wide else ():
        if seen.bits <= 8:
            yield seen.sample.label_path, f"{seen.bits} bits a pixel, for {len(survey.dataset.classes)} classes"
        elif folded and 255 in seen.values:
            yield seen.sample.label_path, f"holds 255, and no label holds more, for {len(survey.dataset.classes)} classes"


@mistake(
    "zero label reduced twice",
    "The data set's rules ignore 0 and lower every other number, but this is already done here. Use the labels of the "
    "official archive. {again}",
)
def reduced_twice(survey: Survey) -> Found:
    ignored, count = survey.dataset.ignore_index, len(survey.dataset.classes)
    if not survey.shifts or ignored not in survey.pixels or count in survey.pixels or set(survey.pixels) <= {0, ignored}:
        return  # with no other value everything is ignored
    zero = sum(0 in seen.values for seen in survey.labels)
    # Official labels of a set with a label map hold 255 themselves, but also 0, the background, nearly everywhere.
    if survey.dataset.label_map and 2 * zero >= len(survey.labels):
        return
    for seen in survey.labels:
        if ignored in seen.values:
            yield seen.sample.label_path, f"holds {ignored}, and no label holds {count}: they count from 0 already"


@mistake(
    "zero label not reduced",
    "0 seems to mean unlabelled: turn it into {ignored} and every other number v into v - 1 (or, in a YAML "
    "file of your own, set reduce_zero_label: true). {again}",
)
def not_reduced(survey: Survey) -> Found:
    ignored, count = survey.dataset.ignore_index, len(survey.dataset.classes)
    if not survey.shifts and survey.foreign == {count} and ignored not in survey.pixels:
        for seen in survey.labels:
            if count in seen.values:
                yield seen.sample.label_path, f"holds {count}, and no label holds {ignored}: they count from 1"


@mistake(
    "values outside the classes",
    "Classes are 0 to {last}, ignored pixels {ignored}: are these labels of another data set, or in an encoding that "
    "needs conversion (all ids instead of train ids, 0 and 255 instead of 0 and 1)? {again}",
)
def values_outside(survey: Survey) -> Found:
    for seen in survey.labels:
        wrong = {value: pixels for value, pixels in seen.values.items() if value in survey.foreign}
        if wrong:
            total = sum(seen.values.values())
            shares = [f"{value} ({pixels / total:.2%})" for value, pixels in wrong.items()]
            yield seen.sample.label_path, f"holds {_some(shares)} of the pixels"


@mistake(
    "ignored pixels missing",
    "Pixels without a label or on outlines must be {ignored}; an image editor or a conversion may have made another class "
    "of them. {again}",
)
def ignored_missing(survey: Survey) -> Found:
    ignored, read = survey.dataset.ignore_index, [seen.sample.label_path for seen in survey.seen if seen.values]
    if survey.facts.get("ignored") is True and read and ignored not in survey.histogram and not survey.explained & set(read):
        yield survey.dataset.root / survey.dataset.config["labels"], "no label has ignored pixels, the official ones have"


@mistake(
    "ignored pixels that should not be",
    "{ignored} must be a class here: in masks of 0 and 255 the object is 255, and must be 1. {again}",
)
def ignored_there(survey: Survey) -> Found:
    for seen in survey.labels if survey.facts.get("ignored") is False else ():
        pixels = sum(n for value, n in seen.values.items() if survey.ruled[value] == survey.dataset.ignore_index)
        if pixels:
            what = f"{pixels / sum(seen.values.values()):.1%} of the pixels are ignored"
            yield seen.sample.label_path, f"{what} ({survey.dataset.ignore_index}), none of the official labels is"


@mistake(
    "labels of another size",
    "Labels must be at the original size of the image, not turned or resized. Is it the label of another image? {again}",
)
def other_size(survey: Survey) -> Found:
    for seen in survey.seen:
        if seen.image_size and seen.label_size and seen.image_size != seen.label_size:
            sizes = [f"{height} x {width}" for height, width in (seen.label_size, seen.image_size)]
            yield seen.sample.label_path, f"{sizes[0]} pixels (height x width), its image {sizes[1]}"


CHECKS = (
    *(number_of_images, ids_twice, missing_ids, label_without_image, image_without_label, unlike_the_split),
    *(ids_of_another_split, unreadable_image, unreadable_label, *NOT_AS_STORED, jpeg, palette_colours, several_channels),
    *(sixteen_bits_in_eight, reduced_twice, not_reduced, values_outside, ignored_missing, ignored_there, other_size),
    *UNLIKELY,
)


def check(
    name: str,
    root: str | Path | None = None,
    *,
    workers: int | None = None,
    out: str | Path | None = None,
    against: str | Path | None = None,
    quiet: bool = False,
) -> Report:
    """Reads a whole data set and reports its mistakes.

    `out` writes the manifest (JSON), `against` compares with another manifest. Raises OvssError if the data set is missing or
    half prepared.
    """
    theirs = read_manifest(user_path(against), name) if against is not None else None
    dataset = load_dataset(name, root)
    _ = dataset.classes, dataset.label_map  # mmseg is imported here, not in every process
    seen: dict[Sample, Seen] = {}
    with Progress(quiet).start(f"check of {dataset.name}", len(dataset.listed)) as bar:
        for sample, outcome in in_processes(partial(look, dataset), dataset.listed, workers or os.cpu_count() or 1):
            seen[sample] = outcome
            bar.advance()
    survey = Survey(dataset, [seen[sample] for sample in dataset.listed])
    findings, words = [], _words(name, dataset, root)
    for entry in CHECKS:
        found = [Finding(entry.kind, file, what, entry.hint.format(**words).strip()) for file, what in entry.find(survey)]
        survey.explained |= {finding.file for finding in found}
        findings += found
    files = [path for sample in dataset.listed for path in (sample.image_path, sample.label_path)]
    complete = bool(files) and all(map(os.path.isfile, files)) and not list(twice(dataset.listed))
    report = Report(
        dataset.name,
        dataset.root,
        findings,
        len(survey.ids),
        dataset.classes,
        dataset.ignore_index,
        survey.histogram,
        {each.sample.id: each.digest for each in survey.seen},
        dataset.fingerprint if complete else None,
        hashlib.sha256("".join(f"{name}\n" for name in sorted(survey.ids)).encode()).hexdigest(),
        list(notes(survey)),
    )
    if theirs is not None:
        report.findings.extend(compare(report, theirs, dataset))
    if out is not None:
        text = json.dumps(report.manifest(), indent=1)
        write_text(user_path(out), text + "\n")
    return report


def _words(name: str, dataset: SegDataset, root: str | Path | None) -> dict[str, object]:
    """Placeholder -> text of the hints."""
    config = dataset.config
    again = "Get them again from the source of the data set."
    if config.get("link"):
        again = f"Get them again from {config['link']}."
    if "prepare" in config:
        again = f"Again from the archives: python tools/datasets.py prepare {name} data_root={data_root(root)} rerun=true"
    if config.get("loader") == "demo":
        again = f"Delete {dataset.root}: the scenes are drawn again."
    image, label = (f"{config[f'{kind}s']}/<id>{config[f'{kind}_suffix']}" for kind in ("image", "label"))
    pairs = f"Image {image} and label {label} are a pair."
    values = {"ignored": dataset.ignore_index, "last": len(dataset.classes) - 1, "link": config.get("link", "its source")}
    return {"again": again, "pairs": pairs, **values}


def _sibling_lists(survey: Survey) -> Iterator[tuple[Path, set[str]]]:
    """The lists of other splits beside this one, e.g. train.txt and test.txt beside val.txt, not trainval.txt."""
    if survey.list_file is not None:
        this = set(SPLITS.findall(survey.list_file.stem))
        for path in data_files(survey.list_file.parent, "*.txt"):
            split = set(SPLITS.findall(path.stem))
            if path != survey.list_file and len(split) == 1 and split != this and (this or split == {"train"}):
                yield path, {line.strip() for line in path.read_text("utf-8", "replace").splitlines() if line.strip()}


def _grey(colours: Iterable[tuple[int, ...]]) -> bool:
    return all(len(set(colour)) == 1 for colour in colours)


def _images(survey: Survey) -> Path:
    return survey.dataset.root / survey.dataset.config["images"]


def _below(survey: Survey, path: Path) -> str:
    return path.relative_to(survey.dataset.root).as_posix()


def _instead(path: Path) -> str:
    """Files with the name of a missing one but another suffix, in words."""
    stem = path.name.partition(".")[0]
    others = [other.name for other in data_files(path.parent, f"{escape(stem)}*") if other.suffix.lower() in IMAGES]
    return f"; but there is {_some(others)}" if others else ""


def _some(values: Any) -> str:
    values = [str(value) for value in values]
    return ", ".join(values[:8]) + (" ..." if len(values) > 8 else "")
