"""The only writer under results/: shards of finished images while a run goes on, one JSON and one npz when it is done.

A run's files are `<dataset>/<clip>/<segmentor>-<fingerprint>.json`, `.npz` (counts per image) and, until it is done, the folder
`.shards`. The fingerprint is that of everything that makes two runs the same, so runs never mix, and resuming is reading. Any
number of processes and machines may add shards to that folder: no two shards have the same name, and what one says of an image
all would say.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from .world import Shard
from ..errors import OvssError
from ..evaluation.confusion import DTYPE, total
from ..evaluation.metrics import areas
from ..files import DAMAGES, below, digest, read_json, user_path, write_atomic, write_text
from ..process import holder_of, sign
from .schema import checked

IMAGES_PER_SHARD = 16
SECONDS_PER_SHARD = 10
SECONDS_TO_APPEAR = 90  # of a file that another machine has written; NFS looks for new ones every 60 s at the latest


class RunStore:
    """Counts of one run, by image id. Used as a context: it holds the run's locks, and writes what is pending at the end,
    whatever the reason.

    A run has one process at a time that reads and finishes it; processes with different `shard`s may work side by side. A
    `helper` only adds shards, on behalf of a process that holds the locks.
    """

    def __init__(
        self,
        output: str | Path,
        dataset: str,
        clip: str,
        segmentor: str,
        fingerprint: str,
        shard: Shard | None = None,
        helper: bool = False,
    ) -> None:
        self.base = below(user_path(output), f"{dataset}/{clip}/{segmentor}-{fingerprint[:12]}", links=True)
        self.fingerprint = fingerprint
        self.shard, self.helper = shard, helper
        self.counts: dict[str, np.ndarray] = {}
        self.hashes: dict[str, str] = {}
        self.edges: dict[str, np.ndarray] = {}
        self.damaged: list[str] = []  # what was wrong with shards that had to be thrown away
        self._read: set[str] = set()
        self._pending: list[str] = []
        self._written = time.monotonic()
        self._locks: list[IO] = []

    @property
    def result_path(self) -> Path:
        return self.base.with_name(self.base.name + ".json")

    @property
    def counts_path(self) -> Path:
        return self.base.with_name(self.base.name + ".npz")

    @property
    def trace_path(self) -> Path:
        return self.base.with_name(self.base.name + ".trace.json")

    @property
    def part_path(self) -> Path:
        return self._shards / f"part-{self.shard.number}-of-{self.shard.count}.json"

    @property
    def _shards(self) -> Path:
        return self.base.with_name(self.base.name + ".shards")

    def finished(self) -> dict[str, Any] | None:
        """The result of the same run, if there is one already. Raises OvssError if it or its counts are damaged."""
        if not self.result_path.is_file() or not self.counts_path.is_file():
            return None
        read_counts(self.counts_path, self.fingerprint)
        return read_result(self.result_path)

    def discard(self) -> None:
        """Forgets what an interrupted run left; a shard leaves alone what is perhaps not its own."""
        if self.shard is None and not self.helper:
            for path in [*self._shard_files(), *self._shards.glob("part-*.json")]:
                path.unlink(missing_ok=True)
        self.counts, self.hashes, self.edges = {}, {}, {}

    def __enter__(self) -> RunStore:
        if not self.helper:
            try:
                self._hold("lock", fcntl.LOCK_EX if self.shard is None else fcntl.LOCK_SH)
                if self.shard is not None:
                    self._hold(f"lock-{self.shard.number}-of-{self.shard.count}", fcntl.LOCK_EX)
            except BaseException:
                self._release()
                raise
            if self.shard is None:
                for left in self.base.parent.glob(f".{self.base.name}.*"):  # temporary files of a process that was killed
                    left.unlink(missing_ok=True)
            self.read()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            self._release()

    def _hold(self, name: str, kind: int) -> None:
        """Takes a lock for this process, shared or exclusive. Raises OvssError if another process has it."""
        path = self._shards / name
        while True:
            try:
                self._shards.mkdir(parents=True, exist_ok=True)
                lock = path.open("a+", encoding="utf-8")
            except OSError as error:
                raise OvssError(
                    f"cannot write {self._shards}: {error.strerror}. Change its permissions or choose "
                    "another folder with output=DIR."
                ) from error
            self._locks.append(lock)
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OvssError(
                    f"another process is working on {self.base}{holder_of(lock)}. Wait for it, or choose another folder with "
                    "output=DIR."
                ) from None
            except OSError as error:
                raise OvssError(
                    f"{self._shards} cannot be locked: {error.strerror}. Choose another file system with output=DIR."
                ) from error
            if _is_open(path, lock):
                sign(lock)
                return  # else the process that had it has finished the run, and the folder is gone or a new one

    def _release(self) -> None:
        for lock in self._locks:
            lock.close()
        self._locks = []

    def _shard_files(self) -> list[Path]:
        return sorted(self._shards.glob("[0-9]*.npz"))

    def read(self) -> None:
        """Takes in the shards that are new. Damaged ones are deleted and told: their images are to be evaluated again."""
        for path in self._shard_files():
            if path.name in self._read:
                continue
            self._read.add(path.name)
            try:
                counts, hashes, edges = read_counts(path, self.fingerprint)
            except OvssError as error:
                self.damaged.append(str(error))
                path.unlink(missing_ok=True)
                continue
            self.counts |= counts
            self.hashes |= hashes
            self.edges |= edges

    def collect(self, images: list[str]) -> None:
        """Waits until the shards of the other processes, which have evaluated these images, are to be seen: on a network file
        system that may take a while. Raises OvssError if they are not."""
        deadline = time.monotonic() + SECONDS_TO_APPEAR
        while True:
            self.read()
            missing = [image for image in images if image not in self.counts]
            if not missing:
                return
            if time.monotonic() > deadline:
                raise OvssError(
                    f"{len(missing)} images that other processes have evaluated, {missing[0]} the first, are not in "
                    f"{self._shards}. All processes need one output folder; without one use shard=I/N and tools/merge.py."
                )
            time.sleep(0.2)

    def has(self, image: str, with_map: bool) -> bool:
        """Whether an image is done, and its label map kept if there has to be one."""
        return image in self.counts and (not with_map or self.map_path(image).is_file())

    def map_path(self, image: str) -> Path:
        """Where the label map of an image is kept if it is: an 8 or 16-bit PNG."""
        return below(maps_folder(self.result_path), f"{image}.png")

    def add(
        self,
        image: str,
        counts: np.ndarray,
        hash: str,
        edges: np.ndarray | None = None,
        label_map: np.ndarray | None = None,
    ) -> None:
        """Confusion records, hash of the label map, and, if they are wanted, boundary records and the label map itself."""
        if label_map is not None:
            picture = Image.fromarray(label_map.astype(np.uint8) if label_map.max() < 256 else label_map)
            write_atomic(self.map_path(image), picture.save)
        self.counts[image], self.hashes[image] = counts, hash
        if edges is not None:
            self.edges[image] = edges
        self._pending.append(image)
        if len(self._pending) >= IMAGES_PER_SHARD or time.monotonic() - self._written > SECONDS_PER_SHARD:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            path = self._shards / f"{len(self._read):06d}-{secrets.token_hex(8)}.npz"  # of no other writer
            self._write_counts(path, self._pending)
            self._read.add(path.name)
            self._pending, self._written = [], time.monotonic()

    def finish(self, result: dict[str, Any], images: list[str]) -> None:
        """Writes the counts of `images`, then the result, then removes the shards. Raises OvssError, and keeps the shards,
        if the result does not state what was counted."""
        if reasons := disagreements(result, self.counts, images):
            raise OvssError(f"{self.base}: the result and its counts do not state the same images and pixels ({reasons}).")
        text = dump(result)
        checked(json.loads(text), f"the result for {self.result_path}")
        self._write_counts(self.counts_path, images)
        write_text(self.result_path, text)
        self._pending = []
        shutil.rmtree(self._shards, ignore_errors=True)

    def write_part(self, part: dict[str, Any]) -> None:
        """What a shard's process knows of the run besides counts, with which tools/merge.py completes the result."""
        text = json.dumps(part | {"shard": [self.shard.number, self.shard.count]})
        write_text(self.part_path, f"{digest(text)}\n{text}\n")

    def _write_counts(self, path: Path, images: list[str]) -> None:
        records = [self.counts[image] for image in images]
        content = {
            "fingerprint": np.array(self.fingerprint),
            "images": np.array(images, dtype=np.str_),
            "hashes": np.array([self.hashes[image] for image in images], dtype=np.str_),
            "lengths": np.array([len(r) for r in records], dtype=np.int64),
            "records": np.concatenate(records) if records else np.empty(0, DTYPE),
        }
        if self.edges:
            edges = [self.edges[image] for image in images]
            content |= {"edge_lengths": np.array([len(e) for e in edges], np.int64), "edges": np.concatenate(edges)}
        content["checksum"] = np.array(_checksum(content))
        write_atomic(path, lambda temporary: np.savez_compressed(temporary, **content))


