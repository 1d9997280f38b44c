"""The only writer under results/: shards of finished images while a run goes on, one JSON and one npz when it is done.

A run's files are `<dataset>/<clip>/<segmentor>-<fingerprint>.json`, `.npz` (counts per image) and, until it is done, the folder
`.shards`. The fingerprint is that of everything that makes two runs the same, so runs never mix, and resuming is reading.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from ..errors import OvssError
from ..evaluation.confusion import DTYPE
from ..files import digest, write_atomic
from .form import checked

IMAGES_PER_SHARD = 16
SECONDS_PER_SHARD = 10


class RunStore:
    """Counts of one run, by image id. Used as a context: it holds the run's lock, and writes what is pending at the end,
    whatever the reason."""

    def __init__(self, output: str | Path, dataset: str, clip: str, segmentor: str, fingerprint: str) -> None:
        self.base = Path(output) / dataset / clip / f"{segmentor}-{fingerprint[:12]}"
        self.fingerprint = fingerprint
        self.counts: dict[str, np.ndarray] = {}
        self.hashes: dict[str, str] = {}
        self.edges: dict[str, np.ndarray] = {}
        self._pending: list[str] = []
        self._written = time.monotonic()
        self._lock: IO | None = None

    @property
    def result_path(self) -> Path:
        return self.base.with_name(self.base.name + ".json")

    @property
    def counts_path(self) -> Path:
        return self.base.with_name(self.base.name + ".npz")

    @property
    def _shards(self) -> Path:
        return self.base.with_name(self.base.name + ".shards")

    def finished(self) -> dict[str, Any] | None:
        """The result of the same run, if there is one already."""
        if not self.result_path.is_file() or not self.counts_path.is_file():
            return None
        return read_result(self.result_path)

    def discard(self) -> None:
        """Forgets what an interrupted run left."""
        shutil.rmtree(self._shards, ignore_errors=True)

    def __enter__(self) -> RunStore:
        try:
            self._shards.mkdir(parents=True, exist_ok=True)
            self._lock = (self._shards / "lock").open("w")
        except OSError as error:
            raise OvssError(
                f"cannot write {self._shards}: {error.strerror}. Change its permissions or choose "
                "another folder with output=DIR."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OvssError(
                f"another process is working on {self.base}. Wait for it, or choose another folder with output=DIR."
            ) from None
        for path in sorted(self._shards.glob("[0-9]*.npz")):
            try:
                counts, hashes, edges = read_counts(path, self.fingerprint)
            except OvssError:
                path.unlink()  # damaged: its images are evaluated again
                continue
            self.counts |= counts
            self.hashes |= hashes
            self.edges |= edges
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            self._lock.close()

    def map_path(self, image: str) -> Path:
        """Where the label map of an image is kept if it is: an 8 or 16-bit PNG."""
        return self.base.with_name(self.base.name + ".maps") / f"{image}.png"

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
            number = max((int(path.stem) for path in self._shards.glob("[0-9]*.npz")), default=0) + 1
            self._write_counts(self._shards / f"{number:06d}.npz", self._pending)
            self._pending, self._written = [], time.monotonic()

    def finish(self, result: dict[str, Any], images: list[str]) -> None:
        """Writes the counts of `images`, then the result, then removes the shards."""
        self._write_counts(self.counts_path, images)
        text = dump(result)
        checked(json.loads(text), f"the result for {self.result_path}")
        write_atomic(self.result_path, lambda path: path.write_text(text))
        self._pending = []
        shutil.rmtree(self._shards)

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
    path: str | Path, fingerprint: str | None = None
) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, np.ndarray]]:
    """Confusion records, label-map hashes, and boundary records if there are any, by image id. Raises OvssError if the file is
    damaged or of another run."""
    try:
        with np.load(path, allow_pickle=False) as file:
            content = dict(file)
            if "checksum" in content and str(content.pop("checksum")) != _checksum(content):
                raise ValueError("its checksum is wrong")
            images = content["images"].tolist()
            records = _by_image(images, content["records"], content["lengths"])
            hashes = dict(zip(images, content["hashes"].tolist(), strict=True))
            edges = _by_image(images, content["edges"], content["edge_lengths"]) if "edges" in content else {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise OvssError(f"{path} is damaged: {error}. Delete it; its images will be evaluated again.") from error
    if fingerprint is not None and str(content["fingerprint"]) != fingerprint:
        raise OvssError(f"{path} belongs to another run. Delete it, or choose another folder with output=DIR.")
    return records, hashes, edges


def _checksum(content: Mapping[str, np.ndarray]) -> str:
    parts = [part for name in sorted(content) for part in (name, content[name].dtype.str, content[name].tobytes())]
    return digest(*parts)


def _by_image(images: list[str], records: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(images, np.split(records, np.cumsum(lengths)[:-1]), strict=False))


def read_result(path: str | Path) -> dict[str, Any]:
    """A result JSON in its present form, whatever version wrote it. Raises OvssError if it is missing, damaged or of another
    form."""
    try:
        content = json.loads(Path(path).read_text())
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
