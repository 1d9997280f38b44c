"""An external program, in its own interpreter or container, called with a JSON job (docs/outside.md)."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from ..auxiliary.label_maps import LabelMaps
from ..config.registry import SEGMENTORS
from ..datasets.base import SegDataset
from ..datasets.lists import Sample
from ..errors import KEPT, OvssError
from ..files import below, cache_dir, cannot_write, digest, make_folder, path_digest, write_atomic, write_text
from ..progress import Progress
from .labels import LabelMapSegmentor

JOB = "{job}"  # replaced by the path of the job in the command
SHOWN = 15  # lines of the program's output in an error
# Variables that are meant for this interpreter and its processes, and would misconfigure those of another program.
NOT_PASSED = {"PYTHONPATH", "PYTHONHOME", "RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"}
NOT_PASSED |= {"MASTER_PORT"}


@SEGMENTORS.register_module(name="command")
class ForeignProgram(LabelMapSegmentor):
    """Runs `command` on `images_per_call` images at a time, each call for at most `time_limit` seconds. JOB in the command is
    replaced by the path of the job, which is otherwise appended. Maps are kept in the cache: images with a map are not run
    again."""

    requires = ("command",)
    positive = ("images_per_call", "time_limit")
    command: str | None = None
    images_per_call: int = 256
    time_limit: float = 3600.0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        try:
            self.words = shlex.split(self.command or "")
        except ValueError as error:
            raise OvssError(f"command={self.command}: {error}. Quote it as in a shell.") from error
        if not self.words:
            raise OvssError("command is empty. Give a program and its arguments, e.g. command='python infer.py'.")

    @property
    def files(self) -> Mapping[str, Path]:
        """The files that the command names, such as a script and its weights; not the program itself."""
        return {word: Path(word) for word in self.words[1:] if Path(word).is_file()}

    def begin(self, dataset: SegDataset, samples: Sequence[Sample], progress: Progress) -> None:
        """Runs the program on the images without a map. Raises OvssError for a call that fails, takes too long or leaves
        unusable maps."""
        contents = (part for word, path in sorted(self.files.items()) for part in (word, path_digest(path)))
        key = digest(self.command or "", *contents, dataset.fingerprint, self.vocabulary.digest, *dataset.classes)
        folder = make_folder(cache_dir() / "outside" / key[:16] / "maps")
        maps = self.maps = LabelMaps(folder, dataset, self.accepted_names())
        left = [sample for sample in samples if maps.problem(sample)]
        if len(left) < len(samples):
            progress.say(f"command: {len(samples) - len(left)} of {len(samples)} images have maps in {folder}")
        if not left:
            return
        with progress.start(f"command on {dataset.name}", len(left)) as task:
            for start in range(0, len(left), self.images_per_call):
                some = left[start : start + self.images_per_call]
                job = folder.parent / f"job-{digest(*(sample.id for sample in some))[:12]}.json"
                write_text(job, json.dumps(self.job(dataset, some, folder), indent=1) + "\n")
                self.call(job)
                self.maps = LabelMaps(folder, dataset, self.accepted_names())  # the program may have written a manifest
                try:
                    self.maps.check(some)
                except OvssError as error:
                    raise OvssError(f"command '{self.command}': {error}{_output(job)}") from error
                task.advance(len(some))

    def job(self, dataset: SegDataset, samples: Sequence[Sample], folder: Path) -> dict[str, Any]:
        """The job of a call: `images`, each with the path for its map, and `classes` in the order of their values."""
        vocabulary, count = self.vocabulary, len(dataset.classes)
        queries = [(query, c) for query, c in zip(vocabulary.queries, vocabulary.group, strict=True) if c >= 0]
        images = []
        for sample in samples:
            image, label_map = sample.image_path.resolve(), below(folder, f"{sample.id}.png")
            if type(dataset).image is not SegDataset.image:  # its loader changes the pixels
                image = below(folder.with_name("images"), f"{sample.id}.png")
                write_atomic(image, Image.fromarray(dataset.image(sample)).save)
            make_folder(label_map.parent)
            images.append({"id": sample.id, "path": str(image), "map": str(label_map)})
        return {
            "version": 1,
            "dataset": dataset.name,
            "images": images,
            "classes": [
                {"name": name, "synonyms": [query for query, c in queries if c == n], "background": n == vocabulary.background}
                for n, name in enumerate(dataset.classes)
            ],
            "output": str(folder),
            "void": 255 if count <= 255 else 65535,
        }

    def call(self, job: Path) -> None:
        """Runs the command for a job, with its output in a file beside the job. The program and all processes that it started
        are killed when this returns or raises."""
        words = [word.replace(JOB, str(job)) for word in self.words]
        words += [] if JOB in (self.command or "") else [str(job)]
        environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED | {"OVSS_JOB"}}
        try:
            with job.with_suffix(".log").open("wb") as log:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment | {"OVSS_JOB": str(job)},
                    start_new_session=True,
                )
        except (FileNotFoundError, PermissionError) as error:
            raise OvssError(f"command '{self.command}' cannot be started: {error.strerror}: {words[0]}.") from error
        except OSError as error:
            raise cannot_write(job.with_suffix(".log"), error) from error
        try:
            status = process.wait(self.time_limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
        if status == 0:
            return
        if status is None:
            hint = "Allow more (recipe.time_limit=SECONDS), or give it fewer images at a time (recipe.images_per_call=N)"
            what = f"took longer than {self.time_limit:g} s. {hint}"
        else:
            what = f"was killed by {_signal(-status)}" if status < 0 else f"failed with exit status {status}"
        raise OvssError(f"command '{self.command}' {what}; {KEPT}. Its job is {job}{_output(job)}")


def _end(process: subprocess.Popen) -> None:
    """Ends a program and all processes of its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _output(job: Path) -> str:
    """The last lines that the program printed."""
    lines = job.with_suffix(".log").read_text("utf-8", "replace").splitlines()
    return "".join(f"\n  | {line[:500]}" for line in lines[-SHOWN:]) if lines else "\n  (it printed nothing)"