def read_counts(
    path: str | Path, fingerprint: str | None = None, classes: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, np.ndarray]]:
    """Confusion records, label-map hashes, and boundary records if there are any, by image id. Raises OvssError if the file is
    damaged, of another run, or counts more than so many `classes`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            content = dict(file)
            if "checksum" in content and str(content.pop("checksum")) != _checksum(content):
                raise ValueError("its checksum is wrong")
            images = content["images"].tolist()
            if len(set(images)) < len(images):
                raise ValueError("it holds an image twice")
            if not content["hashes"].shape == content["images"].shape == (len(content["images"]),):
                raise ValueError("its arrays do not belong together")
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
    """The label maps of a result file's run, if it kept them."""
    return result.with_suffix(".maps")


def disagreements(result: Mapping[str, Any], counts: Mapping[str, np.ndarray], images: Sequence[str]) -> str:
    """Why a result does not state what the counts of its images are: each image once, the same pixels. Empty if it does."""
    here = areas(total((counts[image] for image in images if image in counts), len(result["per_class"])))
    stated = [(entry["correct"], entry["predicted"], entry["true"]) for entry in result["per_class"]]
    numbers = result["images"]
    wrong = {
        "an image is counted twice": len(set(images)) < len(images),
        "images have no counts": any(image not in counts for image in images),
        "another number of images": numbers["evaluated"] != len(images),
        "an image is both evaluated and failed": any(image in numbers["failed"] for image in images),
        "other pixels per class": stated != list(zip(*(each.tolist() for each in here), strict=True)),
    }
    return ", ".join(reason for reason, is_so in wrong.items() if is_so)


