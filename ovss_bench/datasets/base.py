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
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from yaml import YAMLError

from ..errors import OvssError, unknown
from ..evaluation.metrics import DatasetFacts
from ..files import CONFIGS, config_names, digest, load_config
from ..image import read_image, resize_truth
from ..registry import DATASETS
from ..vocabulary import Vocabulary, read_names

KEYS = {  # what configs/dataset and YAML files of one's own may hold
    **dict.fromkeys(("extends", "loader", "mmseg", "full_name", "link", "licence", "names", "names_of"), "a text"),
    **dict.fromkeys(("images", "labels", "ids", "image_suffix", "label_suffix"), "a text"),
    **dict.fromkeys(("expected_images", "background", "ignore_index", "object"), "a whole number, 0 or more"),
    **dict.fromkeys(("unseen", "interest"), "a list of class numbers"),
    **dict.fromkeys(("check", "prepare"), "NAME: VALUE below it"),
    "folders": "a list of texts",
    "classes": "a list of names, or of lists of synonyms (in quotes what YAML takes for numbers or for true and false)",
    "palette": "a list of [red, green, blue]",
    "reduce_zero_label": "true or false",
}
# A file of this name (and perhaps a suffix) is in a folder of images or labels while it is being written.
UNFINISHED = ".unfinished"


