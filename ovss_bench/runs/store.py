"""Writes everything below results/: shards of evaluated images during a run, one JSON and one npz file at its end.

A run's files are `<dataset>/<clip>/<segmentor>-<fingerprint>.json`, `.npz` (counts per image) and, until it is complete, the
folder `.shards`. The fingerprint identifies the run, so runs never mix, and resuming a run means reading its shards. Any
number of processes and machines may add shards: file names are unique, and all writers agree on an image's counts."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import OvssError
from ..evaluation.boundary import DTYPE as EDGES
from ..evaluation.confusion import DTYPE, Records, total
from ..evaluation.metrics import areas
from ..files import DAMAGES, below, digest, read_arrays, read_json, user_path, write_atomic, write_text
from ..process import take_lock
from .schema import validate_result
from .spill import Joined, Spill, SpilledRecords, pieces, savez
from .world import Shard

IMAGES_PER_SHARD = 16
SECONDS_PER_SHARD = 10
SHARDS, PARTS = "[0-9]*.npz", "part-*.json"  # files in the folder of shards
SECONDS_TO_APPEAR = 90  # for a file from another machine: NFS refreshes folders at least every 60 s


class RunStore:
    """The counts of one run by image id. As a context manager it holds the run's locks and writes pending counts on exit. One
    process at a time reads and finishes a run; processes with different `shard`s may work side by side. A `helper` only adds
    shards, on behalf of a process that holds the locks. Records are kept in the `spill`, which the stores of a pass share, so
    the memory of a run does not grow with them. The spill is closed on exit."""

    def __init__(
        self,
        output: str | Path,
        dataset: str,
        clip: str,
        segmentor: str,
        fingerprint: str,
        shard: Shard | None = None,
        helper: bool = False,
        spill: Spill | None = None,
    ) -> None:
        self.base = below(user_path(output), f"{dataset}/{clip}/{segmentor}-{fingerprint[:12]}", links=True)
        self.result_path, self.counts_path, self.trace_path, self._shards = (
            self.base.with_name(self.base.name + suffix) for suffix in (".json", ".npz", ".trace.json", ".shards")
        )
        self.fingerprint, self.shard, self.helper = fingerprint, shard, helper
        self.map_folders = [maps_folder(self.result_path)]  # for label maps, if the run saves them
        self._spill = spill or Spill(user_path(output))
        self._forget()
        self.damaged: list[str] = []  # error messages of shards that had to be deleted
        self._read: set[str] = set()
        self._written = time.monotonic()
        self._locks = ExitStack()

    def _forget(self) -> None:
        self.counts, self.edges = SpilledRecords(self._spill, DTYPE), SpilledRecords(self._spill, EDGES)
        self.hashes: dict[str, str] = {}
        self._pending: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = {}, {}  # counts and edges not in a shard yet

    @property
    def part_path(self) -> Path:
        assert self.shard is not None
        return self._shards / f"part-{self.shard.number}-of-{self.shard.count}.json"

    def finished(self) -> dict[str, Any] | None:
        """The result of this run if it is complete, else None. Raises OvssError if the result or its counts are damaged."""
        if not self.result_path.is_file() or not self.counts_path.is_file():
            return None
        read_counts(self.counts_path, self.fingerprint)
        return read_result(self.result_path)

    def discard(self) -> None:
        """Deletes the counts of an interrupted run. A shard only forgets them, as other shards may have written them."""
        if self.shard is None and not self.helper:
            for path in [*self._shards.glob(SHARDS), *self._shards.glob(PARTS)]:
                path.unlink(missing_ok=True)
        self._forget()

    def __enter__(self) -> RunStore:
        if self.helper:
            return self
        with ExitStack() as locks:
            locks.enter_context(take_lock(self._shards / "lock", "output", shared=self.shard is not None))
            if self.shard is not None:
                name = f"lock-{self.shard.number}-of-{self.shard.count}"
                locks.enter_context(take_lock(self._shards / name, "output"))
            self._locks = locks.pop_all()
        if self.shard is None:
            for path in self.base.parent.glob(f".{self.base.name}.*"):  # temporary files of a killed process
                path.unlink(missing_ok=True)
        self.read()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            self._locks.close()
            self._spill.close()

    def read(self) -> None:
        """Reads new shards. Damaged ones are deleted and listed in `damaged`; their images are evaluated again."""
        for path in sorted(path for path in self._shards.glob(SHARDS) if path.name not in self._read):
            self._read.add(path.name)
            try:
                counts, hashes, edges = read_counts(path, self.fingerprint)
            except OvssError as error:
                self.damaged.append(str(error))
                path.unlink(missing_ok=True)
                continue
            self.hashes |= hashes
            self._keep(counts, edges)

    def _keep(self, counts: Records, edges: Records) -> None:
        for records, spilled in ((counts, self.counts), (edges, self.edges)):
            for image in records:
                spilled.add(image, records[image])

    def collect(self, images: list[str]) -> None:
        """Waits until the counts of these images, some from other processes, are visible: a network file system may take a
        while. Raises OvssError if they do not appear."""
        deadline = time.monotonic() + SECONDS_TO_APPEAR
        self.read()
        while missing := [image for image in images if image not in self.counts]:
            if time.monotonic() > deadline:
                lost = f"{len(missing)} images evaluated by other processes, such as {missing[0]}, are not in {self._shards}"
                hint = "All processes need one output folder; without one use shard=I/N and tools/merge.py."
                raise OvssError(f"{lost}. {hint}")
            time.sleep(0.2)
            self.read()

    def has(self, image: str, with_map: bool) -> bool:
        """Whether an image is counted and, if `with_map`, its label map saved."""
        return image in self.counts and (not with_map or self.has_maps(image))

    def has_maps(self, image: str) -> bool:
        return all(path.is_file() for path in self.map_paths(image))

    def map_paths(self, image: str) -> list[Path]:
        """The files of an image's label map: 8-bit or 16-bit PNGs, saved on request."""
        return [below(folder, f"{image}.png") for folder in self.map_folders]

    def add(
        self,
        image: str,
        counts: np.ndarray,
        map_hash: str,
        edges: np.ndarray | None = None,
        label_map: np.ndarray | None = None,
    ) -> None:
        """Adds an image's confusion records, hash of the label map and, on request, boundary records and the label map."""
        if label_map is not None:
            picture = Image.fromarray(label_map.astype(np.uint8) if label_map.max() < 256 else label_map)
            for path in self.map_paths(image):
                write_atomic(path, picture.save)
        added = {image: counts}, {} if edges is None else {image: edges}
        self.hashes[image] = map_hash
        for pending, new in zip(self._pending, added, strict=True):
            pending |= new
        self._keep(*added)
        if len(self._pending[0]) >= IMAGES_PER_SHARD or time.monotonic() - self._written > SECONDS_PER_SHARD:
            self.flush()

    def flush(self) -> None:
        if self._pending[0]:
            path = self._shards / f"{len(self._read):06d}-{secrets.token_hex(8)}.npz"  # unique among all writers
            self._write_counts(path, list(self._pending[0]), *self._pending)
            self._read.add(path.name)
            self._pending, self._written = ({}, {}), time.monotonic()

    def finish(self, result: dict[str, Any], images: list[str]) -> None:
        """Writes the counts of `images` and the result, and removes the shards. Raises OvssError if the two disagree."""
        if reasons := disagreements(result, self.counts, images):
            raise OvssError(f"{self.base}: the result contradicts its counts ({reasons}).")
        text = dump(result)
        validate_result(json.loads(text), f"the result for {self.result_path}")
        self._write_counts(self.counts_path, images, self.counts, self.edges)
        write_text(self.result_path, text)
        self._pending = {}, {}
        shutil.rmtree(self._shards, ignore_errors=True)

    def write_part(self, part: dict[str, Any]) -> None:
        """Writes what tools/merge.py needs beside the counts: `head` of the result, `facts` of the data set, `images` of the
        whole run, and the evaluated (`own`) and `failed` images of the shard."""
        assert self.shard is not None
        text = json.dumps(part | {"shard": [self.shard.number, self.shard.count]})
        write_text(self.part_path, f"{digest(text)}\n{text}\n")

    def _write_counts(self, path: Path, images: list[str], counts: Records, edges: Records) -> None:
        joined = Joined(counts, images, DTYPE)
        content: dict[str, np.ndarray | Joined] = {
            "fingerprint": np.array(self.fingerprint),
            "images": np.array(images, np.str_),
            "hashes": np.array([self.hashes[image] for image in images], np.str_),
            "lengths": joined.lengths,
            "records": joined,
        }
        if edges:
            joined = Joined(edges, images, EDGES)
            content |= {"edge_lengths": joined.lengths, "edges": joined}
        content["checksum"] = np.array(_checksum(content))
        write_atomic(path, lambda temporary: savez(temporary, content))


