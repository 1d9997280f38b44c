"""A grid of runs (`-m`): each of its runs writes the tables of all that have ended, in the grid's order, in whatever processes
and on whatever machines they are."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import reading
from ..files import read_json, write_text
from .evaluate import EvalResult
from .store import read_result


@dataclass(frozen=True)
class Grid:
    """The grid that a run belongs to, as its `number`-th: in `folder` each run leaves the names of its result files."""

    folder: Path
    number: int

    @contextmanager
    def together(self, results: Sequence[EvalResult], output: Path) -> Iterator[list[dict[str, Any]]]:
        """The results of the grid's runs with the same output folder, of this one and of those that have ended; meanwhile no
        other run has its turn."""
        paths = [str(result.path.resolve()) for result in results]
        record = {"output": str(output.resolve()), "results": paths}
        write_text(self.folder / f"{self.number:06d}.json", json.dumps(record))
        with (self.folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            paths = []
            for path in sorted(self.folder.glob("[0-9]*.json")):
                with reading(f"record {path} of this grid", "Delete it."):
                    each = read_json(path)
                    paths += map(Path, each["results"]) if each["output"] == record["output"] else []
            yield [read_result(path) for path in dict.fromkeys(paths)]
