"""Region maps, for `regions=`: superpixels of scikit-image, masks of SAM and SAM 2, and maps that were made before, in files.

Sources are called with an image (H, W, 3) uint8 RGB and give (H, W) int32: regions count from 1, 0 is what no region holds.
Maps from files stay as they are: methods take their smallest value as "no region", which may be -1 (corrclip.md section 4.1).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from PIL import Image

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
# What may differ between two generators of the same regions, and what an entry of configs/regions says beside its settings.
NO_SETTINGS = ("weights", "precision", "points_per_batch", "kind", "source", "stand_in", "unconfirmed")


@dataclass(eq=False)
class Superpixels:
    """What the superpixels of scikit-image share: their settings say all."""

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
    """Felzenszwalb and Huttenlocher, Efficient Graph-Based Image Segmentation, IJCV 2004. `scale`: the larger, the larger the
    regions; `sigma`: of the Gaussian before; `min_size`: pixels of the smallest region."""

    kind: ClassVar[str] = "felzenszwalb"
    scale: float
    sigma: float
    min_size: int

    def __call__(self, image: np.ndarray) -> np.ndarray:
        from skimage.segmentation import felzenszwalb

        return felzenszwalb(image, self.scale, self.sigma, self.min_size).astype(np.int32) + 1


@dataclass(eq=False)
class Slic(Superpixels):
    """SLIC superpixels (Achanta et al., TPAMI 2012): about `n_segments` of them, the squarer the larger `compactness`; `sigma`:
    of the Gaussian before."""

    kind: ClassVar[str] = "slic"
    n_segments: int
    compactness: float
    sigma: float

    def __call__(self, image: np.ndarray) -> np.ndarray:
        from skimage.segmentation import slic

        options = {"compactness": self.compactness, "sigma": self.sigma, "start_label": 0}
        return slic(image, self.n_segments, **options).astype(np.int32) + 1


KINDS = {kind.kind: kind for kind in (Felzenszwalb, Slic, Sam, Sam2)}


@ordinary_torch()
def load_regions(
    name: str | Path, *, device: str | torch.device = "cpu", **settings: Any
) -> Felzenszwalb | Slic | Sam | Sam2 | RegionFolder:
    """A source of regions: an entry of configs/regions (`felzenszwalb`, `sam2_8`, ...), of which keywords override settings, or
    a folder of region maps with the index that tools/regions.py makes.

    It is called with an image (H, W, 3) uint8 RGB and gives (H, W) int32; `digest` is SHA-256 over its kind, settings and
    weights, `stand_in` says that it takes the place of a better one in the demo. An entry whose generator is in no library
    stands for the indexed folders of its maps below OVSS_WEIGHTS. Raises OvssError: unknown names and settings, bad values,
    missing weights or maps, a folder without an index.
    """
    if str(name) not in config_names("regions"):
        folder = user_path(name)
        if not folder.is_dir():
            if os.sep in str(name):
                raise OvssError(f"regions={name}: the folder does not exist. Give a folder of region maps with its index.")
            raise unknown("regions (neither an entry of configs/regions nor a folder)", name, config_names("regions"))
        if settings:
            raise OvssError(f"the regions in {folder} are made already: leave {', '.join(settings)} out.")
        return RegionFolder(folder)
    config = load_config("regions", str(name))
    if config["kind"] == "files":
        return _published_maps(str(name), config["source"], settings)
    config = config | settings
    stand_in, kind, _ = bool(config.pop("stand_in", False)), config.pop("kind"), config.pop("unconfirmed", None)
    values = checked(name, KINDS[kind], config)
    source = KINDS[kind](**values, **({"device": device} if issubclass(KINDS[kind], Sam) else {}))
    source.stand_in = stand_in
    return source


def checked(name: str | Path, kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a kind, each of the type that its class annotates. Raises OvssError for others."""
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind) if field.name != "device"]
    result = {}
    for key, value in values.items():
        if key not in known:
            raise unknown(f"setting of regions '{name}'", key, known)
        hint, expected = hints[key], None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if get_origin(hint) is Literal:
            expected = None if value in get_args(hint) else " or ".join(get_args(hint))
        elif hint is bool:
            expected = None if isinstance(value, bool) else "true or false"
        elif hint is int:
            expected = None if number and value == int(value) and value >= 1 else "a whole number of at least 1"
        elif hint is float:
            expected = None if number and math.isfinite(value) and value >= 0 else "a number of at least 0"
        if expected:
            raise OvssError(f"{key}={value!r} of regions '{name}': expected {expected}.")
        result[key] = value if get_origin(hint) is Literal else hint(value)
    return result


