"""Image id lists in the common formats, and repeated or missing samples."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import OvssError
from ..files import NO_NAME, inside, on_disk, read_lines


@dataclass(frozen=True)
class Sample:
    """One image of a data set; `id` is its path below the image folder, without the suffix."""

    id: str
    image_path: Path
    label_path: Path
    line: int | None = field(default=None, compare=False)  # in the id list

    def __str__(self) -> str:
        return self.id


def foreign_names(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Image id -> the stems that other programs may use for a file about the image, most likely first: the id or the image
    file's stem, with folders, without folders, or with _ for each /. Stems shared by several images are omitted."""

    def names(sample: Sample) -> list[str]:
        paths = [sample.id, (Path(sample.id).parent / sample.image_path.stem).as_posix()]
        return list(dict.fromkeys(name for path in paths for name in (path, Path(path).name, path.replace("/", "_"))))

    stems = {sample.id: names(sample) for sample in samples}
    owners = Counter(name for each in stems.values() for name in each)
    return {image: [name for name in each if owners[name] == 1] for image, each in stems.items()}


def read_ids(root: Path, config: Mapping[str, Any]) -> list[tuple[int, str]]:
    """(line, id) of each entry of a data set's list. An entry is an id, with or without the suffix of images or labels, or two
    columns with the paths of the image and its label below the data set's folder, as in lists of mmseg and DeepLab
    (`/JPEGImages/a.jpg /SegmentationClass/a.png`). Comments after `#` and empty lines are skipped.

    A line that as a whole names an existing image is an id, even if it contains spaces. Raises OvssError, with the line number,
    for a name that points outside the image folder and for the label of another image.
    """
    path, read, result = root / config["ids"], _reader(root, config), []
    for number, line in read_lines(path, "list", "UTF-8 text, an id per line"):
        try:
            if line:
                result.append((number, read(line)))
        except OvssError as error:
            raise OvssError(f"list {path}, line {number}: {error}") from error
    return result


def _reader(root: Path, config: Mapping[str, Any]) -> Callable[[str], str]:
    folders = {kind: config[f"{kind}s"] for kind in ("image", "label")}
    suffixes = {kind: config[f"{kind}_suffix"] for kind in folders}

    def exists(name: str) -> bool:
        return os.path.isfile(root / folders["image"] / on_disk(name + suffixes["image"]))

    def column(name: str, kind: str) -> str:
        """The id in a path below the data set's folder, or below its folder of images or labels."""
        pure = PurePosixPath(name.lstrip("/"))
        if pure.is_relative_to(folders[kind]):
            pure = pure.relative_to(folders[kind])
        elif name.startswith("/"):
            raise OvssError(f"'{name}' is not in {folders[kind]}.")
        if not pure.name.endswith(suffixes[kind]):
            raise OvssError(f"'{name}' does not end in {suffixes[kind]}.")
        return inside(str(pure)).removesuffix(suffixes[kind])

    def forms(name: str) -> Iterator[str]:
        """The ids that a name may stand for; the first one with an existing image is used."""
        yield name
        pure = PurePosixPath(name)
        short = str(pure.relative_to(folders["image"])) if pure.is_relative_to(folders["image"]) else name
        yield from (each.removesuffix(suffix) for suffix in suffixes.values() for each in (name, short))

    def read(line: str) -> str:
        if not re.search(r"[\s#,;]", line) and not line.endswith(tuple(suffixes.values())):  # a plain id
            return inside(line)
        if not line.startswith("/") and not NO_NAME.search(line) and exists(inside(line)):
            return inside(line)
        line = re.sub(r"\s+#.*", "", line)
        columns = [part for part in re.split(r"[\s,;]+", line) if part]
        if len(columns) == 2 and columns[0].endswith(suffixes["image"]):
            image, label = map(column, columns, folders)
            if image != label:
                wanted = f"{folders['label']}/{image}{suffixes['label']}"
                raise OvssError(f"the label of {image} is {wanted} by the data set's rules, not {columns[1]}.")
            return image
        name = inside(line)
        return next(filter(exists, forms(name)), name)

    return read


def repeated(samples: Sequence[Sample]) -> Iterator[str]:
    """Samples listed twice: by the same id, or by two ids for the same files (links, case-insensitive file systems)."""
    seen: dict[Any, Sample] = {}
    for sample in samples:
        keys = [key for key in (sample.id, _files(sample)) if key]
        first = next((seen[key] for key in keys if key in seen), None)
        if first:
            yield f"{_where(first)} and {_where(sample)}"
        for key in keys:
            seen.setdefault(key, sample)


def _where(sample: Sample) -> str:
    return sample.id + (f" (line {sample.line})" if sample.line else "")


def _files(sample: Sample) -> tuple[int, ...] | None:
    """The device and inode numbers of image and label, which are equal for two names of the same files."""
    try:
        stats = [path.stat() for path in (sample.image_path, sample.label_path)]
    except OSError:
        return None
    return tuple(part for stat in stats for part in (stat.st_dev, stat.st_ino)) if all(stat.st_ino for stat in stats) else None


def missing(samples: Sequence[Sample]) -> Iterator[str]:
    """The paths of missing files, with the line of the list."""
    for sample in samples:
        for path in (sample.image_path, sample.label_path):
            if not os.path.isfile(path):  # Path.is_file raises for invalid names
                yield f"{path}" + (f" (line {sample.line} of the list)" if sample.line else "")
