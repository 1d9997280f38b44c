"""The images of the HTML page: their selection, and thumbnails of input, ground truth, prediction and error."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..datasets.base import Sample, SegDataset
from ..errors import OvssError, reading
from ..evaluation.confusion import confusion
from ..evaluation.metrics import divide
from ..evaluation.per_image import image_areas
from ..figures import palette
from ..files import digest
from ..image import resize_target

NO_CLASS, IGNORED = (20, 20, 20), (245, 245, 245)
# Colours of error maps; they differ in lightness too.
ERROR = {"right": (214, 226, 240), "wrong": (200, 55, 35), "unlabelled": (140, 150, 160)}
CLASSES_NAMED = 8  # below a picture


def image_ious(counts: Mapping[str, np.ndarray], classes: int) -> dict[str, float]:
    """The mean IoU of each image in percent, over the classes in its ground truth. Images without scored pixels are omitted."""
    found = {}
    for image, records in counts.items():
        correct, predicted, true = image_areas(records, classes)
        present = true > 0
        if present.any():
            found[image] = 100 * float(divide(correct, predicted + true - correct)[present].mean())
    return found


def choose(ious: Mapping[str, float], number: int, seed: str) -> dict[str, list[str]]:
    """Chooses `number` images: a third each of the best, the worst (worst first) and, depending on `seed`, random others."""
    ranked = sorted(ious, key=lambda image: (-ious[image], image))
    best, rest = ranked[: (number + 2) // 3], ranked[(number + 2) // 3 :]
    split = max(0, len(rest) - (number + 1) // 3)
    left = sorted(rest[:split], key=lambda image: digest(seed, image))
    return {"best": best, "worst": rest[split:][::-1], "random": left[: number // 3]}


def side_for(pictures: int) -> int:
    """The longer side of a thumbnail that keeps a page with this many images below about 15 MB."""
    return int(np.clip(256 * (400 / max(pictures, 1)) ** 0.5, 112, 256))


class Pictures:
    """Draws the thumbnails of the runs on one data set; their longer side has at most `side` pixels."""

    def __init__(self, dataset: SegDataset, side: int) -> None:
        self.dataset, self.side = dataset, side
        self.samples: dict[str, Sample] = {sample.id: sample for sample in dataset.listed}
        classes = len(dataset.classes)
        colours = np.array(dataset.palette, np.uint8).reshape(-1, 3)
        if len(np.unique(colours, axis=0)) != classes:  # it has none, or repeats colours
            colours = palette(classes)
        self.colours = np.concatenate([colours, np.array([NO_CLASS, IGNORED], np.uint8)])
        self._inputs: dict[tuple, str] = {}

    def of(self, image: str, map_path: Path, recipe: Mapping[str, Any], records: np.ndarray) -> dict[str, Any]:
        """Thumbnails of one image as data URIs, and its largest classes with their IoU.

        `recipe`: values by name. `records`: the run's counts of the image. Raises OvssError if image, ground truth or label map
        cannot be read, or have changed since the run.
        """
        if image not in self.samples:
            raise OvssError(f"{self.dataset.name} has no image {image}.")
        sample, classes = self.samples[image], len(self.dataset.classes)
        with reading(f"label map {map_path}", "Delete it and run again with runtime.maps=true."):
            label_map = np.array(Image.open(map_path)).astype(np.int32)
        if label_map.ndim != 2 or not 0 <= label_map.min() <= label_map.max() <= classes:
            raise OvssError(f"{map_path} is not a label map of {self.dataset.name}.")
        original, label = self.dataset.image(sample), self.dataset.label(sample)
        target = self.dataset.scored(label, label_map.shape, recipe["resize"], recipe["min_foreground"])
        if target is None:
            target = np.full(label_map.shape, self.dataset.ignore_index)
        elif not np.array_equal(confusion(target, label_map, classes, self.dataset.ignore_index), records):
            raise OvssError(f"image {image} of {self.dataset.name}, its ground truth or its label map changed since the run.")
        ignored = target == self.dataset.ignore_index
        error = np.where(ignored, 2, target != label_map)
        key = image, label_map.shape, recipe["resize"]
        if key not in self._inputs:
            self._inputs[key] = self._input(original, recipe, label_map.shape)
        return {
            "input": self._inputs[key],
            "target": self._map(np.where(ignored, classes + 1, target), self.colours),
            "prediction": self._map(label_map, self.colours),
            "error": self._map(error, np.array(list(ERROR.values()), np.uint8)),
            "classes": _classes(records, classes),
        }

    def _input(self, image: np.ndarray, recipe: Mapping[str, Any], size: tuple[int, ...]) -> str:
        """The scored part of the image, as JPEG."""
        picture = Image.fromarray(image)
        if recipe["resize"] == "center_crop":
            channels = [resize_target(channel, recipe["resize"], size) for channel in np.moveaxis(image, -1, 0)]
            picture = Image.fromarray(np.stack(channels, -1).astype(np.uint8))
        buffer = io.BytesIO()
        picture.resize(self._small(*size), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=70, optimize=True)
        return _uri("jpeg", buffer)

    def _map(self, label_map: np.ndarray, colours: np.ndarray) -> str:
        """A PNG with a palette of the colours that occur, or in RGB if there are more than 256."""
        picture = Image.fromarray(label_map.astype(np.int32)).resize(self._small(*label_map.shape), Image.Resampling.NEAREST)
        present, indices = np.unique(np.array(picture), return_inverse=True)
        if len(present) <= 256:
            small = Image.fromarray(indices.reshape(picture.height, picture.width).astype(np.uint8), "P")
            small.putpalette(colours[present].tobytes())
        else:
            small = Image.fromarray(colours[np.array(picture)])
        buffer = io.BytesIO()
        small.save(buffer, "PNG", optimize=True)
        return _uri("png", buffer)

    def _small(self, height: int, width: int) -> tuple[int, int]:
        """(width, height), never enlarged."""
        scale = min(1.0, self.side / max(height, width))
        return max(1, round(scale * width)), max(1, round(scale * height))


def _classes(records: np.ndarray, classes: int) -> list[list[Any]]:
    """[class, IoU in percent] of the largest classes in ground truth and prediction."""
    correct, predicted, true = image_areas(records, classes)
    union = predicted + true - correct
    largest = np.argsort(-union, kind="stable")[:CLASSES_NAMED]
    return [[int(c), round(100 * correct[c] / union[c], 1)] for c in largest if union[c]]


def _uri(kind: str, buffer: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
