"""Label maps as pictures: palettes, overlays, legends."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MIN_HEIGHT = 320


def palette(count: int) -> np.ndarray:
    """(count, 3) uint8 RGB; consecutive colours have clearly different hues."""
    colours = [colorsys.hsv_to_rgb(i * 0.618034 % 1, (0.85, 0.55)[i % 2], (0.95, 0.75)[i // 2 % 2]) for i in range(count)]
    return np.round(255 * np.array(colours)).astype(np.uint8)


def palette_image(label_map: np.ndarray, colours: np.ndarray) -> Image.Image:
    """(H, W) -> a palette image for up to 256 classes, otherwise a 16-bit greyscale image."""
    if len(colours) > 256:
        return Image.fromarray(label_map.astype(np.uint16))
    image = Image.fromarray(label_map.astype(np.uint8), "P")
    image.putpalette(colours.tobytes())
    return image


def overlaid(image: np.ndarray, label_map: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the colours of a label map (H, W) blended over an image of the same size."""
    return np.round(0.4 * image + 0.6 * colours[label_map]).astype(np.uint8)


def legend_picture(image: np.ndarray, label_map: np.ndarray, names: Sequence[str], colours: np.ndarray) -> Image.Image:
    """The image, an overlay of its label map, and a legend of the classes with their share of pixels, largest first.
    `image` (H, W, 3) uint8 RGB, `label_map` (H, W), `colours` (C, 3) uint8. Small images are enlarged."""
    scale = max(1, -(-MIN_HEIGHT // image.shape[0]))
    image, label_map = (np.repeat(np.repeat(array, scale, 0), scale, 1) for array in (image, label_map))
    height, width = label_map.shape
    share = np.bincount(label_map.ravel(), minlength=len(names)) / label_map.size
    order = [int(c) for c in np.argsort(-share, kind="stable") if share[c] > 0]
    lines = [f"{names[c]}  {100 * share[c]:.1f} %" for c in order]
    size, gap, row = 16, 10, 26
    font = ImageFont.load_default(size)
    text_width = max(int(font.getlength(line)) for line in lines)
    extent = 2 * width + 4 * gap + row + text_width, max(height, row * len(lines)) + 2 * gap
    canvas = Image.new("RGB", extent, "white")
    canvas.paste(Image.fromarray(image), (gap, gap))
    canvas.paste(Image.fromarray(overlaid(image, label_map, colours)), (width + 2 * gap, gap))
    draw = ImageDraw.Draw(canvas)
    for i, (c, line) in enumerate(zip(order, lines, strict=True)):
        x, y = 2 * width + 3 * gap, gap + i * row
        draw.rectangle((x, y, x + size, y + size), fill=tuple(colours[c].tolist()), outline="black")
        draw.text((x + row, y - 2), line, fill="black", font=font)
    return canvas
