"""What `tools/datasets.py check` does: every image and label of a data set is read, every mistake named with its repair.

`CHECKS` is the list of mistakes. A label map has one cause, however many ways it shows in: the first check that names a label
explains it, and those after it leave it out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from glob import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..errors import OvssError
from ..files import write_atomic
from ..process import in_processes
from ..progress import Progress
from .base import Sample, SegDataset, dataset_config, load_dataset

IMAGES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
COLOURS = 64  # the most frequent colours of a label that are looked up in the palette
# A JPEG scatters values along outlines: pixels with at most one neighbour of their value. A value is stray if most of its
# pixels are scattered; of a map that went through JPEG half the values are, or a tenth of the pixels that are no class.
STRAY_VALUES, STRAY_SHARE, SCATTERED_OUTSIDE = 3, 0.5, 0.1
SPLITS = re.compile("train|val|test")
SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One mistake: its kind (of `CHECKS`), the file or folder, what is wrong there, and how it is repaired."""

    kind: str
    file: Path | None
    what: str
    hint: str


@dataclass(frozen=True)
class Report:
    """What a check found. `histogram`: value after the data set's rules -> pixels; `labels`: id -> digest of the label map;
    `fingerprint` is that of the results, None if files are missing; `ids_digest` the SHA-256 of the sorted ids, a line each."""

    name: str
    root: Path
    findings: list[Finding]
    images: int
    classes: tuple[str, ...]
    ignore_index: int
    histogram: dict[int, int]
    labels: dict[str, str]
    fingerprint: str | None
    ids_digest: str

    @property
    def classes_present(self) -> list[int]:
        return [value for value in self.histogram if 0 <= value < len(self.classes)]

    def manifest(self) -> dict[str, Any]:
        """What two users compare to know that they hold the same data."""
        return {
            "dataset": self.name,
            "images": self.images,
            "ids_sha256": self.ids_digest,
            "fingerprint": self.fingerprint,
            "histogram": {str(value): pixels for value, pixels in self.histogram.items()},
            "labels": self.labels,
        }


@dataclass(frozen=True)
class Seen:
    """One image and its label as they were read; sizes are None and errors empty for files that are not there.

    `values`: stored value -> pixels. `colours`: colour -> pixels, of a label with several channels. `stray`: the number of
    values whose pixels are mostly scattered; `scattered_outside`: the share of scattered ones among the pixels of no class.
    """

    sample: Sample
    image_size: tuple[int, int] | None = None
    image_error: str = ""
    label_size: tuple[int, int] | None = None
    label_error: str = ""
    format: str | None = None
    bits: int = 16
    values: Mapping[int, int] = field(default_factory=dict)
    colours: Mapping[tuple[int, ...], int] | None = None
    stray: int = 0
    scattered_outside: float = 0.0
    digest: str = ""


def look(dataset: SegDataset, sample: Sample) -> Seen:
    """Reads an image and its label completely."""
    facts: dict[str, Any] = {}
    if sample.image_path.is_file():
        try:
            facts["image_size"] = dataset.image(sample).shape[:2]
        except OvssError as error:
            facts["image_error"] = str(error)
    if sample.label_path.is_file():
        try:
            facts |= _look_at_label(dataset, sample)
        except OvssError as error:
            facts["label_error"] = str(error)
        except (ValueError, EOFError, struct.error) as error:  # of damaged TIFF files
            facts["label_error"] = f"label map cannot be read: {error}"
    return Seen(sample, **facts)