class MissingData(OvssError):
    """The files of a data set are not there, or not all of them."""


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
        self.classes: tuple[str, ...] = tuple(name.strip() for name in self.mmseg.metainfo["classes"])
        self.palette: list[list[int]] = [list(colour) for colour in self.mmseg.metainfo["palette"]]
        self.background: int | None = config.get("background")
        self.ignore_index: int = config.get("ignore_index", 255)
        self.expected_images: int | None = config.get("expected_images")
        self.unseen: tuple[int, ...] = tuple(config.get("unseen", ()))

    def locate(self, root: str | Path | None) -> Path:
        """The folder that holds images and labels: the first of `folders` below the data root that is there."""
        root = root or os.environ.get("OVSS_DATA")
        if root is None:
            raise MissingData(
                f"data set '{self.name}' needs a data root: data_root=DIR, or the environment "
                f"variable OVSS_DATA. Expected there:\n{self.tree('DIR')}"
            )
        wanted = [self.config["images"], self.config["labels"], *filter(None, [self.config.get("ids")])]
        for folder in self.config["folders"]:
            self._refuse_unfinished(Path(root) / folder)
            if all((Path(root) / folder / path).exists() for path in wanted):
                return Path(root) / folder
        raise MissingData(f"data set '{self.name}' was not found in {root}. Expected:\n{self.tree(root)}")

    def _refuse_unfinished(self, folder: Path) -> None:
        raw = self.config.get("prepare", {}).get("raw", ())
        for path in (self.config["images"], self.config["labels"], *raw):
            for mark in (folder / path).glob(UNFINISHED + "*"):
                raise MissingData(
                    f"data set '{self.name}' is half prepared: {mark.parent} is not complete. Go on with: "
                    f"{mark.read_text().strip() or f'python tools/datasets.py prepare {self.name}'}"
                )

    def tree(self, root: str | Path) -> str:
        """The files that are expected, for error messages."""
        first, *others = self.config["folders"]
        lines = [f"  {root}/{first}/" + (f"    (or {', '.join(others)})" if others else "")]
        lines.append(f"    {self.config['images']}/<id>{self.config['image_suffix']}")
        lines.append(f"    {self.config['labels']}/<id>{self.config['label_suffix']}")
        if self.config.get("ids"):
            lines.append(f"    {self.config['ids']}    (one <id> per line)")
        if (CONFIGS / "dataset" / f"{self.name}.yaml").is_file():
            lines.append(f"  Where to get it and how it is converted: python tools/datasets.py list {self.name}")
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
    def listed(self) -> list[Sample]:
        """All images, in mmseg's order, whether or not their files are there."""
        folder, suffix = self.root / self.config["images"], self.config["image_suffix"]
        samples = []
        for info in self.mmseg.data_list:
            path = Path(info["img_path"])
            samples.append(Sample(path.relative_to(folder).as_posix().removesuffix(suffix), path, Path(info["seg_map_path"])))
        return samples

    @cached_property
    def samples(self) -> list[Sample]:
        """All images, in mmseg's order. Raises MissingData if there is none or a file is missing."""
        samples = self.listed
        if not samples:
            raise MissingData(f"data set '{self.name}' lists no image. Expected:\n{self.tree(self.root)}")
        missing = [path for sample in samples for path in (sample.image_path, sample.label_path) if not path.is_file()]
        if missing:
            shown = "\n".join(f"  {path}" for path in missing[:5])
            raise MissingData(
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

    def raw_label(self, sample: Sample) -> np.ndarray:
        """(H, W) int32 as stored. Raises OvssError for an unreadable map, or one of fractions."""
        try:
            stored = np.array(Image.open(sample.label_path))
        except Exception as error:  # of damaged files Pillow raises nearly anything
            reason = str(error) or type(error).__name__
            raise OvssError(f"label map {sample.label_path} cannot be read: {reason}. Copy or convert it again.") from error
        if stored.dtype.kind == "f" and not np.array_equal(stored, np.trunc(stored)):
            raise OvssError(f"label map {sample.label_path} holds fractions, expected class numbers. Convert it again.")
        return stored.astype(np.int32)

    def label(self, sample: Sample, size: tuple[int, int] | None = None) -> np.ndarray:
        """(H, W) classes after the data set's rules. Raises OvssError for an unreadable map, three channels, other values,
        or another size than that of the image, if it is given."""
        label = self.raw_label(sample)
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
        label = self.ruled(label)
        wrong = label[((label < 0) | (label >= len(self.classes))) & (label != self.ignore_index)]
        if len(wrong):
            raise OvssError(
                f"label map {sample.label_path} holds the values {np.unique(wrong)[:8].tolist()}, but {self.name} has classes "
                f"0 to {len(self.classes) - 1} and {self.ignore_index} for ignored pixels. Is it the right data set, converted "
                "the right way?"
            )
        return label

    def scored(self, label: np.ndarray, size: tuple[int, ...], resize: str, min_foreground: int) -> np.ndarray:
        """A label as a recipe has it counted: at the `size` (H, W) of a result, and all of it ignored where less than
        `min_foreground` pixels are of objects (CLIP-DIY on COCO)."""
        if np.count_nonzero((label != self.ignore_index) & (label != self.background)) < min_foreground:
            label = np.full_like(label, self.ignore_index)
        return resize_truth(label, resize, size)

    def ruled(self, label: np.ndarray) -> np.ndarray:
        """Stored values -> classes: mmseg's rules, but not in its 8 bits, into which larger values would silently fold."""
        if self.mmseg.reduce_zero_label:
            label = np.where((label == 0) | (label == self.ignore_index), self.ignore_index, label - 1)
        if self.mmseg.label_map:
            raw, label = label, label.copy()
            for old, new in self.mmseg.label_map.items():
                label[raw == old] = new
        return label

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over name, classes, ids, sizes of the image files and bytes of the label files."""
        parts: list[str | bytes] = [self.name, *self.classes]
        for sample in self.samples:
            parts += [sample.id, str(sample.image_path.stat().st_size), sample.label_path.read_bytes()]
        return digest(*parts)

    @property
    def facts(self) -> DatasetFacts:
        """What the metrics must know."""
        return _facts(self.config)

    @cached_property
    def images_digest(self) -> str:
        """Equal for data sets of the same images (voc21 and voc20): these can be evaluated in one pass."""
        return digest(*(str(sample.image_path) for sample in self.samples))

    def vocabulary(self, names: str | None, templates: str) -> Vocabulary:
        """The data set's classes under a variant of their names (configs/names/<data set>), a names file, or as they are
        called."""
        entries, distractors = self.config.get("synonyms") or list(self.classes), []
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


def load_dataset(name: str | Path, root: str | Path | None = None) -> SegDataset:
    """A data set of configs/dataset by name, or of a YAML file of one's own; `root` defaults to the environment variable
    OVSS_DATA. The data of a file of one's own are beside it, or in the root."""
    name, config, folder = dataset_config(name)
    loader = DATASETS.get(config.get("loader", "mmseg"))
    if folder is None:
        return loader(name, config, root)
    try:
        return loader(name, config, folder)
    except MissingData:
        if root is None:
            raise
        return loader(name, config, root)
    except OvssError:
        raise
    except Exception as error:  # what mmseg raises for values that it cannot use
        raise OvssError(f"data set file {folder / name}.yaml cannot be used: {type(error).__name__}: {error}") from error


def facts_of(name: str) -> DatasetFacts:
    """What the metrics must know of a data set that need not be here; of one that is not of configs/dataset, nothing."""
    return _facts(dataset_config(name)[1]) if name in config_names("dataset") else DatasetFacts()


def _facts(config: dict[str, Any]) -> DatasetFacts:
    unseen, interest = (tuple(config.get(key, ())) for key in ("unseen", "interest"))
    return DatasetFacts(config.get("background"), unseen, config.get("object"), interest, config.get("ignore_index", 255))


def dataset_config(name: str | Path) -> tuple[str, dict[str, Any], Path | None]:
    """The name of a data set, its configuration with what it `extends`, and the folder of a YAML file of one's own."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in config_names("dataset"):
            raise unknown("dataset", name, config_names("dataset"))
        config = load_config("dataset", str(name))
        return str(name), _extended(config), None
    if not path.is_file():
        raise OvssError(f"data set file {path} does not exist. Known by name: {', '.join(config_names('dataset'))}.")
    if path.stem in config_names("dataset"):
        raise OvssError(f"data set file {path} has the name of a data set of this project. Give it another name.")
    return path.stem, _own(path), path.resolve().parent


def _extended(config: dict[str, Any]) -> dict[str, Any]:
    return dataset_config(config["extends"])[1] | config if "extends" in config else config


def _own(path: Path) -> dict[str, Any]:
    """The configuration of a data set of one's own: `images`, `labels`, `image_suffix`, `label_suffix`, and `classes` (a list,
    of which an entry may be a list of synonyms) or `names` (a names file); further keys as in configs/dataset."""
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise OvssError(f"data set file {path} cannot be read: {error}") from error
    wanted = ("images", "labels", "image_suffix", "label_suffix")
    if not isinstance(config, dict):
        raise OvssError(f"data set file {path} is not a mapping. Expected the keys {', '.join(wanted)}, and names or classes.")
    for key, value in config.items():
        if key not in KEYS:
            raise unknown(f"key in {path}", key, KEYS)
        if value is not None and not _fits(value, KEYS[key]):
            raise OvssError(f"data set file {path}: {key}={value!r}: expected {KEYS[key]}.")
    if config.get("extends") is not None and config["extends"] not in config_names("dataset"):
        raise unknown(f"dataset that {path} extends", config["extends"], config_names("dataset"))
    config = {key: value for key, value in config.items() if key != "extends" or value is not None}
    config = {key: value for key, value in _extended(config).items() if value is not None}
    missing = [key for key in wanted if key not in config]
    if "mmseg" not in config and not {"names", "classes"} & set(config):
        missing.append("names (a file with a line per class) or classes (a list)")
    if missing:
        raise OvssError(f"data set file {path} lacks {', '.join(missing)}.")
    entries = read_names(path.parent / config["names"])[0] if "names" in config else config.get("classes")
    if entries is not None:
        config["synonyms"] = [entry if isinstance(entry, list) else [str(entry)] for entry in entries]
        config["classes"] = [entry[0] for entry in config["synonyms"]]
    _check_classes(config, path)
    return {"folders": ["."]} | config


def _check_classes(config: dict[str, Any], path: Path) -> None:
    """Class numbers must be those of classes, where the file lists them."""
    count = len(config.get("classes", ()))
    for key in ("background", "object", "unseen", "interest") if count else ():
        value = config.get(key, [])
        wrong = [number for number in (value if isinstance(value, list) else [value]) if number >= count]
        if wrong:
            raise OvssError(f"data set file {path}: {key}={value}, but the classes are 0 to {count - 1}.")
    if config.get("ignore_index", 255) < count:
        raise OvssError(f"data set file {path}: ignore_index={config.get('ignore_index', 255)} is the number of a class.")
    if count and len(config.get("palette", config.get("classes"))) != count:
        raise OvssError(f"data set file {path}: palette has {len(config['palette'])} colours for {count} classes.")


def _fits(value: Any, kind: str) -> bool:
    """Whether a value is what KEYS says of it."""

    def number(item: Any) -> bool:
        return type(item) is int and item >= 0

    def listed(fits: Any) -> bool:
        return isinstance(value, list) and all(map(fits, value))

    def colour(item: Any) -> bool:
        return isinstance(item, list) and len(item) == 3 and all(type(part) is int and 0 <= part < 256 for part in item)

    def entry(item: Any) -> bool:
        return isinstance(item, str) or (isinstance(item, list) and bool(item) and all(isinstance(part, str) for part in item))

    checks = {
        "a text": lambda: isinstance(value, str),
        "a list of texts": lambda: bool(value) and listed(lambda item: isinstance(item, str)),
        "a list of class numbers": lambda: listed(number),
        "a whole number, 0 or more": lambda: number(value),
        "a list of [red, green, blue]": lambda: listed(colour),
        "true or false": lambda: isinstance(value, bool),
        "NAME: VALUE below it": lambda: isinstance(value, dict),
    }
    return checks.get(kind, lambda: bool(value) and listed(entry))()
