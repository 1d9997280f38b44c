"""A folder of label maps from any program, with an optional manifest.json, checked before it is scored.

The stored values become classes of a data set; the number of classes C stands for "no class"."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from ..config.validation import validate_all
from ..datasets.base import SegDataset
from ..datasets.lists import Sample, foreign_names
from ..errors import OvssError
from ..files import DAMAGES, below, read_json, write_text
from ..process import in_threads
from .label_files import SUFFIXES, BadMap, name_parts, painted, read_run_lengths, read_values

MANIFEST = "manifest.json"
VALUES = 2**16  # in a 16-bit file
READERS = 4  # threads
SHOWN = 10  # files of each kind of problem in an error
COMPARED = 16  # images whose ground truth is compared with the shifted labels
INVALID = -1


@dataclass(frozen=True)
class Manifest:
    """What a folder states about its maps. `classes`: their names in the order of the values. `class_map` maps names to those
    of the data set where they differ, or to null if it lacks the class; if given, classes are identified by name, in any order.
    `label_offset` is added to the stored values; negative sums mean "no class". `void`: the values that mean "no class". The
    other fields describe where the maps come from."""

    classes: tuple[str, ...] | None = None
    class_map: dict[str, str | None] | None = None
    label_offset: int | None = None
    void: int | tuple[int, ...] | None = None
    method: str | None = None
    variant: str | None = None
    producer: str | None = None
    dataset: str | None = None
    checkpoint_sha256: str | None = None
    tags: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder, empty if there is none. Raises OvssError if it is invalid."""
        path = folder / MANIFEST
        if not path.is_file():
            return cls()
        try:
            content = read_json(path)
        except DAMAGES as error:
            raise OvssError(f"{path} cannot be read: {error}. Expected the JSON that docs/outside.md describes.") from error
        if not isinstance(content, dict):
            raise OvssError(f"{path} is not a JSON object. Expected NAME: VALUE for {', '.join(get_type_hints(cls))}.")
        return cls(**validate_all(content, get_type_hints(cls), "field", lambda _: str(path)))

    def write(self, folder: Path) -> None:
        stated = {name: value for name, value in asdict(self).items() if value is not None}
        write_text(folder / MANIFEST, json.dumps(stated, indent=1, ensure_ascii=False) + "\n")

    def voids(self, end: int) -> set[int]:
        """The stored values that mean "no class". Unless stated, these are -1, 65535 and, if no class has it, 255. `end`: 1
        plus the largest value of a class."""
        if self.void is not None:
            return {self.void} if isinstance(self.void, int) else set(self.void)
        return {-1, 255, VALUES - 1} if end <= 255 else {-1, VALUES - 1}


