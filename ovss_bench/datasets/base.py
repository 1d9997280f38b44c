"""Data sets: samples, images, labels as class indices, vocabulary and fingerprint."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..config.plugin_errors import plugin_errors
from ..config.registry import DATASETS
from ..errors import OvssError, unknown
from ..evaluation.metrics import DatasetFacts
from ..files import as_text, config_names, digest, environment, inside, is_clutter, load_config, on_disk
from ..image import read_image, resize_target
from ..vocabulary import Vocabulary, read_names
from . import expected
from .config import dataset_config, facts, names_path
from .layout import MissingData, find_folder, resolved, tree
from .lists import Sample, missing, read_ids, repeated
from .mmseg_classes import mmseg_class

DEFAULT = "default"
EXIF_ORIENTATION = 0x0112


class OutOfRange(OvssError, IndexError):
    """An index beyond the images of a data set."""


@DATASETS.register_module(name="mmseg")
class SegDataset:
    """A data set described by configs/dataset/<name>.yaml. If the file names an mmseg class, that class supplies the class
    names, colours and label map.

    `classes` are the class names in label order; `background` is the index of the background class, or None. Labels are class
    indices after mmseg's label map and `reduce_zero_label`; pixels with `ignore_index` do not count.
    """

    def __init__(self, name: str, config: dict[str, Any], root: str | Path | None = None) -> None:
        self.name, self.config = name, config
        self.root = self.locate(root)
        self.config = resolved(config, self.root)
        self.background: int | None = config.get("background")
        self.ignore_index: int = config.get("ignore_index", 255)
        self.unseen: tuple[int, ...] = tuple(config.get("unseen", ()))
        self._users_mmseg = "mmseg" in config and name not in config_names("dataset")
        if self._users_mmseg:
            _ = self.mmseg  # fails early if the class named in a user's file does not fit

    def locate(self, root: str | Path | None) -> Path:
        """The folder that holds images and labels."""
        return find_folder(self.name, self.config, root)

    @property
    def tree(self) -> str:
        """The expected files, for error messages."""
        return tree(self.name, self.config | {"folders": ["."]}, self.root)

    @cached_property
    def mmseg(self) -> Any:
        """The data set object of mmseg."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return mmseg_class(self.config["mmseg"])(
                ann_file=self.config.get("ids", ""),
                data_root=str(self.root),
                data_prefix={"img_path": self.config["images"], "seg_map_path": self.config["labels"]},
                img_suffix=self.config["image_suffix"],
                seg_map_suffix=self.config["label_suffix"],
                reduce_zero_label=self.config.get("reduce_zero_label", False),
                pipeline=[],
                test_mode=True,
                serialize_data=False,
                lazy_init=True,  # the ids are read here: mmseg supports only one list format
                metainfo={key: self.config[key] for key in ("classes", "palette") if key in self.config},
            )

    @cached_property
    def classes(self) -> tuple[str, ...]:
        names = self.mmseg.metainfo["classes"] if "mmseg" in self.config else self.config["classes"]
        return tuple(name.strip() for name in names)

    @cached_property
    def palette(self) -> list[list[int]]:
        """One colour per class; random, as in mmseg, if the configuration has none."""
        if "mmseg" in self.config:
            return [list(colour) for colour in self.mmseg.metainfo["palette"]]
        return self.config.get("palette") or np.random.RandomState(42).randint(0, 255, (len(self.classes), 3)).tolist()

    @cached_property
    def label_map(self) -> dict[int, int] | None:
        """Stored value -> class, if only some classes of the mmseg data set are used."""
        return self.mmseg.label_map if "mmseg" in self.config else None

    @cached_property
    def listed(self) -> list[Sample]:
        """All images in mmseg's order, including those with missing files. Raises OvssError for ids that point outside the
        image folder."""
        images, labels = (self.root / on_disk(self.config[kind]) for kind in ("images", "labels"))
        image_suffix, label_suffix = self.config["image_suffix"], self.config["label_suffix"]
        # An mmseg class named in a user's file may override how images are listed.
        if self._users_mmseg and type(self.mmseg).load_data_list is not mmseg_class("BaseSegDataset").load_data_list:
            self.mmseg.full_init()
            pairs = [(Path(info["img_path"]), Path(info["seg_map_path"])) for info in self.mmseg.data_list]
            names = [inside(os.path.relpath(image, images)).removesuffix(image_suffix) for image, _ in pairs]
            return [Sample(name, *pair) for name, pair in zip(names, pairs, strict=True)]
        return [
            Sample(name, images / on_disk(name + image_suffix), labels / on_disk(name + label_suffix), line)
            for line, name in self._listed_ids()
        ]

    def _listed_ids(self) -> Sequence[tuple[int | None, str]]:
        """(line, id) of each list entry; without a list, (None, id) of all images at any depth, as in mmseg's
        BaseSegDataset."""
        ids, images, suffix = self.config.get("ids"), self.root / on_disk(self.config["images"]), self.config["image_suffix"]
        if ids and not (self.root / ids).is_dir():
            return read_ids(self.root, self.config)

        def unreadable(error: OSError) -> None:
            raise OvssError(f"folder {error.filename} cannot be read: {error.strerror}. Change its permissions.")

        images_below = [
            as_text((Path(folder) / name).relative_to(images).as_posix())
            for folder, _, names in os.walk(images, onerror=unreadable, followlinks=True)
            for name in names
            if name.endswith(on_disk(suffix))
        ]
        return [(None, name.removesuffix(suffix)) for name in sorted(images_below) if not is_clutter(name)]

    @cached_property
    def samples(self) -> list[Sample]:
        """All images in mmseg's order. Raises MissingData if there are none or a file is missing, and OvssError if an image is
        listed twice."""
        samples = self.listed
        if not samples:
            raise MissingData(f"data set '{self.name}' lists no images. Expected:\n{self.tree}")
        twice, absent = list(repeated(samples)), list(missing(samples))
        if twice:
            raise OvssError(
                f"data set '{self.name}' lists {len(twice)} images more than once, so they would count several times: "
                f"{'; '.join(twice[:5])}. List every image once."
            )
        if absent:
            first = "\n".join(f"  {path}" for path in absent[:5])
            raise MissingData(
                f"data set '{self.name}' lacks {len(absent)} of its files, the first:\n{first}\nExpected:\n{self.tree}"
            )
        return samples

    @property
    def expected_images(self) -> int | None:
        """The number of images in a complete copy, None if unknown. If several numbers are in use, this is the number of listed
        images if it is one of them, else the papers' number."""
        return expected.number(self.config, len(self.listed))

    @property
    def doubts(self) -> list[str]:
        """Reasons why this may not be the split that papers report on: a different number of images, ids of another split."""
        return expected.doubts(self.config, [sample.id for sample in self.listed])

    def select(self, limit: int | None = None, ids: str | Iterable[str] | None = None) -> list[Sample]:
        """The samples with the given ids (with or without the image suffix), or `limit` evenly spaced samples, or all."""
        if ids is not None:
            known = {sample.id: sample for sample in self.samples}
            selected = []
            for name in [ids] if isinstance(ids, str) else [getattr(each, "id", str(each)) for each in ids]:
                short = name.removesuffix(self.config["image_suffix"])
                if name not in known and short not in known:
                    raise unknown(f"image id in {self.name}", name, known)
                selected.append(known.get(name) or known[short])
            twice = [sample.id for sample, count in Counter(selected).items() if count > 1]
            if twice:
                raise OvssError(f"ids: {', '.join(twice[:5])} is named twice. Name each image once.")
            if not selected:
                raise OvssError("ids is an empty list. Name the images to evaluate, or leave it out.")
            return selected
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | np.integer) or limit < 1):
            raise OvssError(f"limit={limit!r}: expected the number of images to evaluate, 1 or more.")
        if limit is None or limit >= len(self.samples):
            return self.samples
        return [self.samples[int(i)] for i in np.linspace(0, len(self.samples) - 1, limit).round()]

    def __len__(self) -> int:
        return len(self.samples)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __getitem__(self, key: int | str | slice) -> Sample | list[Sample]:
        """The sample at an index or with an id, or the samples of a slice."""
        if isinstance(key, str):
            return self.select(ids=[key])[0]
        if not isinstance(key, int | np.integer | slice) or isinstance(key, bool):
            raise OvssError(f"{self.name}[{key!r}]: expected an index, an image id or a slice.")
        try:
            return self.samples[key]
        except IndexError as error:
            raise OutOfRange(f"{self.name}[{key}]: there are {len(self)} images, numbered from 0.") from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}: {len(self.listed)} images, {len(self.classes)} classes, in {self.root})"

    def image(self, sample: Sample) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return read_image(sample.image_path)

    def size(self, sample: Sample) -> tuple[int, int]:
        """(height, width) of the image, read from the file header where possible."""
        if type(self).image is SegDataset.image:
            with (
                suppress(OSError, SyntaxError, ValueError, Image.DecompressionBombError),
                Image.open(sample.image_path) as picture,
            ):
                if picture.getexif().get(EXIF_ORIENTATION, 1) == 1:
                    return picture.height, picture.width
        height, width = self.image(sample).shape[:2]
        return height, width

    def raw_label(self, sample: Sample) -> np.ndarray:
        """(H, W) int32 as stored. Raises OvssError if the map is unreadable or contains fractions."""
        try:
            stored = np.array(Image.open(sample.label_path))
        except Exception as error:  # Pillow raises nearly anything for damaged files
            reason = str(error) or type(error).__name__
            raise OvssError(f"label map {sample.label_path} cannot be read: {reason}. Copy or convert it again.") from error
        if stored.dtype.kind == "f" and not np.array_equal(stored, np.trunc(stored)):
            raise OvssError(f"label map {sample.label_path} holds fractions, expected class numbers. Convert it again.")
        return stored.astype(np.int32)

    def label(self, sample: Sample, size: tuple[int, int] | None = None) -> np.ndarray:
        """(H, W) class indices. `size` is the (H, W) of the image, if known. Raises OvssError if the map is unreadable, has
        several channels, differs in size, or contains values that belong to no class."""
        label = self.raw_label(sample)
        if label.ndim != 2:
            raise OvssError(
                f"label map {sample.label_path} has {label.shape[-1]} channels, expected one channel of class numbers. "
                "Convert RGB labels to class numbers."
            )
        if size not in (None, label.shape):
            raise OvssError(
                f"label map {sample.label_path} is {label.shape[0]} x {label.shape[1]} pixels (height x width), but its image "
                f"is {size[0]} x {size[1]}. Labels must have the original size of the image."
            )
        label = self.class_indices(label)
        wrong = label[((label < 0) | (label >= len(self.classes))) & (label != self.ignore_index)]
        if len(wrong):
            raise OvssError(
                f"label map {sample.label_path} holds the values {np.unique(wrong)[:8].tolist()}, but {self.name} has classes "
                f"0 to {len(self.classes) - 1} and {self.ignore_index} for ignored pixels. Is it the right data set, and was "
                "it converted correctly?"
            )
        return label

    def scored(self, label: np.ndarray, size: tuple[int, int], resize: str, min_foreground: int) -> np.ndarray | None:
        """The label, resized by a recipe's rule to the `size` (H, W) of a result. None if the image does not count because
        fewer than `min_foreground` pixels of the label (CLIP-DIY on COCO) or of its centre crop (CLIPtrase) are foreground."""
        scored = resize_target(label, resize, size)
        if min_foreground:
            seen = scored if resize == "center_crop" else label
            if np.count_nonzero((seen != self.ignore_index) & (seen != self.background)) < min_foreground:
                return None
        return scored

    def class_indices(self, label: np.ndarray) -> np.ndarray:
        """Stored values -> class indices by mmseg's rules, but not in 8 bits as in mmseg, where larger values wrap around."""
        if self.config.get("reduce_zero_label"):
            label = np.where((label == 0) | (label == self.ignore_index), self.ignore_index, label - 1)
        if self.label_map:
            raw, label = label, label.copy()
            for old, new in self.label_map.items():
                label[raw == old] = new
        return label

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the name, classes, rules, ids, image file sizes and label file contents. Recompressed images
        (`prepare ... images=mess`) differ from the official files in size, and therefore in fingerprint."""
        rules = self.facts, bool(self.config.get("reduce_zero_label")), sorted((self.label_map or {}).items())
        parts: list[str | bytes] = [self.name, *self.classes, repr(rules)]
        for sample in self.samples:
            try:
                parts += [sample.id, str(sample.image_path.stat().st_size), sample.label_path.read_bytes()]
            except OSError as error:
                path = error.filename or sample.label_path
                text = f"{path} cannot be read: {error.strerror}. Copy it again, or change its permissions."
                raise OvssError(text) from error
        return digest(*parts)

    @property
    def facts(self) -> DatasetFacts:
        """What the metrics need to know about the data set."""
        return facts(self.config)

    @cached_property
    def images_digest(self) -> str:
        """Equal for data sets with the same images (such as voc21 and voc20), which can be evaluated in one pass."""
        return digest(*(as_text(str(sample.image_path)) for sample in self.samples))

    def vocabulary(self, names: str | None = DEFAULT, templates: str = DEFAULT) -> Vocabulary:
        """The data set's classes, with the names of a variant (configs/names/<data set>) or a names file, or, for None, the
        data set's names. The defaults are those of configs/recipe.yaml for this data set."""
        common = load_config(".", "recipe")
        values = common["recipe"] | common["per_dataset"].get(self.name, {})
        names = values["names"] if names == DEFAULT else names
        templates = values["templates"] if templates == DEFAULT else templates
        entries, distractors = self.config.get("synonyms") or list(self.classes), []
        if names is not None:
            entries, distractors = read_names(names_path(self.config.get("names_of", self.name), names))
        vocabulary = Vocabulary.from_names(
            entries, background=self.background, templates=templates, distractors=distractors, classes=self.classes
        )
        return replace(vocabulary, unseen=self.facts.unseen)


def load_dataset(name: str | Path, root: str | Path | None = None) -> SegDataset:
    """Loads a data set by its name in configs/dataset, or from a user's YAML file, whose data may be next to the file or in the
    data root `root` (see `layout.data_root`)."""
    name, config, folder = dataset_config(name)
    loader = DATASETS.get(config.get("loader", "mmseg"))
    if folder is None:
        return loader(name, config, root)
    errors = []
    try:
        with plugin_errors(f"loader of data set '{name}'", loader):
            for place in (folder, root):
                try:
                    return loader(name, config, place)
                except MissingData as error:
                    errors.append(error)
        raise errors[1 if root or environment("OVSS_DATA") else 0]  # about the data root only if the user chose one
    except OvssError:
        raise
    except Exception as error:  # mmseg raises many kinds of exceptions for invalid values
        raise OvssError(f"data set file {folder / name}.yaml cannot be used: {type(error).__name__}: {error}") from error
