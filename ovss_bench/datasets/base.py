"""A thin layer over mmseg's data sets: where the files are, ids, labels with the dataset's rules applied, fingerprint,
background."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import OvssError, unknown
from ..files import CONFIGS, config_names, digest, load_config
from ..image import read_image
from ..registry import DATASETS
from ..vocabulary import Vocabulary, read_names


@dataclass(frozen=True)
class Sample:
    """One image of a data set; `id` is its path below the image folder without the suffix."""

    id: str
    image_path: Path
    label_path: Path

    def __str__(self) -> str:
        return self.id


@DATASETS.register_module(name="mmseg")
class SegDataset:
    """A data set read through a class of mmseg, as configs/dataset/<name>.yaml describes it.

    `classes` are the names in the order of the labels, `background` the index of the background class or None, and labels are
    counted after mmseg's label map and `reduce_zero_label`; `ignore_index` marks pixels that do not count.
    """

    def __init__(self, name: str, config: dict[str, Any], root: str | Path | None = None) -> None:
        self.name, self.config = name, config
        self.root = self.locate(root)
        self.mmseg = self._open()
        self.classes: tuple[str, ...] = tuple(self.mmseg.metainfo["classes"])
        self.palette: list[list[int]] = [list(colour) for colour in self.mmseg.metainfo["palette"]]
        self.background: int | None = config.get("background")
        self.ignore_index: int = config.get("ignore_index", 255)
        self.expected_images: int | None = config.get("expected_images")
        self.unseen: tuple[int, ...] = tuple(config.get("unseen", ()))

    def locate(self, root: str | Path | None) -> Path:
        """The folder that holds images and labels: the first of `folders` below the data root that is there."""
        root = root or os.environ.get("OVSS_DATA")
        if root is None:
            raise OvssError(
                f"data set '{self.name}' needs a data root: data_root=DIR, or the environment "
                f"variable OVSS_DATA. Expected there:\n{self.tree('DIR')}"
            )
        wanted = [self.config["images"], self.config["labels"], *filter(None, [self.config.get("ids")])]
        for folder in self.config["folders"]:
            if all((Path(root) / folder / path).exists() for path in wanted):
                return Path(root) / folder
        raise OvssError(f"data set '{self.name}' was not found in {root}. Expected:\n{self.tree(root)}")

    def tree(self, root: str | Path) -> str:
        """The files that are expected, for error messages."""
        first, *others = self.config["folders"]
        lines = [f"  {root}/{first}/" + (f"    (or {', '.join(others)})" if others else "")]
        lines.append(f"    {self.config['images']}/<id>{self.config['image_suffix']}")
        lines.append(f"    {self.config['labels']}/<id>{self.config['label_suffix']}")
        if self.config.get("ids"):
            lines.append(f"    {self.config['ids']}    (one <id> per line)")
        if self.config.get("source"):
            lines.append(f"  from {self.config['source']}")
        return "\n".join(lines)

    def _open(self) -> Any:
        with redirect_stdout(StringIO()):  # the fork prints that an optional package is not there
            import mmseg.datasets
            from mmseg.registry import DATASETS as MMSEG

        options = {"metainfo": {key: self.config[key] for key in ("classes", "palette") if key in self.config}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return MMSEG.get(self.config.get("mmseg", mmseg.datasets.BaseSegDataset.__name__))(
                ann_file=self.config.get("ids", ""),
                data_root=str(self.root),
                data_prefix={"img_path": self.config["images"], "seg_map_path": self.config["labels"]},
                img_suffix=self.config["image_suffix"],
                seg_map_suffix=self.config["label_suffix"],
                reduce_zero_label=self.config.get("reduce_zero_label", False),
                pipeline=[],
                test_mode=True,
                serialize_data=False,
                **options,
            )

    @cached_property
    def samples(self) -> list[Sample]:
        """All images, in mmseg's order. Raises OvssError if there is none or a file is missing."""
        folder, suffix = self.root / self.config["images"], self.config["image_suffix"]
        samples = []
        for info in self.mmseg.data_list:
            path = Path(info["img_path"])
            samples.append(Sample(path.relative_to(folder).as_posix().removesuffix(suffix), path, Path(info["seg_map_path"])))
        if not samples:
            raise OvssError(f"data set '{self.name}' lists no image. Expected:\n{self.tree(self.root)}")
        missing = [path for sample in samples for path in (sample.image_path, sample.label_path) if not path.is_file()]
        if missing:
            shown = "\n".join(f"  {path}" for path in missing[:5])
            raise OvssError(
                f"data set '{self.name}' lacks {len(missing)} of its files, the "
                f"first:\n{shown}\nExpected:\n{self.tree(self.root)}"
            )
        return samples

    def select(self, limit: int | None = None, ids: Sequence[str] | None = None) -> list[Sample]:
        """The samples of the given ids, or `limit` evenly spaced ones, or all."""
        if ids:
            known = {sample.id: sample for sample in self.samples}
            for name in ids:
                if name not in known:
                    raise unknown(f"image id in {self.name}", name, known)
            return [known[name] for name in ids]
        if limit is None or limit >= len(self.samples):
            return self.samples
        if limit < 1:
            raise OvssError(f"limit={limit}: expected the number of images to evaluate, 1 or more.")
        return [self.samples[int(i)] for i in np.linspace(0, len(self.samples) - 1, limit).round()]

    def image(self, sample: Sample) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return read_image(sample.image_path)

    def label(self, sample: Sample, size: tuple[int, int] | None = None) -> np.ndarray:
        """(H, W) classes after the data set's rules. Raises OvssError for an unreadable map, three channels, other values,
        or another size than that of the image, if it is given."""
        try:
            label = np.array(Image.open(sample.label_path), dtype=np.int32)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise OvssError(f"label map {sample.label_path} cannot be read: {error}. Copy or convert it again.") from error
        if label.ndim != 2:
            raise OvssError(
                f"label map {sample.label_path} has {label.shape[-1]} channels, expected one of class "
                "numbers. RGB labels must be converted to class numbers."
            )
        if size not in (None, label.shape):
            raise OvssError(
                f"label map {sample.label_path} is {label.shape[0]} x {label.shape[1]} pixels (height x width), its image "
                f"{size[0]} x {size[1]}. Labels must be at the original size of the image."
            )
        # mmseg's rules, but not in its 8 bits, into which larger values would silently fold.
        if self.mmseg.reduce_zero_label:
            label = np.where((label == 0) | (label == self.ignore_index), self.ignore_index, label - 1)
        if self.mmseg.label_map:
            raw = label.copy()
            for old, new in self.mmseg.label_map.items():
                label[raw == old] = new
        wrong = label[((label < 0) | (label >= len(self.classes))) & (label != self.ignore_index)]
        if len(wrong):
            raise OvssError(
                f"label map {sample.label_path} holds the values {np.unique(wrong)[:8].tolist()}, but {self.name} has classes "
                f"0 to {len(self.classes) - 1} and {self.ignore_index} for ignored pixels. Is it the right data set, converted "
                "the right way?"
            )
        return label

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over name, classes, ids, sizes of the image files and bytes of the label files."""
        parts: list[str | bytes] = [self.name, *self.classes]
        for sample in self.samples:
            parts += [sample.id, str(sample.image_path.stat().st_size), sample.label_path.read_bytes()]
        return digest(*parts)

    def vocabulary(self, names: str | None, templates: str) -> Vocabulary:
        """The data set's classes under a variant of their names (configs/names/<data set>), a names file, or as they are
        called."""
        entries, distractors = list(self.classes), []
        if names is not None:
            entries, distractors = read_names(names_path(self.config.get("names_of", self.name), names))
        return Vocabulary.from_names(
            entries, background=self.background, templates=templates, distractors=distractors, classes=self.classes
        )


def names_path(dataset: str, names: str) -> Path:
    """The names file of a variant, or the given path."""
    path = CONFIGS / "names" / dataset / f"{names}.txt"
    if path.is_file():
        return path
    if Path(names).is_file():
        return Path(names)
    variants = [file.stem for file in path.parent.glob("*.txt")]
    raise unknown(f"names variant (or file) of {dataset}", names, variants)


def load_dataset(name: str, root: str | Path | None = None) -> SegDataset:
    """A data set of configs/dataset by name; `root` defaults to the environment variable OVSS_DATA."""
    if name not in config_names("dataset"):
        raise unknown("dataset", name, config_names("dataset"))
    config = load_config("dataset", name)
    return DATASETS.get(config.get("loader", "mmseg"))(name, config, root)
