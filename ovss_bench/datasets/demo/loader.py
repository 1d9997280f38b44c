"""The embedded demo: scenes drawn once from a seed and stored in the cache as PNG files."""

from __future__ import annotations

import inspect
import shutil
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...config.registry import DATASETS
from ...files import cache_dir, cannot_write, digest, make_folder
from ..base import SegDataset
from . import scenes
from .scenes import DEMO_CLOTHS, GROUNDS, draw_scene, void_border

CONTENT = "content.sha256"  # file with the digest of the scenes
SHADES = [np.array(list(scenes.COLOURS.values())[c.colour]) * (0.55 + 0.09 * c.pattern) + 12 * c.pattern for c in DEMO_CLOTHS]
PALETTE = [[128, 128, 128], *np.clip(SHADES, 0, 255).astype(int).tolist()]


@DATASETS.register_module(name="demo")
class DemoDataset(SegDataset):
    """`scenes` drawn scenes with several cloths each; with `every: N`, only every N-th of them. Class 0 is the ground, 1 to 36
    are the cloths, and 255 marks their outlines."""

    def __init__(self, name: str, config: dict[str, Any], root: str | Path | None = None) -> None:
        layout = {"folders": ["."], "images": "images", "labels": "labels", "image_suffix": ".png", "label_suffix": ".png"}
        facts = {
            "classes": ["background", *(cloth.name for cloth in DEMO_CLOTHS)],
            "palette": PALETTE,
            "background": 0,
            "expected_images": len(range(0, config["scenes"], config.get("every", 1))),
            "unseen": [i for i, cloth in enumerate(DEMO_CLOTHS, 1) if not cloth.seen],
        }
        super().__init__(name, config | layout | facts, root)

    def locate(self, root: str | Path | None) -> Path:
        """The folder in the cache; `root` is ignored. Scenes are redrawn when the code that draws them changes."""
        drawn = self.config["seed"], self.config["scenes"], self.config.get("every", 1)
        code = (scenes, draw_demo, scenes_digest)
        key = digest(*map(inspect.getsource, code), repr(drawn))
        folder = cache_dir() / "scenes" / f"{self.name}-{key[:12]}"
        if folder.is_dir() and not _whole(folder):
            warnings.warn(f"the scenes in {folder} are damaged and are drawn again.", stacklevel=2)
            with suppress(OSError):  # another process was faster
                shutil.rmtree(folder.rename(tempfile.mkdtemp(dir=folder.parent)))
        if folder.is_dir():
            return folder
        try:
            temporary = Path(tempfile.mkdtemp(dir=make_folder(folder.parent)))
            draw_demo(temporary, *drawn)
            (temporary / CONTENT).write_text(scenes_digest(temporary), encoding="utf-8")
        except OSError as error:
            raise cannot_write(folder, error) from error
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(temporary)
        return folder


def scenes_digest(folder: Path) -> str:
    """SHA-256 of the names and bytes of all images and labels."""
    files = sorted(folder.glob("*/*"))
    return digest(*(part for file in files for part in (file.relative_to(folder).as_posix(), file.read_bytes())))


def _whole(folder: Path) -> bool:
    """Whether the scenes are unchanged since they were drawn."""
    try:
        return (folder / CONTENT).read_text("utf-8") == scenes_digest(folder)
    except (OSError, ValueError):
        return False


def draw_demo(folder: Path, seed: int, count: int, every: int = 1) -> None:
    """Draws `count` scenes and writes one in `every` into images/ and labels/ (palette PNG). All cloths occur about equally
    often."""
    rng = np.random.RandomState(seed)
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    deck: list[int] = []
    for number in range(count):
        height, width = 8 * rng.randint(15, 21), 8 * rng.randint(21, 27)
        chosen = []
        for _ in range(rng.randint(3, 6)):
            deck = deck or rng.permutation(len(DEMO_CLOTHS)).tolist()
            chosen.append(deck.pop())
        image, index = draw_scene(rng, height, width, [DEMO_CLOTHS[i] for i in chosen], rng.randint(len(GROUNDS)))
        if number % every:
            continue
        label = np.array([0, *(i + 1 for i in chosen)], np.uint8)[index]
        label[void_border(index)] = 255
        Image.fromarray(image).save(folder / "images" / f"scene_{number:03d}.png")
        palette_image = Image.fromarray(label, "P")
        palette_image.putpalette([v for colour in PALETTE for v in colour] + [0] * 3 * (255 - len(PALETTE)) + [255] * 3)
        palette_image.save(folder / "labels" / f"scene_{number:03d}.png")