def _look_at_label(dataset: SegDataset, sample: Sample) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    with suppress(OSError), Image.open(sample.label_path) as image:  # a class may read other files than images
        facts |= {"format": image.format, "bits": 8 if image.mode in ("1", "L", "P") else 16}
    label = dataset.label(sample) if _reads_itself(dataset) else dataset.raw_label(sample)
    facts["label_size"] = label.shape[:2]
    if label.ndim > 2:
        return facts | {"colours": _colours(label)}
    values, scattered = _count(label), _count(label[_equal_neighbours(label) <= 1])
    foreign = [value for value in values if not _is_value(dataset, _ruled(dataset, value))]
    outside = sum(values[value] for value in foreign)
    return facts | {
        "values": values,
        "stray": sum(2 * scattered.get(value, 0) >= pixels for value, pixels in values.items()),
        "scattered_outside": sum(scattered.get(value, 0) for value in foreign) / max(outside, 1),
        "digest": hashlib.sha256(repr(label.shape).encode() + label.astype("<i4").tobytes()).hexdigest()[:16],
    }


def _reads_itself(dataset: SegDataset) -> bool:
    """Whether a class reads its labels in its own way, and gives them with its rules applied."""
    return type(dataset).label is not SegDataset.label


def _ruled(dataset: SegDataset, value: int) -> int:
    return value if _reads_itself(dataset) else int(dataset.ruled(np.array([value]))[0])


def _is_value(dataset: SegDataset, value: int) -> bool:
    return 0 <= value < len(dataset.classes) or value == dataset.ignore_index