def _published_maps(name: str, source: str, settings: Mapping[str, Any]) -> RegionFolder:
    """All maps of a generator that is in no library: those in the folders below OVSS_WEIGHTS/<name> that have an index."""
    if settings:
        raise OvssError(f"the regions '{name}' come in files and have no settings: leave {', '.join(settings)} out.")
    places = [folder / name for folder in weights_folders()]
    folders = [index.parent for place in places for index in sorted(place.rglob(INDEX))]
    if not folders:
        raise OvssError(
            f"regions '{name}' come in files ({source}): unpack them into the folder {name} of the one that the environment "
            "variable OVSS_WEIGHTS names, and let tools/regions.py index each data set's (python tools/regions.py index FOLDER "
            f"dataset=NAME regions={name}). Or unpack and index them anywhere, and name the folder: regions=FOLDER."
        )
    maps = RegionFolder(*folders)
    if maps.generator != name:
        raise OvssError(
            f"the maps in {', '.join(map(str, folders))} are not all indexed as those of {name}: python tools/regions.py index "
            f"FOLDER dataset=NAME regions={name}"
        )
    return maps


class RegionFolder:
    """Region maps in files, found by the content of the image; `digest` is that of what made them, or of the files.

    `generator` is the entry of configs/regions by whose settings they were made, or that they are indexed as; None if the index
    does not say, or if settings were changed. `unconfirmed` is what that entry says of settings that nobody published, of maps
    that were made here: those from elsewhere have the settings of whoever published them.
    """

    def __init__(self, *folders: str | Path) -> None:
        each = [_index_of(Path(folder)) for folder in folders]
        generators = {_generator(index) for index in each}
        self.folder = Path(os.path.commonpath(folders))
        self.files, self.contents = {}, {}
        for folder, index in zip(folders, each, strict=True):
            own = os.path.relpath(folder, self.folder)
            self.files |= {key: os.path.normpath(f"{own}/{file}") for key, file in index["images"].items()}
            self.contents |= {os.path.normpath(f"{own}/{file}"): text for file, text in index["contents"].items()}
        digests = sorted({index["digest"] for index in each})
        self.digest = digests[0] if len(digests) == 1 else digest("folders", *digests)
        self.stand_in = any(index["stand_in"] for index in each)
        self.generator = generators.pop() if len(generators) == 1 else None
        made = self.generator is not None and any(index["regions"] for index in each)
        self.unconfirmed = load_config("regions", self.generator).get("unconfirmed") if made else None
        self.settings, self.again = {"folder": self.digest}, each[0]["command"]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        file = self.files.get(image_key(image))
        if file is None:
            raise OvssError(
                f"folder {self.folder} has no regions for this image of {image.shape[0]} x {image.shape[1]} pixels (height x "
                f"width). Make them with: {self.again}"
            )
        return read_regions(below(self.folder, file), image.shape[:2], self.contents.get(file))


def content_digest(regions: np.ndarray) -> str:
    """What the index notes of a map (H, W), whatever file it is in."""
    return digest(repr(regions.shape), regions.astype(np.int32).tobytes())


def _generator(index: Mapping[str, Any]) -> str | None:
    """The entry of configs/regions that an index's maps are those of."""
    made_by = index["regions"]
    if made_by is None:
        return index.get("generator")
    if made_by not in config_names("regions"):
        return None
    entry = load_config("regions", made_by)
    names = [name for name in entry if name not in NO_SETTINGS]
    return made_by if all(index["settings"].get(name) == entry[name] for name in names) else None


