"""Region maps, for `regions=`: superpixels of scikit-image, masks of SAM and SAM 2, and precomputed maps in files.

Sources map an image (H, W, 3) uint8 RGB to (H, W) int32: regions count from 1, 0 marks pixels in no region. Maps from files are
not changed: methods take the smallest value as "no region", which is -1 in some of CorrCLIP's files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import numpy as np
import torch
from PIL import Image

from ..config.validation import Count, Number, validate_all
from ..errors import OvssError, unknown
from ..files import (
    DAMAGES,
    below,
    config_names,
    digest,
    load_config,
    read_array,
    read_json,
    user_path,
    weights_folders,
    write_atomic,
    write_text,
)
from ..image import image_key
from ..torch_defaults import ordinary_torch
from .masks import Sam, Sam2

INDEX = "regions.json"
SUFFIXES = (".npz", ".png")
# Keys of configs/regions other than the settings that identify a generator.
NO_SETTINGS = ("weights", "precision", "points_per_batch", "kind", "source", "stand_in", "unconfirmed", "training")


@dataclass(eq=False)
class Superpixels:
    """Superpixels of scikit-image, determined by their settings."""

    kind: ClassVar[str]
    stand_in = False

    @property
    def settings(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def digest(self) -> str:
        return digest(self.kind, json.dumps(self.settings, sort_keys=True))


@dataclass(eq=False)
class Felzenszwalb(Superpixels):
    """Felzenszwalb and Huttenlocher, Efficient Graph-Based Image Segmentation, IJCV 2004. `scale`: larger values
    give larger regions; `sigma`: of the preceding Gaussian blur; `min_size`: pixels of the smallest region."""

    kind: ClassVar[str] = "felzenszwalb"
    scale: Number
    sigma: Number
    min_size: Count

    def __call__(self, image: np.ndarray) -> np.ndarray:
        from skimage.segmentation import felzenszwalb

        return felzenszwalb(image, self.scale, self.sigma, self.min_size).astype(np.int32) + 1


@dataclass(eq=False)
class Slic(Superpixels):
    """SLIC (Achanta et al., TPAMI 2012): about `n_segments`, squarer for larger `compactness`; `sigma`: of a Gaussian blur."""

    kind: ClassVar[str] = "slic"
    n_segments: Count
    compactness: Number
    sigma: Number

    def __call__(self, image: np.ndarray) -> np.ndarray:
        from skimage.segmentation import slic

        return slic(image, self.n_segments, self.compactness, sigma=self.sigma, start_label=1).astype(np.int32)


KINDS = {kind.kind: kind for kind in (Felzenszwalb, Slic, Sam, Sam2)}


@ordinary_torch()
def load_regions(
    name: str | Path, *, device: str | torch.device = "cpu", **settings: Any
) -> Felzenszwalb | Slic | Sam | Sam2 | RegionFolder:
    """A source of regions: an entry of configs/regions (`felzenszwalb`, `sam2_8`, ...), with settings that keywords override,
    or a folder of region maps with the index that tools/regions.py makes.

    It maps an image (H, W, 3) uint8 RGB to (H, W) int32; `digest` is SHA-256 over its kind, settings and weights, `stand_in`
    marks the demo's substitute for a better one. For an entry whose generator no library provides, maps come from the indexed
    folders below OVSS_WEIGHTS. Raises OvssError for unknown names and settings, bad values, missing weights or maps, or a
    folder without an index.
    """
    found = find_regions(name)
    if isinstance(found, RegionFolder):
        if settings:
            raise OvssError(f"the regions '{name}' come in files and have no settings: leave {', '.join(settings)} out.")
        return found
    config = found | {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    kind = KINDS[config["kind"]]
    given = {key: value for key, value in config.items() if key not in ("kind", "stand_in", "unconfirmed", "training")}
    hints = get_type_hints(kind, include_extras=True)
    known = {field.name: hints[field.name] for field in fields(kind) if field.name != "device"}
    values = validate_all(given, known, "setting", lambda _: f"regions '{name}'")
    source = kind(**values, device=device) if issubclass(kind, Sam) else kind(**values)
    source.stand_in = bool(config.get("stand_in"))
    return source


def find_regions(name: str | Path) -> dict[str, Any] | RegionFolder:
    """The entry of a generator in configs/regions, or the maps of an entry without one or of a folder. Raises OvssError for an
    unknown name, or for maps that are missing or have no index."""
    if str(name) in config_names("regions"):
        config = load_config("regions", str(name))
        return _published_maps(str(name), config["source"]) if config["kind"] == "files" else config
    folder = user_path(name)
    if folder.is_dir():
        return RegionFolder(folder)
    if os.sep in str(name):
        raise OvssError(f"regions={name}: the folder does not exist. Give a folder of region maps with an index.")
    raise unknown("regions (neither an entry of configs/regions nor a folder)", name, config_names("regions"))


def _published_maps(name: str, source: str) -> RegionFolder:
    """All maps of a generator that no library provides: the indexed folders below OVSS_WEIGHTS/<name>."""
    folders = [index.parent for folder in weights_folders() for index in sorted((folder / name).rglob(INDEX))]
    if not folders:
        raise OvssError(
            f"regions '{name}' come in files ({source}): unpack them into the folder {name} below the one given by the "
            "environment variable OVSS_WEIGHTS, and index those of each data set (python tools/regions.py index FOLDER "
            f"dataset=NAME regions={name}). Or unpack and index them elsewhere and give the folder: regions=FOLDER."
        )
    maps = RegionFolder(*folders)
    if maps.generator != name:
        what = f"the maps in {', '.join(map(str, folders))} are not all indexed as those of {name}"
        raise OvssError(f"{what}: python tools/regions.py index FOLDER dataset=NAME regions={name}")
    return maps


class RegionFolder:
    """Precomputed region maps, looked up by the content of the image; `digest` is that of their generator, or of the files.

    `generator` is the entry of configs/regions that made them, by the index and its settings; None if it is not stated or its
    settings differ. `unconfirmed` is that entry's note on unpublished settings, only for maps that this project made: others
    have the settings of their publisher.
    """

    def __init__(self, *folders: str | Path) -> None:
        self.folder = Path(os.path.commonpath(folders))
        self.files, self.contents, each = {}, {}, []
        for folder in folders:
            index, inner = read_index(Path(folder)), os.path.relpath(folder, self.folder)
            if index is None:
                raise OvssError(
                    f"folder {folder} has no {INDEX}, which records how its regions were made. Make regions with: python "
                    f"tools/regions.py dataset=NAME regions=NAME out=DIR; or index existing region files with: python "
                    f"tools/regions.py index {folder} dataset=NAME regions=GENERATOR"
                )
            each.append(index)
            self.files |= {key: os.path.normpath(f"{inner}/{file}") for key, file in index["images"].items()}
            self.contents |= {os.path.normpath(f"{inner}/{file}"): text for file, text in index["contents"].items()}
        digests = sorted({index["digest"] for index in each})
        self.digest = digests[0] if len(digests) == 1 else digest("folders", *digests)
        self.stand_in = any(index["stand_in"] for index in each)
        generators = {_generator(index) for index in each}
        self.generator = generators.pop() if len(generators) == 1 else None
        made = any(index["regions"] for index in each)
        self.unconfirmed = load_config("regions", self.generator).get("unconfirmed") if self.generator and made else None
        self.settings, self.again = {"folder": self.digest}, each[0]["command"]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        file = self.files.get(image_key(image))
        if file is None:
            what = f"this image of {image.shape[0]} x {image.shape[1]} pixels (height x width)"
            raise OvssError(f"folder {self.folder} has no regions for {what}. Make them with: {self.again}")
        return read_regions(below(self.folder, file), image.shape[:2], self.contents.get(file))


def map_digest(regions: np.ndarray) -> str:
    """SHA-256 of a map (H, W), independent of the file format."""
    return digest(repr(regions.shape), regions.astype(np.int32).tobytes())


def _generator(index: Mapping[str, Any]) -> str | None:
    """The entry of configs/regions that generated the maps of an index, None if unknown."""
    made_by = index["regions"]
    if made_by is None:
        return index["generator"]
    if made_by not in config_names("regions"):
        return None
    entry = load_config("regions", made_by)
    same = all(index["settings"].get(name) == entry[name] for name in entry if name not in NO_SETTINGS)
    return made_by if same else None


def read_index(folder: Path) -> dict[str, Any] | None:
    """{digest, regions, generator, settings, stand_in, command, images: {key of the image: file}, contents: {file:
    `map_digest`}}; None without an index. `regions` is the entry of configs/regions with which this project made the maps,
    `generator` the one stated for maps from elsewhere; both may be None. Earlier versions had no `generator` and `contents`."""
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        index = {"contents": {}, "generator": None} | read_json(path)
        kinds = {"digest": str, "regions": str | None, "generator": str | None}
        kinds |= {"settings": dict, "stand_in": bool, "command": str}
        index = {key: index[key] for key in (*kinds, "images", "contents")}
        wrong = [key for key, kind in kinds.items() if not isinstance(index[key], kind)]
        wrong += [key for key in ("images", "contents") if not all(isinstance(file, str) for file in index[key].values())]
        if wrong:
            raise ValueError(f"{wrong[0]} is {str(index[wrong[0]])[:60]}")
        return index
    except (*DAMAGES, AttributeError, RecursionError) as error:
        command = f"python tools/regions.py index {folder} dataset=NAME"
        raise OvssError(f"{path} is damaged: {error}. Make it again: {command}") from error


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    images = sorted(dict(index["images"]).items(), key=lambda item: item[1])  # a copy: threads may add to it
    text = json.dumps({**index, "images": dict(images), "contents": dict(index["contents"])}, indent=1)
    write_text(folder / INDEX, text + "\n")


def write_regions(path: Path, regions: np.ndarray) -> None:
    """Writes integers (H, W) in the format of CorrCLIP's npz files, compressed, in the smallest type that holds them."""
    low, high = int(regions.min()), int(regions.max())
    small = next(t for t in (np.uint8, np.uint16, np.int32, np.int64) if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
    write_atomic(path, lambda temporary: np.savez_compressed(temporary, instance_mask=regions.astype(small)))


def read_regions(path: Path, size: tuple[int, int] | None = None, content: str | None = None) -> np.ndarray:
    """(H, W) int32 from `instance_mask` in an npz file or from a PNG of 8 or 16 bits, values unchanged.

    Raises OvssError if the file is missing or damaged, not a map of whole numbers, or differs from `size` or the digest
    `content`.
    """
    try:
        regions = read_array(path, "instance_mask") if path.suffix == ".npz" else np.array(Image.open(path))
    except (*DAMAGES, SyntaxError, Image.DecompressionBombError) as error:
        raise OvssError(f"region map {path} cannot be read: {error}. Copy it again, or delete it and make it again.") from error
    if regions.ndim != 2 or regions.dtype.kind not in "biuf" or (regions.dtype.kind == "f" and (regions % 1).any()):
        raise OvssError(f"region map {path} is {regions.dtype} of the shape {regions.shape}; expected whole numbers (H, W).")
    if size not in (None, regions.shape):
        raise OvssError(
            f"region map {path} is {regions.shape[0]} x {regions.shape[1]} pixels (height x width), its image {size[0]} x "
            f"{size[1]}. If height and width are swapped: images are rotated by their EXIF tag here, which the program that "
            "made the map may not have done; make the map again from the rotated image."
        )
    if content not in (None, map_digest(regions)):
        hint = "Copy it again, or rerun tools/regions.py: damaged maps are recomputed."
        raise OvssError(f"region map {path} is damaged, or has changed since {INDEX} was made. {hint}")
    return regions.astype(np.int32)