def _count(label: np.ndarray) -> dict[int, int]:
    """Value -> pixels. To count is far quicker than to sort, but the values must be small."""
    if not label.size or (label.min() >= 0 and label.max() < 1 << 16):
        counts = np.bincount(label.ravel())
        values = np.flatnonzero(counts)
        return dict(zip(values.tolist(), counts[values].tolist(), strict=True))
    values, counts = np.unique(label, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _colours(label: np.ndarray) -> dict[tuple[int, ...], int]:
    """The most frequent colours of (H, W, channels), alpha left out."""
    channels = label[..., : 3 if label.shape[2] >= 3 else 1].reshape(label.shape[0] * label.shape[1], -1)
    colours, counts = np.unique(channels, axis=0, return_counts=True)
    return {tuple(colours[i].tolist()): int(counts[i]) for i in counts.argsort()[::-1][:COLOURS]}


def _equal_neighbours(label: np.ndarray) -> np.ndarray:
    """(H, W): how many of the four neighbours have the pixel's value; beyond the border all do."""
    equal = np.full(label.shape, 4, np.uint8)
    rows, columns = label[1:] != label[:-1], label[:, 1:] != label[:, :-1]
    equal[1:] -= rows
    equal[:-1] -= rows
    equal[:, 1:] -= columns
    equal[:, :-1] -= columns
    return equal


@dataclass
class Survey:
    """All that was read of a data set, for the checks."""

    dataset: SegDataset
    seen: list[Seen]
    explained: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.facts: dict[str, Any] = self.dataset.config.get("check") or {}
        self.ids = Counter(seen.sample.id for seen in self.seen)
        self.pixels: Counter[int] = Counter()  # stored value -> pixels
        for seen in self.seen:
            self.pixels.update(seen.values)
        self.ruled = {value: _ruled(self.dataset, value) for value in self.pixels}
        self.foreign = {value for value in self.pixels if not _is_value(self.dataset, self.ruled[value])}

    @property
    def labels(self) -> list[Seen]:
        """The label maps that were read and are not explained yet."""
        return [seen for seen in self.seen if seen.values and seen.sample.label_path not in self.explained]

    @property
    def coloured(self) -> list[Seen]:
        """The label maps of several channels that are not explained yet."""
        return [seen for seen in self.seen if seen.colours is not None and seen.sample.label_path not in self.explained]

    @property
    def shifts(self) -> bool:
        """Whether the data set's rules turn 0 into ignored, and other values into the one before."""
        return not _reads_itself(self.dataset) and _ruled(self.dataset, 0) == self.dataset.ignore_index

    @cached_property
    def histogram(self) -> dict[int, int]:
        total: Counter[int] = Counter()
        for value, pixels in self.pixels.items():
            total[self.ruled[value]] += pixels
        return dict(sorted(total.items()))

    @cached_property
    def list_file(self) -> Path | None:
        return self.dataset.root / self.dataset.config["ids"] if self.dataset.config.get("ids") else None

    @cached_property
    def label_files(self) -> dict[str, Path]:
        """Every file in or beside the label folder, by its name."""
        folder = self.dataset.root / self.dataset.config["labels"]
        return {path.name: path for path in sorted(folder.parent.rglob("*")) if path.suffix.lower() in IMAGES}

    @cached_property
    def orphans(self) -> list[Path]:
        """Labels whose image is not listed; none where a list says which images count."""
        if self.list_file is not None:
            return []
        folder, suffix = self.dataset.root / self.dataset.config["labels"], self.dataset.config["label_suffix"]
        known = {seen.sample.label_path for seen in self.seen}
        images = {seen.sample.image_path for seen in self.seen}  # which may be in the same folder
        return sorted(path for path in folder.rglob(f"*{suffix}") if path not in known | images and path.name[0] != ".")


Found = Iterator[tuple[Path | None, str]]


def number_of_images(survey: Survey) -> Found:
    expected, found = survey.dataset.expected_images, len(survey.ids)
    if not found or expected not in (None, found):
        what = f"{found} images are listed, {expected or 'some'} are expected"
        others = {**survey.facts.get("splits", {}), **{path.name: len(ids) for path, ids in _sibling_lists(survey)}}
        same = [split for split, number in others.items() if number == found]
        equal = f"; {found} is the number of {' and of '.join(same)}" if same else ""
        yield survey.list_file or _images(survey), what + equal


def ids_twice(survey: Survey) -> Found:
    twice = [name for name, number in survey.ids.items() if number > 1]
    if twice:
        yield survey.list_file, f"{len(twice)} ids are listed more than once: {_some(twice)}"


def missing_ids(survey: Survey) -> Found:
    for seen in survey.seen:
        if not seen.sample.image_path.is_file() and not seen.sample.label_path.is_file():
            yield seen.sample.image_path, f"{seen.sample.id} is in {survey.list_file.name}, but has neither image nor label"


def label_without_image(survey: Survey) -> Found:
    for seen in survey.seen:
        image, label = seen.sample.image_path, seen.sample.label_path
        if label.is_file() and not image.is_file():
            yield label, f"there is no image {_below(survey, image)}{_instead(image)}"
    images, labels = _images(survey), survey.dataset.root / survey.dataset.config["labels"]
    for path in survey.orphans:
        name = path.relative_to(labels).as_posix().removesuffix(survey.dataset.config["label_suffix"])
        image = images / f"{name}{survey.dataset.config['image_suffix']}"
        yield path, f"there is no image {_below(survey, image)}{_instead(image)}"


def image_without_label(survey: Survey) -> Found:
    for seen in survey.seen:
        image, label = seen.sample.image_path, seen.sample.label_path
        if image.is_file() and not label.is_file():
            other = survey.label_files.get(label.name)
            moved = f"; but there is {_below(survey, other)}" if other else ""
            yield image, f"there is no label {_below(survey, label)}{moved or _instead(label)}"


def unlike_the_split(survey: Survey) -> Found:
    pattern = survey.facts.get("ids")
    for seen in survey.seen if pattern else ():
        if not re.fullmatch(pattern, seen.sample.id):
            yield seen.sample.image_path, f"the id {seen.sample.id} is not like those of this split ({pattern})"


def ids_of_another_split(survey: Survey) -> Found:
    for path, ids in _sibling_lists(survey):
        shared = sorted(ids & survey.ids.keys())
        if shared:
            yield survey.list_file, f"{len(shared)} of {len(survey.ids)} ids are in {path.name} as well: {_some(shared)}"


def unreadable_image(survey: Survey) -> Found:
    for seen in survey.seen:
        if seen.image_error:
            yield seen.sample.image_path, seen.image_error


def unreadable_label(survey: Survey) -> Found:
    for seen in survey.seen:
        if seen.label_error:
            yield seen.sample.label_path, seen.label_error


def jpeg(survey: Survey) -> Found:
    by_format = survey.dataset.config["label_suffix"].lower() not in (".jpg", ".jpeg")
    for seen in survey.seen:
        if seen.format == "JPEG" and by_format:
            yield seen.sample.label_path, "a JPEG file"
        elif seen.stray >= max(STRAY_VALUES, STRAY_SHARE * len(seen.values)) or seen.scattered_outside > SCATTERED_OUTSIDE:
            what = f"{len(seen.values)} different values, of which {seen.stray} occur in single pixels"
            yield seen.sample.label_path, f"{what}, as compression leaves them along outlines"


def palette_colours(survey: Survey) -> Found:
    known = {tuple(colour) for colour in survey.dataset.palette}
    for seen in survey.coloured:
        colours = {colour: pixels for colour, pixels in seen.colours.items() if any(colour)}  # every palette has black
        share = sum(pixels for colour, pixels in colours.items() if colour in known) / max(sum(colours.values()), 1)
        if share > 0.5 and not _grey(colours):
            yield seen.sample.label_path, f"{share:.0%} of the pixels that are not black have colours of the data set's palette"


def several_channels(survey: Survey) -> Found:
    for seen in survey.coloured:
        what = f"colours such as {_some(seen.colours)}"
        if _grey(seen.colours):
            what = "all channels are equal: one of them is the label"
        yield seen.sample.label_path, f"several channels; {what}"


def sixteen_bits_in_eight(survey: Survey) -> Found:
    wide = max(len(survey.dataset.classes), survey.dataset.ignore_index) > 256
    folded = 255 in survey.pixels and max(survey.pixels) <= 255 and survey.dataset.ignore_index > 255
    for seen in survey.labels if wide else ():
        if seen.bits == 8:
            yield seen.sample.label_path, f"8 bits a pixel, for {len(survey.dataset.classes)} classes"
        elif folded and 255 in seen.values:
            yield seen.sample.label_path, f"holds 255, and no label holds more, for {len(survey.dataset.classes)} classes"


def reduced_twice(survey: Survey) -> Found:
    ignored, count = survey.dataset.ignore_index, len(survey.dataset.classes)
    if not survey.shifts or ignored not in survey.pixels or count in survey.pixels:
        return
    zero = sum(0 in seen.values for seen in survey.labels)
    # Official labels of a set with a label map hold 255 themselves, but also 0, the background, nearly everywhere.
    if survey.dataset.mmseg.label_map and 2 * zero >= len(survey.labels):
        return
    for seen in survey.labels:
        if ignored in seen.values:
            yield seen.sample.label_path, f"holds {ignored}, and no label holds {count}: they count from 0 already"


def not_reduced(survey: Survey) -> Found:
    ignored, count = survey.dataset.ignore_index, len(survey.dataset.classes)
    if not survey.shifts and survey.foreign == {count} and ignored not in survey.pixels:
        for seen in survey.labels:
            if count in seen.values:
                yield seen.sample.label_path, f"holds {count}, and no label holds {ignored}: they count from 1"


def values_outside(survey: Survey) -> Found:
    for seen in survey.labels:
        wrong = {value: pixels for value, pixels in seen.values.items() if value in survey.foreign}
        if wrong:
            total = sum(seen.values.values())
            shares = [f"{value} ({pixels / total:.2%})" for value, pixels in wrong.items()]
            yield seen.sample.label_path, f"holds {_some(shares)} of the pixels"


def ignored_missing(survey: Survey) -> Found:
    ignored, read = survey.dataset.ignore_index, [seen.sample.label_path for seen in survey.seen if seen.values]
    if survey.facts.get("ignored") is True and read and ignored not in survey.histogram and not survey.explained & set(read):
        yield survey.dataset.root / survey.dataset.config["labels"], "no label has ignored pixels, the official ones have"


def ignored_there(survey: Survey) -> Found:
    for seen in survey.labels if survey.facts.get("ignored") is False else ():
        pixels = sum(n for value, n in seen.values.items() if survey.ruled[value] == survey.dataset.ignore_index)
        if pixels:
            what = f"{pixels / sum(seen.values.values()):.1%} of the pixels are ignored"
            yield seen.sample.label_path, f"{what} ({survey.dataset.ignore_index}), none of the official labels is"


def other_size(survey: Survey) -> Found:
    for seen in survey.seen:
        if seen.image_size and seen.label_size and seen.image_size != seen.label_size:
            sizes = [f"{height} x {width}" for height, width in (seen.label_size, seen.image_size)]
            yield seen.sample.label_path, f"{sizes[0]} pixels (height x width), its image {sizes[1]}"


@dataclass(frozen=True)
class Check:
    """A mistake: `find` gives file and words wherever it was made; `hint` is the repair, in which {again} is the way to make
    the labels once more, and other words are those of the configuration."""

    kind: str
    find: Callable[[Survey], Found]
    hint: str


CHECKS = (
    Check(
        "number of images",
        number_of_images,
        "Is it the list, or the folder, of another split, or an incomplete copy? Results on it are marked as partial. {again}",
    ),
    Check("ids listed twice", ids_twice, "List every id once: such an image would count twice."),
    Check(
        "missing ids",
        missing_ids,
        "The list names images that are not here: is it the list of this release and split (one id per line, without folder "
        "and suffix), or was only a part copied? {again}",
    ),
    Check("label without image", label_without_image, "{pairs} Copy the images, or correct their names. {again}"),
    Check(
        "image without label", image_without_label, "{pairs} Rename or move the labels, or remove what does not belong. {again}"
    ),
    Check(
        "ids of another split",
        unlike_the_split,
        "These files are not of the split that the papers report on: take only that, from {link}.",
    ),
    Check(
        "list of another split",
        ids_of_another_split,
        "A list of the training or test split was taken for this one, or they are mixed: restore the official list.",
    ),
    Check("unreadable images", unreadable_image, "Empty, truncated or damaged: copy or download them again. {again}"),
    Check("unreadable labels", unreadable_label, "Empty, truncated or damaged: copy or convert them again. {again}"),
    Check(
        "labels saved as JPEG",
        jpeg,
        "The labels went through JPEG, which alters class numbers for good: convert them again from the official ones, to PNG. "
        "{again}",
    ),
    Check(
        "colours instead of class numbers",
        palette_colours,
        "Every pixel must hold the number of its class, which is the position of its colour in the palette: "
        "ovss_bench.datasets.conversion.by_colour turns colours into numbers. Open palette PNGs as they are, without "
        "converting them to RGB. {again}",
    ),
    Check(
        "several channels",
        several_channels,
        "A label map has one channel of class numbers. Turn colours into numbers by the data set's own table "
        "(ovss_bench.datasets.conversion.by_colour). {again}",
    ),
    Check(
        "16 bits saved in 8",
        sixteen_bits_in_eight,
        "Class numbers above 255 do not fit into 8 bits, and were folded or cut: convert the labels again to 16 bits. {again}",
    ),
    Check(
        "zero label reduced twice",
        reduced_twice,
        "The data set's rules ignore 0 and lower every other number, and here this is done already. Take the labels as the "
        "official archive has them. {again}",
    ),
    Check(
        "zero label not reduced",
        not_reduced,
        "0 seems to stand for unlabelled pixels: turn it into {ignored} and every other number v into v - 1 (or, in a YAML "
        "file of one's own, say reduce_zero_label: true). {again}",
    ),
    Check(
        "values outside the classes",
        values_outside,
        "Classes are 0 to {last}, ignored pixels {ignored}: are these labels of another data set, or in an encoding that must "
        "be converted first (all ids instead of train ids, 0 and 255 instead of 0 and 1)? {again}",
    ),
    Check(
        "ignored pixels missing",
        ignored_missing,
        "Pixels without a label or on outlines must be {ignored}; an image editor or a conversion may have made another class "
        "of them. {again}",
    ),
    Check(
        "ignored pixels that should not be",
        ignored_there,
        "{ignored} must be a class here: in masks of 0 and 255 the object is 255, and must be 1. {again}",
    ),
    Check(
        "labels of another size",
        other_size,
        "Labels must be at the original size of the image, not turned or resized. Is it the label of another image? {again}",
    ),
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
    """Reads all of a data set and reports what is wrong with it.

    `out` writes the manifest (JSON), `against` compares with one that somebody else wrote. Raises OvssError if the data set is
    not there at all, or half prepared.
    """
    theirs = _read_manifest(Path(against), name) if against is not None else None
    dataset = load_dataset(name, root)
    samples, seen = dict(enumerate(dataset.listed)), {}
    with Progress(quiet).start(f"check of {dataset.name}", len(samples)) as bar:
        for number, outcome in in_processes(
            lambda number: look(dataset, samples[number]), samples, workers or os.cpu_count() or 1
        ):
            if isinstance(outcome, OvssError):
                raise outcome
            seen[number] = outcome
            bar.advance()
    survey = Survey(dataset, [seen[number] for number in samples])
    findings, words = [], _words(name, dataset, root)
    for entry in CHECKS:
        found = [Finding(entry.kind, file, what, entry.hint.format(**words).strip()) for file, what in entry.find(survey)]
        survey.explained |= {finding.file for finding in found}
        findings += found
    complete = bool(samples) and all(sample.image_path.is_file() and sample.label_path.is_file() for sample in samples.values())
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
    )
    if theirs is not None:
        report.findings.extend(compare(report, theirs, dataset))
    if out is not None:
        text = json.dumps(report.manifest(), indent=1)
        write_atomic(Path(out), lambda temporary: temporary.write_text(text + "\n"))
    return report


def _words(name: str, dataset: SegDataset, root: str | Path | None) -> dict[str, object]:
    """What the hints are filled with."""
    config = dataset.config
    again = "Get them again from where the data set comes from."
    if config.get("link"):
        again = f"Get them again from {config['link']}."
    if "prepare" in config:
        again = f"Again from the archives: python tools/datasets.py prepare {name} data_root={root or '$OVSS_DATA'} rerun=true"
    if config.get("loader") == "demo":
        again = f"Delete {dataset.root}: the scenes are drawn again."
    image, label = (f"{config[f'{kind}s']}/<id>{config[f'{kind}_suffix']}" for kind in ("image", "label"))
    pairs = f"Image {image} and label {label} are a pair."
    values = {"ignored": dataset.ignore_index, "last": len(dataset.classes) - 1, "link": config.get("link", "its source")}
    return {"again": again, "pairs": pairs, **values}


def _read_manifest(path: Path, name: str) -> dict[str, Any]:
    own = dataset_config(name)[0]
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise OvssError(f"manifest {path} cannot be read: {error}. Expected a file that check wrote with out=FILE.") from error
    if not isinstance(manifest, dict) or not {"dataset", "histogram", "labels", "fingerprint"} <= manifest.keys():
        raise OvssError(f"{path} is no manifest. Expected a file that check wrote with out=FILE.")
    if manifest["dataset"] != own:
        raise OvssError(f"manifest {path} is of {manifest['dataset']}, not of {own}.")
    return manifest


def compare(report: Report, theirs: Mapping[str, Any], dataset: SegDataset) -> Iterator[Finding]:
    """The differences from a manifest."""
    hint = "One of the two copies is not the official data: check both."
    paths = {sample.id: sample.label_path for sample in dataset.listed}
    here, there = report.labels, theirs["labels"]
    for what, ids in (("only here", here.keys() - there.keys()), ("only in the manifest", there.keys() - here.keys())):
        for name in sorted(ids):
            yield Finding("other ids than in the manifest", paths.get(name), f"{name} is {what}", hint)
    changed = [name for name in sorted(here.keys() & there.keys()) if here[name] != there[name]]
    for name in changed:
        yield Finding("other labels than in the manifest", paths[name], "holds other class numbers", hint)
    ours, other = ({int(value): n for value, n in pixels.items()} for pixels in (report.histogram, theirs["histogram"]))
    for value in sorted(ours.keys() | other.keys()):
        if ours.get(value, 0) != other.get(value, 0):
            what = f"{value} {_name(report, value)}: {ours.get(value, 0)} pixels here, {other.get(value, 0)} in the manifest"
            yield Finding("other pixels of a class than in the manifest", None, what, hint)
    if here == there and report.fingerprint != theirs["fingerprint"]:
        yield Finding(
            "other bytes than in the manifest",
            None,
            "ids and class numbers are the same, but image files have other sizes, or label files other bytes",
            "The images may be of another release or saved again, which changes results; labels of other bytes, written by "
            "another version of Pillow, do no harm.",
        )


def view(report: Report) -> Group:
    """A report for the terminal: facts, histogram, findings by kind."""
    facts = Table(box=None, pad_edge=False, show_header=False, title=f"{report.name} in {report.root}", title_justify="left")
    facts.add_row("images", str(report.images))
    facts.add_row("fingerprint", report.fingerprint or "none, files are missing")
    facts.add_row("sha256 of the ids", report.ids_digest)
    histogram = Table(box=None, pad_edge=False)
    for column in ("value", "class", "pixels", "share"):
        histogram.add_column(column, justify="left" if column == "class" else "right", overflow="fold")
    total = sum(report.histogram.values())
    for value, pixels in report.histogram.items():
        histogram.add_row(str(value), Text(_name(report, value)), str(pixels), f"{pixels / total:.2%}")
    parts: list[Any] = [facts, Text(), histogram, Text()]
    absent = sorted(set(range(len(report.classes))) - set(report.classes_present))
    if absent:
        names = ", ".join(f"{value} {report.classes[value]}" for value in absent)
        parts.append(Text(f"note: {len(absent)} of {len(report.classes)} classes never occur: {names}\n"))
    for kind, group in groupby(report.findings, lambda finding: finding.kind):
        findings = list(group)
        parts.append(Text(f"{kind}: {len(findings)}", style="bold red"))
        for finding in findings[:SHOWN]:
            parts.append(Text(f"  {finding.file}: {finding.what}" if finding.file else f"  {finding.what}"))
        if len(findings) > SHOWN:
            parts.append(Text(f"  and {len(findings) - SHOWN} more"))
        parts.append(Text(f"  -> {findings[0].hint}\n"))
    parts.append(Text(f"{len(report.findings)} findings" if report.findings else "nothing is wrong"))
    return Group(*parts)


def _name(report: Report, value: int) -> str:
    if value == report.ignore_index:
        return "ignored"
    return report.classes[value] if 0 <= value < len(report.classes) else "(no class)"


def _sibling_lists(survey: Survey) -> Iterator[tuple[Path, set[str]]]:
    """The lists of other splits beside that of this one; train.txt and test.txt beside val.txt, not trainval.txt."""
    if survey.list_file is not None:
        own = set(SPLITS.findall(survey.list_file.stem))
        for path in sorted(survey.list_file.parent.glob("*.txt")):
            split = set(SPLITS.findall(path.stem))
            if path != survey.list_file and len(split) == 1 and split != own:
                yield path, {line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()}


def _grey(colours: Iterable[tuple[int, ...]]) -> bool:
    return all(len(set(colour)) == 1 for colour in colours)


def _images(survey: Survey) -> Path:
    return survey.dataset.root / survey.dataset.config["images"]


def _below(survey: Survey, path: Path) -> str:
    return path.relative_to(survey.dataset.root).as_posix()


def _instead(path: Path) -> str:
    """A file in the place of a missing one that has its name, but another suffix."""
    stem = path.name.partition(".")[0]
    others = sorted(other.name for other in path.parent.glob(f"{escape(stem)}*") if other.suffix.lower() in IMAGES)
    return f"; but there is {_some(others)}" if others else ""


def _some(values: Any) -> str:
    values = [str(value) for value in values]
    return ", ".join(values[:8]) + (" ..." if len(values) > 8 else "")
