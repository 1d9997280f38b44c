"""What `tools/datasets.py list` shows: every data set with what is here of it, or all that is known about one."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table

from ..datasets.base import MissingData, SegDataset, load_dataset, mmseg_class
from ..datasets.config import dataset_config, pattern_of
from ..datasets.expected import in_words
from ..datasets.suites import load_suite
from ..errors import OvssError
from ..files import CONFIGS, config_names
from ..vocabulary import read_names
from .published import published_figures


def overview(root: str | None) -> Table:
    """A row per data set."""
    view = Table(box=None, pad_edge=False)
    for column in ("data set", "classes", "images", "here", "MB", "licence"):
        view.add_column(column, justify="right" if column in ("classes", "images", "MB") else "left", overflow="fold")
    for name in config_names("dataset"):
        config = dataset_config(name)[1]
        state, dataset = state_of(name, root)
        size = "" if dataset is None else f"{_bytes(dataset) / 1e6:.0f}"
        images = in_words(config, str(config.get("scenes", "?")))
        view.add_row(name, str(class_count(name)), images, state, size, config["licence"])
    return view


def card(name: str, root: str | None) -> Group:
    """Everything about one data set."""
    given, (name, config, _) = name, dataset_config(name)
    view = Table(
        box=None,
        pad_edge=False,
        show_header=False,
        title=f"{name}: {config.get('full_name', 'of your own')}",
        title_justify="left",
    )
    view.add_column(style="bold")
    view.add_column(overflow="fold")
    folder = f"{root or 'DATA_ROOT'}/{config.get('folders', ['(drawn)'])[0]}"
    facts: dict[str, Any] = {
        "here": state_of(given, root)[0],
        "licence": config.get("licence"),
        "link": config.get("link"),
        "classes": class_count(given),
        "background": config.get("background", "none"),
        "images expected": in_words(config, str(config.get("scenes", "not known"))),
        "images": f"{folder}/{pattern_of(config, 'image')}" if "images" in config else None,
        "labels": f"{folder}/{pattern_of(config, 'label')}" if "labels" in config else None,
        "ids": f"{folder}/{config['ids']}" if "ids" in config else None,
        "zero label": "ignored, the others count from 0" if config.get("reduce_zero_label") else None,
        "ignored value": config.get("ignore_index", 255),
        "names": ", ".join(names_variants(config.get("names_of", name))) or "canonical only",
    }
    for archive in config.get("prepare", {}).get("archives", ()):
        facts[f"archive {archive['file']}"] = archive.get("url", "by hand, see link")
    figures = published_figures()
    suites = [suite for suite in config_names("dataset/suite") if name in load_suite(suite).datasets]
    facts["suites"] = ", ".join(f"suite/{suite}" for suite in suites) or None
    facts["reported by"] = (
        ", ".join(sorted(figures["method"][figures["dataset"] == name].unique())) or "no published figure here"
    )
    facts["note"] = config.get("prepare", {}).get("note")
    facts["prepare"] = f"python tools/datasets.py prepare {given} data_root=DIR" if "prepare" in config else None
    for key, value in facts.items():
        if value is not None:
            view.add_row(key, str(value))
    return Group(view)


def state_of(name: str, root: str | None) -> tuple[str, SegDataset | None]:
    """In words what is there of a data set, and the data set if all its files are."""
    try:
        dataset = load_dataset(name, root)
        found = len(dataset.samples)
    except MissingData as error:
        return ("half prepared" if "half prepared" in str(error) else "no"), None
    except OvssError as error:
        return str(error).splitlines()[0], None
    expected = dataset.expected_images
    return ("yes" if expected in (None, found) else f"{found} of {expected} images"), dataset


def class_count(name: str) -> int:
    config = dataset_config(name)[1]
    if config.get("loader") == "demo":
        return len(load_dataset(name).classes)
    if "classes" in config:
        return len(config["classes"])
    files = sorted((CONFIGS / "names" / config.get("names_of", name)).glob("*.txt"))
    if files:  # mmseg, which takes seconds to import, has as many
        return len(read_names(files[0])[0])
    return len(mmseg_class(config["mmseg"]).METAINFO["classes"])


def names_variants(dataset: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / "names" / dataset).glob("*.txt"))


def _bytes(dataset: SegDataset) -> int:
    return sum(path.stat().st_size for sample in dataset.samples for path in (sample.image_path, sample.label_path))