class LabelMaps:
    """The label maps of a data set in a folder, or in a JSON file. Call `check` on all before `read` on one.

    A map is `<image id>.png` or .npy, in the folder or in its subfolder with the data set's name; other `foreign_names` of the
    image are found, too. `label_offset` overrides the manifest's; `allow_missing` gives "no class" to all pixels of an image
    without a file; `any_size` accepts maps of another size than the image."""

    def __init__(
        self,
        path: Path,
        dataset: SegDataset,
        names: Sequence[set[str]],
        label_offset: int | None = None,
        allow_missing: bool = False,
        any_size: bool = False,
    ) -> None:
        self.path, self.dataset = path, dataset
        self.manifest = Manifest.read(path) if path.is_dir() else Manifest()
        self.allow_missing, self.any_size = allow_missing, any_size
        stated = self.manifest.label_offset if label_offset is None else label_offset
        self.offset, self.offset_stated = stated or 0, stated is not None
        self.names = [{plain_name(name) for name in each} for each in names]
        self.count = len(self.names)
        self.problems: list[str] = []  # of the manifest
        self.folder = path / dataset.name if (path / dataset.name).is_dir() else path
        self.stems = foreign_names(dataset.samples)
        self.lengths_file = self._lengths_file()
        self.lengths = self._lengths() if self.lengths_file else {}
        self.order = self._order()
        end = max(self.count, len(self.order)) - self.offset
        self.voids = self.manifest.voids(end) | ({-1} if self.lengths_file else set())
        self.table = self._table()
        self.colours = {tuple(colour): c for c, colour in enumerate(dataset.palette)}

    def read(self, image: str, size: tuple[int, int] | None) -> np.ndarray:
        """The classes (H, W) int64 of an image, C for none. Raises BadMap for a map that cannot be scored."""
        found = self._values(image)
        if found is None and size is not None and self.allow_missing:
            return np.full(size, self.count, np.int64)
        if found is None:
            kind = f"lack a file {' or '.join(SUFFIXES)} in {self.folder}" if not self.lengths_file else "are not listed"
            raise BadMap(f"{kind} (allow_missing=true counts them as wrong)", image)
        where, values, palette = found
        if size not in (None, values.shape) and not self.any_size:
            shape = f"{values.shape[0]} x {values.shape[1]}, image {size[0]} x {size[1]}" if size else ""
            kind = "have another size than their image (height x width): export them at its size, or set resize_maps=true"
            raise BadMap(kind, f"{where} ({shape})")
        classes = self.table[_index(values)]
        if (classes == INVALID).any():
            wrong = np.unique(values[classes == INVALID])[:8].tolist()
            most = len(self.order) - 1 - self.offset
            void = " or ".join(map(str, sorted(self.voids)))
            kind = f"hold values that are no class: expected {max(0, -self.offset)} to {most}, or {void} for no class"
            raise BadMap(kind, f"{where} ({', '.join(map(str, wrong))})")
        if palette is not None:
            self._check_palette(where, values, palette)
        return classes

    def check(self, samples: Sequence[Sample]) -> None:
        """Raises one OvssError that lists everything wrong with the manifest and the maps of these images."""
        wrong: dict[str, list[str]] = defaultdict(list)
        for error in in_threads(self.problem, samples, READERS):
            if error:
                wrong[error.kind].append(str(error))
        problems = list(self.problems)
        for kind, files in wrong.items():
            more = f"; and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
            problems.append(f"{len(files)} {kind}: {'; '.join(files[:SHOWN])}{more}")
        if not self.offset_stated and self.order == list(range(self.count)) and (shift := self._shift(samples)):
            problems.append(shift)
        if problems:
            shown = "".join(f"\n  {problem}" for problem in problems)
            raise OvssError(
                f"label maps in {self.path} cannot be scored on {self.dataset.name}; of {len(samples)} images:{shown}"
            )

    def problem(self, sample: Sample) -> BadMap | None:
        """What is wrong with the map of an image, if anything."""
        try:
            size = self.dataset.size(sample)
        except OvssError:
            size = None  # the image cannot be read, which the evaluation reports
        try:
            self.read(sample.id, size)
        except BadMap as error:
            return error
        return None

    def _values(self, image: str) -> tuple[str, np.ndarray, np.ndarray | None] | None:
        """The file of an image's map, its values and its palette, if any; None without a file."""
        if self.lengths_file:
            entries = self.lengths.get(image)
            return (f"{self.lengths_file.name}: {image}", painted(self.lengths_file, entries), None) if entries else None
        for stem in self.stems.get(image, ()):
            for suffix in SUFFIXES:
                path = below(self.folder, f"{stem}{suffix}", links=True)
                if path.is_file():
                    return str(path.relative_to(self.path)), *read_values(path)
        return None

    def _lengths_file(self) -> Path | None:
        """The JSON file given by its path, or else the only one in the folder."""
        if self.path.is_file():
            return self.path
        files = [file for file in sorted(self.folder.glob("*.json")) if file.name != MANIFEST]
        if len(files) > 1:
            raise OvssError(f"{self.folder} holds several JSON files: {', '.join(f.name for f in files)}. Give one: path=FILE.")
        return files[0] if files else None

    def _lengths(self) -> dict[str, list[dict[str, Any]]]:
        """The run lengths by image id."""
        assert self.lengths_file is not None
        owners = {name: image for image, names in self.stems.items() for name in names}
        lengths: dict[str, list[dict[str, Any]]] = {}
        for file, entries in read_run_lengths(self.lengths_file).items():
            image = next((owners[name] for name in name_parts(file) if name in owners), None)
            if image is not None:
                lengths.setdefault(image, []).extend(entries)
        return lengths

    def _order(self) -> list[int]:
        """The class of each entry of `classes` in the manifest, C for none."""
        classes, names = self.manifest.classes, self.manifest.class_map
        if classes is None:
            return list(range(self.count))
        file, shown = self.path / MANIFEST, self.dataset.classes
        if names is None:
            wrong = [c for c, name in enumerate(classes[: self.count]) if plain_name(name) not in self.names[c]]
            first = f"; value {wrong[0]} is '{classes[wrong[0]]}' there, '{shown[wrong[0]]}' here" if wrong else ""
            if wrong or len(classes) != self.count:
                hint = 'If all names are right, add "class_map": {}, and they may have any order.'
                counts = f"{file} lists {len(classes)} classes, {self.dataset.name} has {self.count}"
                self.problems.append(f"{counts}; {len(wrong)} are in another place{first}. {hint}")
            return list(range(self.count))
        owners = {name: c for c, each in enumerate(self.names) for name in each}
        unknown = [name for name in classes if (new := names.get(name, name)) is not None and plain_name(new) not in owners]
        if unknown:
            hint = 'Name the class of each in class_map ("theirs": "ours", or null for no class).'
            self.problems.append(f"{file}: {self.dataset.name} has no class {', '.join(map(repr, unknown[:SHOWN]))}. {hint}")
        unused = [name for name in names if name not in classes]
        if unused:
            self.problems.append(f"{file}: class_map names {', '.join(map(repr, unused[:SHOWN]))}, which is not in classes.")
        return [owners.get(plain_name(names.get(name, name) or ""), self.count) for name in classes]

    def _table(self) -> np.ndarray:
        """The class of each value from 0 to VALUES - 1, then of larger and negative ones, then of -1."""
        table = np.full(VALUES + 2, INVALID, np.int64)
        shifted = np.arange(VALUES) + self.offset
        table[:VALUES][shifted < 0] = self.count
        inside = (shifted >= 0) & (shifted < len(self.order))
        table[:VALUES][inside] = np.array(self.order)[shifted[inside]]
        table[_index(np.array(sorted(self.voids), np.int64))] = self.count
        return table

    def _check_palette(self, where: str, values: np.ndarray, palette: np.ndarray) -> None:
        """Raises BadMap if most values have the colour of another class, as in a colour picture reduced to a palette."""
        used = [v for v in np.unique(values).tolist() if v < len(palette) and self.table[v] < self.count]
        classes = [(v, self.colours.get(tuple(palette[v].tolist()))) for v in used]
        other = [(v, c) for v, c in classes if c is not None and c != self.table[v]]
        if 2 * len(other) > len(used) and len(self.colours) == self.count:
            value, c = other[0]
            kind = "have a palette whose indices are not the classes: convert the colours to class indices"
            raise BadMap(kind, f"{where} (index {value} has the colour of class {c}, {self.dataset.classes[c]})")

    def _shift(self, samples: Sequence[Sample]) -> str:
        """A problem in words if most labels agree with the ground truth only when shifted by one, else empty."""
        agree, pixels = dict.fromkeys((-1, 0, 1), 0), 0
        chosen = {int(n) for n in np.linspace(0, len(samples) - 1, min(COMPARED, len(samples)))}
        for sample in (samples[n] for n in sorted(chosen)):
            try:
                found = self._values(sample.id)
                truth = self.dataset.label(sample, found[1].shape) if found else None
            except OvssError:
                continue
            if found is None or truth is None or found[1].shape != truth.shape:
                continue
            counts = truth != self.dataset.ignore_index
            pixels += np.count_nonzero(counts)
            for shift in agree:
                agree[shift] += int(np.count_nonzero((found[1] + np.int64(shift) == truth) & counts))
        shift = max(agree, key=lambda shift: agree[shift])
        if shift == 0 or agree[shift] <= 0.5 * pixels or agree[shift] <= 2 * agree[0]:
            return ""
        share, plain = (round(100 * agree[s] / pixels) for s in (shift, 0))
        compare = f"{share} % of the pixels would be right with label_offset={shift}, {plain} % are as it is"
        return f"the labels look shifted by one: {compare}. State label_offset={shift}, or label_offset=0 if they are right."


def _index(values: np.ndarray) -> np.ndarray:
    """The place of stored values in the table of `LabelMaps`."""
    values = values.astype(np.int64)
    return np.where(values == -1, VALUES + 1, np.where((values < 0) | (values >= VALUES), VALUES, values))


def plain_name(name: str) -> str:
    """A class name as far as spelling matters: `TV_monitor` and `tv monitor` are equal."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