def read_counts(
    path: str | Path, fingerprint: str | None = None, classes: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, np.ndarray]]:
    """Confusion records, label-map hashes, and boundary records (empty if not stored), each by image id. Raises OvssError if
    the file is damaged, belongs to another run, or has labels above `classes`."""
    try:
        content = read_arrays(path)
        if "checksum" in content and str(content.pop("checksum")) != _checksum(content):
            raise ValueError("its checksum is wrong")
        images = content["images"].tolist()
        if len(set(images)) < len(images):
            raise ValueError("it holds an image twice")
        if not content["hashes"].shape == content["images"].shape == (len(images),):
            raise ValueError("its arrays do not match")
        records = _by_image(images, content["records"], content["lengths"])
        hashes = dict(zip(images, content["hashes"].tolist(), strict=True))
        edges = _by_image(images, content["edges"], content["edge_lengths"]) if "edges" in content else {}
        largest = max(int(content["records"][side].max(initial=0)) for side in ("truth", "prediction"))
        run = str(content["fingerprint"])
    except DAMAGES as error:
        raise OvssError(f"{path} is damaged: {error}. Delete it; its images will be evaluated again.") from error
    if run != (fingerprint or run) or (classes is not None and largest > classes):
        raise OvssError(f"{path} belongs to another run. Delete it, or choose another folder with output=DIR.")
    return records, hashes, edges