def read_parts(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What `RunStore.write_part` left in a folder of shards, in order, and what is wrong with parts that are damaged."""
    parts, damaged = [], []
    for path in folder.glob("part-*.json"):
        checksum, _, text = path.read_text("utf-8", "replace").partition("\n")
        if checksum == digest(text.rstrip("\n")):
            parts.append(json.loads(text))
        else:
            damaged.append(f"{path} is damaged: its checksum is wrong. Delete it and start its shard again.")
    return sorted(parts, key=lambda part: part["shard"][::-1]), damaged


def _is_open(path: Path, file: IO) -> bool:
    """Whether the file that is open is (still) the one at this path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _checksum(content: Mapping[str, np.ndarray]) -> str:
    parts = [part for name in sorted(content) for part in (name, content[name].dtype.str, content[name].tobytes())]
    return digest(*parts)


def _by_image(images: list[str], records: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
    flat = records.ndim == lengths.ndim == 1 and records.dtype.names and lengths.dtype.kind == "i"
    if not flat or len(lengths) != len(images) or (lengths < 0).any() or lengths.sum() != len(records):
        raise ValueError("its arrays do not belong together")
    return dict(zip(images, np.split(records, np.cumsum(lengths)[:-1]), strict=False))


def read_result(path: str | Path) -> dict[str, Any]:
    """A result JSON in its present form, whatever version wrote it. Raises OvssError if it is missing, damaged or of another
    form."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise OvssError(f"result {path} cannot be read: {error}. Delete it and run again.") from error
    return checked(content, f"result {path}")


def dump(result: dict[str, Any]) -> str:
    """Indented JSON in the order of the keys; NaN becomes null, short lists stay on a line."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(clean(result), indent=1, ensure_ascii=False, allow_nan=False) + os.linesep