def _index_of(folder: Path) -> dict[str, Any]:
    index = read_index(folder)
    if index is None:
        raise OvssError(
            f"folder {folder} has no {INDEX}, which says whose regions its files are. Make regions with: python "
            f"tools/regions.py dataset=NAME regions=NAME out=DIR; or make an index for region files that you have: python "
            f"tools/regions.py index {folder} dataset=NAME regions=GENERATOR"
        )
    return index


def read_index(folder: Path) -> dict[str, Any] | None:
    """{digest, regions, generator, settings, stand_in, command, images: {key of the image: file}, contents: {file:
    `content_digest`}}, or None if there is none. `regions` is the entry of configs/regions that made the maps here, `generator`
    the one that maps from elsewhere are said to be of; both may be None. Earlier versions noted neither `generator` nor
    contents."""
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        index = {"contents": {}, "generator": None} | read_json(path)
        kinds = {"digest": str, "regions": str | None, "settings": dict, "stand_in": bool, "command": str}
        kinds["generator"] = str | None
        index = {key: index[key] for key in (*kinds, "images", "contents")}
        wrong = [key for key, kind in kinds.items() if not isinstance(index[key], kind)]
        wrong += [key for key in ("images", "contents") if not all(isinstance(file, str) for file in index[key].values())]
        if wrong:
            raise ValueError(f"{wrong[0]} is {str(index[wrong[0]])[:60]}")
        return index
    except (*DAMAGES, AttributeError, RecursionError) as error:
        raise OvssError(
            f"{path} is damaged: {error}. Make it again: python tools/regions.py index {folder} dataset=NAME"
        ) from error


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    images = sorted(dict(index["images"]).items(), key=lambda item: item[1])  # a copy: threads may be adding to it
    text = json.dumps({**index, "images": dict(images), "contents": dict(index["contents"])}, indent=1)
    write_text(folder / INDEX, text + "\n")


def write_regions(path: Path, regions: np.ndarray) -> None:
    """(H, W) integers as CorrCLIP's npz file, compressed, in the smallest type that holds them."""
    low, high = int(regions.min()), int(regions.max())
    small = next(t for t in (np.uint8, np.uint16, np.int32, np.int64) if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
    write_atomic(path, lambda temporary: np.savez_compressed(temporary, instance_mask=regions.astype(small)))


def read_regions(path: Path, size: tuple[int, int] | None = None, content: str | None = None) -> np.ndarray:
    """(H, W) int32 from `instance_mask` of an npz file or from a PNG of 8 or 16 bits, the values as they are.

    Raises OvssError: missing or damaged, no map of whole numbers, not of the expected `size` or `content` (its digest).
    """
    try:
        regions = read_array(path, "instance_mask") if path.suffix == ".npz" else np.array(Image.open(path))
    except (*DAMAGES, SyntaxError, Image.DecompressionBombError) as error:
        raise OvssError(f"region map {path} cannot be read: {error}. Copy it again, or delete it and make it again.") from error
    if regions.ndim != 2 or regions.dtype.kind not in "biuf" or (regions.dtype.kind == "f" and (regions % 1).any()):
        raise OvssError(
            f"region map {path} is {regions.dtype} of the shape {regions.shape}; expected whole numbers, height x width."
        )
    if size not in (None, regions.shape):
        raise OvssError(
            f"region map {path} is {regions.shape[0]} x {regions.shape[1]} pixels (height x width), its image {size[0]} x "
            f"{size[1]}. If they are turned against each other: images are turned here as their EXIF tag says, which whoever "
            "made the map may have left undone; make it again from the turned image."
        )
    if content not in (None, content_digest(regions)):
        raise OvssError(
            f"region map {path} is damaged, or another than when {INDEX} was made. Copy it again, or run tools/regions.py "
            "again: it makes what is damaged anew."
        )
    return regions.astype(np.int32)
