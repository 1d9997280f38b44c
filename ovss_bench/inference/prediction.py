"""Prediction: the result for one image."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..figures import legend_picture, overlaid, palette
from ..image import as_image

SHOWN = 8  # classes in the repr


@dataclass(repr=False)
class Prediction:
    """`label_map` (H, W) int64: indices into `classes`, or len(classes) for "no class"; `scores` (P, h, w) float32, optional:
    the planes that the decision is based on, for most methods one per class; `image_size` (height, width) of the image."""

    label_map: Tensor
    image_size: tuple[int, int]
    scores: Tensor | None = None
    classes: tuple[str, ...] = ()

    @property
    def shares(self) -> dict[str, float]:
        """The share of pixels of each class in the label map, the largest first."""
        counts = np.bincount(self._labels.ravel())
        return {self._names[c]: float(counts[c] / counts.sum()) for c in np.argsort(-counts, kind="stable") if counts[c]}

    def overlay(self, image: Any, *, legend: bool = False) -> np.ndarray:
        """The label map's colours over the image, (H, W, 3) uint8 RGB at the size of the label map. The image may be anything
        that `ob.segment` accepts. With `legend`: the image, the overlay and the class names side by side."""
        labels, colours = self._labels, palette(len(self._names))
        image = as_image(image)
        if image.shape[:2] != labels.shape:
            image = np.array(Image.fromarray(image).resize(labels.shape[::-1], Image.Resampling.BILINEAR))
        if legend:
            return np.array(legend_picture(image, labels, self._names, colours))
        return overlaid(image, labels, colours)

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        shares = [f"{100 * share:.0f} % {name}" for name, share in self.shares.items()]
        more = [f"{len(shares) - SHOWN} more"] if len(shares) > SHOWN else []
        return f"Prediction({height} x {width} pixels: {', '.join(shares[:SHOWN] + more)})"

    def _repr_html_(self) -> str:
        """For notebooks: the label map in colours, and the share of each class."""
        colours = palette(len(self._names))
        buffer = io.BytesIO()
        Image.fromarray(colours[self._labels]).save(buffer, "PNG")
        rows = "".join(
            f"<tr><td style='background:#{colours[self._names.index(name)].tobytes().hex()};width:1em'></td>"
            f"<td>{escape(name)}</td><td>{100 * share:.1f} %</td></tr>"
            for name, share in self.shares.items()
        )
        picture = base64.b64encode(buffer.getvalue()).decode()
        return f"<img alt='label map' style='max-width:512px' src='data:image/png;base64,{picture}'><table>{rows}</table>"

    @property
    def _labels(self) -> np.ndarray:
        return self.label_map.numpy(force=True)

    @property
    def _names(self) -> list[str]:
        """The names of all labels, "no class" last."""
        named = max(len(self.classes), int(self.label_map.max()))
        return [*self.classes, *(f"class {c}" for c in range(len(self.classes), named)), "no class"]
