"""Precomputes the region maps of a data set: a folder of npz files, and an index in which `load_regions` finds them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..auxiliary.regions import (
    INDEX,
    SUFFIXES,
    RegionFolder,
    load_regions,
    map_digest,
    read_index,
    read_regions,
    write_index,
    write_regions,
)
from ..datasets.base import Sample, SegDataset
from ..datasets.lists import foreign_names
from ..errors import OvssError, unknown
from ..files import below, config_names, data_files, digest, user_path
from ..image import image_key
from ..process import locked, terminate_cleanly
from ..progress import Progress

SECONDS_PER_INDEX = 5


def precompute_regions(
    dataset: SegDataset,
    regions: str,
    folder: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    limit: int | None = None,
    workers: int = 2,
    device: str | torch.device = "cpu",
    quiet: bool = False,
) -> None:
    """Writes the regions of a data set's images to `folder`/<image id>.npz, and an index. Existing regions are kept: the same
    call resumes. Raises OvssError if the folder contains other regions and, at the end, if images have no regions."""
    folder, source = user_path(folder), load_regions(regions, device=device, **(settings or {}))
    if isinstance(source, RegionFolder):
        raise OvssError(f"regions={regions} are maps in files: there is nothing to make. Name a generator, such as sam2_8.")
    command = ["python tools/regions.py", f"dataset={dataset.name}", f"regions={regions}", f"out={folder}"]
    command += [f"settings.{name}={value}" for name, value in (settings or {}).items()]
    maker = {"digest": source.digest, "regions": regions, "settings": source.settings, "stand_in": source.stand_in}
    with locked(folder, "out"):
        index = _resumed(folder, maker, dataset.name) or maker | {"command": " ".join(command), "images": {}, "contents": {}}
        images: dict[str, str] = index["images"]
        owners = {file: key for key, file in images.items()}

        def make(sample: Sample) -> bool:
            image = dataset.image(sample)
            key, file = image_key(image), f"{sample.id}.npz"
            path, made = below(folder, file), below(folder, images.get(key, file))
            if key in images and made.is_file():
                try:
                    read_regions(made, image.shape[:2], index["contents"].get(images[key]))
                    return False
                except OvssError:
                    warnings.warn(f"region map {made} is damaged; it is recomputed.", stacklevel=1)
            if owners.get(file, key) != key and path.is_file():
                other = "another image of that name, of another data set or an earlier version of this one"
                raise OvssError(f"{path} belongs to {other}. Choose another folder with out=DIR, or delete it and run again.")
            region_map = source(image)
            write_regions(path, region_map)
            index["contents"][file] = map_digest(region_map)
            images.pop(owners.get(file, ""), None)
            images[key] = file
            return True

        write_index(folder, index)
        save = partial(write_index, folder, index)
        failed = _for_all(dataset.select(limit), make, save, f"{regions} on {dataset.name}", workers, quiet)
    _complain(failed, "have no regions; those of the others are kept")


def _resumed(folder: Path, maker: Mapping[str, Any], dataset: str) -> dict[str, Any] | None:
    """The index of a folder; None if the folder is empty. Raises OvssError if its files are not regions of `maker`."""
    index = read_index(folder)
    if index is None:
        others = [path.name for path in data_files(folder) if path.suffix in SUFFIXES]
        if others:
            raise OvssError(
                f"folder {folder} contains {others[0]}, but no {INDEX} that describes it. Choose another folder with out=DIR; "
                f"or, to use its files as region maps, index them: python tools/regions.py index {folder} dataset={dataset}"
            )
    elif index["digest"] != maker["digest"]:
        other = f"other regions ({_difference(index, maker)})"
        raise OvssError(f"folder {folder} contains {other}. Choose another folder with out=DIR.")
    return index


def index_regions(
    dataset: SegDataset, folder: str | Path, *, generator: str | None = None, limit: int | None = None, workers=2, quiet=False
) -> None:
    """Writes the index of a folder of region files from another source (.npz or .png, named by one of `foreign_names`).
    `generator` is the entry of configs/regions that produced them; runs use it to find published figures. The index of regions
    from `precompute_regions` is rebuilt for the current images. Raises OvssError at the end if images have no file, or one of
    another size."""
    folder = user_path(folder)
    if generator not in (None, *config_names("regions")):
        raise unknown("regions", generator, config_names("regions"))
    if not folder.is_dir():
        raise OvssError(f"folder {folder} does not exist. Name the folder with the region files.")
    images: dict[str, str] = {}
    contents: dict[str, str] = {}
    stems = foreign_names(dataset.samples)

    def enter(sample: Sample) -> bool:
        names = [f"{stem}{suffix}" for stem in stems[sample.id] for suffix in SUFFIXES]
        file = next((name for name in names if below(folder, name).is_file()), None)
        if file is None:
            wanted = " or ".join(names)
            raise OvssError(f"there is no {wanted} in {folder}. Copy it there, or compute the regions of all images again.")
        image = dataset.image(sample)
        contents[file] = map_digest(read_regions(below(folder, file), image.shape[:2]))
        images[image_key(image)] = file
        return True

    with locked(folder, "out"):
        title = f"index of {folder} for {dataset.name}"
        failed = _for_all(dataset.select(limit), enter, lambda: None, title, workers, quiet)
        index = None
        with suppress(OvssError):  # a damaged index
            index = read_index(folder)
        if not index or not index["regions"]:
            index = {
                "digest": digest("files", *(part for pair in sorted(contents.items()) for part in pair)),
                "regions": None,
                "generator": generator or (index["generator"] if index else None),
                "settings": {},
                "stand_in": False,
                "command": f"python tools/regions.py index {folder} dataset={dataset.name}, once its file is there",
            }
        elif generator not in (None, index["regions"]):
            raise OvssError(f"the regions in {folder} were made here, by {index['regions']}. Leave regions={generator} out.")
        write_index(folder, index | {"images": images, "contents": contents})
    _complain(failed, f"are not in the index; {len(images)} are")


def _for_all(
    samples: Sequence[Sample], work: Callable[[Sample], bool], save: Callable[[], None], title: str, workers: int, quiet: bool
) -> dict[str, str]:
    """Calls `work` for each sample in threads, and `save` every few seconds and on exit. `work` returns whether there was
    anything to do. Returns the texts of its OvssErrors by image id; other errors are raised."""
    progress, failed, existing = Progress(quiet), {}, 0
    task, saved = progress.start(title, len(samples)), time.monotonic()
    pool = ThreadPoolExecutor(workers)
    with terminate_cleanly():
        try:
            futures = {pool.submit(work, sample): sample for sample in samples}
            for future in as_completed(futures):
                sample, error = futures.pop(future), future.exception()
                if isinstance(error, OvssError):
                    failed[sample.id] = str(error)
                else:
                    existing += not future.result()
                task.advance()
                if time.monotonic() - saved > SECONDS_PER_INDEX:
                    save()
                    saved = time.monotonic()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            save()  # at once, as the process may be killed soon
            pool.shutdown()
            save()
    task.stop()
    if existing:
        progress.say(f"{existing} of {len(samples)} already existed")
    return failed


def _complain(failed: Mapping[str, str], what: str) -> None:
    if failed:
        shown = "".join(f"\n  {name}: {reason}" for name, reason in sorted(failed.items())[:10])
        raise OvssError(f"{len(failed)} images {what}:{shown}")


def _difference(index: Mapping[str, Any], maker: Mapping[str, Any]) -> str:
    """Describes how the regions of an index differ from those of `maker`."""
    if index["regions"] is None:
        return "files that came from elsewhere"
    old, new = ({"regions": each["regions"], **each["settings"]} for each in (index, maker))
    names = [name for name in old | new if old.get(name) != new.get(name)]
    return ", ".join(f"{name} is {old.get(name)} there and {new.get(name)} here" for name in names) or "of other weights"
