"""A grid of runs (`-m`): each run writes the tables of all finished runs, in the grid's order. The runs may be processes on
several machines that share the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import reading
from ..files import read_json, write_text
from .evaluate import EvalResult
from .store import read_result


@dataclass(frozen=True)
class Grid:
    """The grid of a run, and the run's number in it. Each run writes the names of its result files to `folder`."""

    folder: Path
    number: int

    @contextmanager
    def together(self, results: Sequence[EvalResult], output: Path) -> Iterator[list[dict[str, Any]]]:
        """Yields the results of the grid's finished runs with this output folder. Other runs wait until the block ends."""
        paths = [str(result.path.resolve()) for result in results if result.path]
        record = {"output": str(output.resolve()), "results": paths}
        write_text(self.folder / f"{self.number:06d}.json", json.dumps(record))
        with FileLock(self.folder / "lock"):
            paths = []
            for path in sorted(self.folder.glob("[0-9]*.json")):
                with reading(f"record {path} of this grid", "Delete it."):
                    each = read_json(path)
                    paths += map(Path, each["results"]) if each["output"] == record["output"] else []
            yield [read_result(path) for path in dict.fromkeys(paths)]