def maps_folder(result: Path) -> Path:
    """The folder of label maps next to a result file; it exists if the run saved them."""
    return result.with_suffix(".maps")


def disagreements(result: Mapping[str, Any], counts: Mapping[str, np.ndarray], images: Sequence[str]) -> str:
    """How a result contradicts the counts of its images; "" if these are unique and give the same pixels per class."""
    counted = areas(total((counts[image] for image in images if image in counts), len(result["per_class"])))
    stated = [(entry["correct"], entry["predicted"], entry["true"]) for entry in result["per_class"]]
    numbers = result["images"]
    wrong = {
        "an image is counted twice": len(set(images)) < len(images),
        "images have no counts": any(image not in counts for image in images),
        "the number of images differs": numbers["evaluated"] != len(images),
        "an image is both evaluated and failed": any(image in numbers["failed"] for image in images),
        "the pixels per class differ": stated != list(zip(*(column.tolist() for column in counted), strict=True)),
    }
    return ", ".join(reason for reason, applies in wrong.items() if applies)


def read_parts(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The parts that `RunStore.write_part` wrote to a folder of shards, in order, and error messages for damaged parts."""
    parts, damaged = [], []
    for path in folder.glob(PARTS):
        checksum, _, text = path.read_text("utf-8", "replace").partition("\n")
        if checksum == digest(text.rstrip("\n")):
            parts.append(json.loads(text))
        else:
            damaged.append(f"{path} is damaged: its checksum is wrong. Delete it and start its shard again.")
    return sorted(parts, key=lambda part: part["shard"][::-1]), damaged


def _checksum(content: Mapping[str, np.ndarray | Joined]) -> str:
    """SHA-256 of the names, dtypes and bytes of all arrays, sorted by name."""
    arrays = sorted(content.items())
    return digest(*(part for name, array in arrays for part in (name, array.dtype.str, (array.nbytes, pieces(array)))))


def _by_image(images: list[str], records: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
    flat = records.ndim == lengths.ndim == 1 and records.dtype.names and lengths.dtype.kind == "i"
    if not flat or len(lengths) != len(images) or (lengths < 0).any() or lengths.sum() != len(records):
        raise ValueError("its arrays do not match")
    return dict(zip(images, np.split(records, np.cumsum(lengths)[:-1]), strict=False))


def read_result(path: str | Path) -> dict[str, Any]:
    """A result, converted to the current schema. Raises OvssError if it is missing, damaged, or does not match its schema."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise OvssError(f"result {path} cannot be read: {error}. Delete it and run again.") from error
    return validate_result(content, f"result {path}")


def dump(content: dict[str, Any]) -> str:
    """Indented JSON in the order of the keys; NaN becomes null."""
    content = json.loads(json.dumps(content), parse_constant=lambda _: None)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
