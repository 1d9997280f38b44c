"""One run of `prepare`: its options, and the kind of images if a data set offers several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import OvssError, reading, unknown
from ...files import config_names, data_files, write_text
from ...progress import Progress
from ..config import dataset_config

KIND = ".images"  # name of the file in a folder that records the kind of its images


@dataclass(frozen=True)
class Preparation:
    """`folder`: the data set's folder; `command`: resumes the run; `images`: the kind of images, None without a choice."""

    name: str
    config: dict[str, Any]
    folder: Path
    command: str
    rerun: bool
    images: str | None
    workers: int
    progress: Progress

    def terms(self) -> list[str]:
        """The licence, home page and manual steps that the configuration states."""
        facts = {"Licence": self.config.get("licence"), "Where": self.config.get("link")}
        note = self.config.get("prepare", {}).get("note")
        return [f"{title}: {value}" for title, value in facts.items() if value] + ([note] if note else [])

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Adds the terms to an error about missing files."""
        try:
            yield
        except OvssError as error:
            raise OvssError("\n".join([str(error), *self.terms()])) from error

    def record_images(self) -> None:
        """If there is a choice, records the kind of images in their folder while it is still empty."""
        if not self.images:
            return
        folder = self.folder / self.config["images"]
        if self.rerun or not data_files(folder):
            write_text(folder / KIND, f"{self.images}\n")
        elif not recorded_images(self.config, self.folder):
            hint = f"rerun=true makes all of them images={self.images}"
            self.progress.say(f"note: the kind of the images in {folder} is not recorded; {hint}")


def check_choice(name: str, config: dict[str, Any], images: str | None) -> None:
    """Raises OvssError for a kind of images that the data set does not offer."""
    choices = config.get("prepare", {}).get("images", [])
    if images is not None and not choices:
        offering = [each for each in config_names("dataset") if dataset_config(each)[1].get("prepare", {}).get("images")]
        raise OvssError(f"images={images}: {name} has only one kind of images; {', '.join(offering)} offer a choice.")
    if images not in (None, *choices):
        raise unknown(f"kind of images of {name}", images, choices)


def choose_images(config: dict[str, Any], folder: Path, images: str | None, rerun: bool) -> str | None:
    """The kind of images to write; None without a choice. Raises OvssError rather than mix two kinds."""
    choices = config.get("prepare", {}).get("images")
    if not choices:
        return None
    existing, target = recorded_images(config, folder), folder / config["images"]
    if images and images != existing and not rerun and target.is_dir() and data_files(target):
        kind = f"of images={existing}" if existing else "of a kind that is not recorded"
        raise OvssError(f"{target} holds images {kind}, not images={images}. Add rerun=true to write all of them again.")
    return images or existing or choices[0]


def recorded_images(config: dict[str, Any], folder: Path) -> str:
    """The recorded kind of images; empty if there is no record, as for the output of MESS's scripts."""
    path = folder / config["images"] / KIND
    with reading(path, "Delete it."):
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
