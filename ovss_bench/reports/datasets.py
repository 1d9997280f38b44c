"""The list of data sets: a row for each with its state on this machine, or a card with everything about one."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from ..datasets.base import MissingData, SegDataset, load_dataset
from ..datasets.config import alternatives, dataset_config, pattern_of
from ..datasets.expected import count_in_words
from ..datasets.layout import data_root
from ..datasets.mmseg_classes import mmseg_class
from ..datasets.suites import load_suite
from ..errors import OvssError
from ..files import CONFIGS, config_names
from ..runs.published import published_figures
from ..vocabulary import read_names
from .table import Table

WIDTH = 80  # columns of a terminal by default


def overview(root: str | None) -> Table:
    records = []
    for name in config_names("dataset"):
        config, (state, dataset) = dataset_config(name)[1], state_of(name, root)
        images = count_in_words(config, str(config.get("scenes", "?")))
        size = "" if dataset is None else f"{_bytes(dataset) / 1e6:.0f}"
        record = {"data set": name, "classes": class_count(name), "images": images, "present": state, "MB": size}
        records.append(record | {"licence": config["licence"]})
    return Table.of(records, right=("classes", "images", "MB"))


def card(name: str, root: str | None) -> Text:
    """Everything about one data set, wrapped to 80 columns; commands are not wrapped."""
    argument, (name, config, _) = name, dataset_config(name)  # a name or a YAML file
    folder = f"{root or 'DATA_ROOT'}/{config.get('folders', ['(drawn)'])[0]}"
    state, dataset = state_of(argument, root)
    prepare, figures = config.get("prepare", {}), published_figures()
    archives = [f"{archive['file']}: {archive.get('url', 'by hand, see link')}" for archive in prepare.get("archives", ())]
    suites = [f"suite/{suite}" for suite in config_names("dataset/suite") if name in load_suite(suite).datasets]
    facts: dict[str, Any] = {
        "present": state,
        "missing": None if dataset or "images" not in config else "\n".join(_missing(argument, root, config)),
        "licence": config.get("licence"),
        "link": config.get("link"),
        "classes": class_count(argument),
        "background": config.get("background", "none"),
        "images expected": count_in_words(config, str(config.get("scenes", "not known"))),
        "images": f"{folder}/{pattern_of(config, 'image')}" if "images" in config else None,
        "labels": f"{folder}/{pattern_of(config, 'label')}" if "labels" in config else None,
        "ids": f"{folder}/{config['ids']}" if "ids" in config else None,
        "zero label": "ignored, the others count from 0" if config.get("reduce_zero_label") else None,
        "ignored value": config.get("ignore_index", 255),
        "names": ", ".join(names_variants(config.get("names_of", name))) or "canonical only",
        "archives": "\n".join(archives) or None,
        "suites": ", ".join(suites) or None,
        "reported by": ", ".join(sorted(figures["method"][figures["dataset"] == name].unique())) or "no published figure",
        "note": prepare.get("note"),
        "prepare": f"python tools/datasets.py prepare {argument} data_root=DIR" if prepare else None,
    }
    facts = {key: str(value).splitlines() for key, value in facts.items() if value is not None}
    left = max(map(len, facts)) + 2
    view = Text("\n".join(textwrap.wrap(f"{name}: {config.get('full_name', 'your own data set')}", WIDTH)))
    for key, lines in facts.items():
        beside = [part for line in lines for part in _wrapped(line, WIDTH - left)]
        if max(map(len, beside)) <= WIDTH - left:
            view.append(f"\n{key:{left}}", "bold").append(f"\n{'':{left}}".join(beside))
        else:
            below = [part for line in lines for part in _wrapped(line, WIDTH - 2, broken=True)]
            view.append(f"\n{key}", "bold").append("".join(f"\n  {line}" for line in (lines if key == "prepare" else below)))
    return view


def _wrapped(line: str, width: int, broken: bool = False) -> list[str]:
    """Wraps a line. Words longer than the width stay whole unless `broken`, at alternatives (|) if possible."""
    line = line.replace("|", " | ") if broken else line
    return textwrap.wrap(line, width, break_long_words=broken, break_on_hyphens=False)


def _missing(name: str, root: str | None, config: Mapping[str, Any]) -> list[str]:
    """The missing folders and lists of a data set below the data root; if there are none, its first missing files."""
    root = data_root(root)
    wanted = [alternatives(config[key]) for key in ("images", "labels", "ids") if config.get(key)]
    places = [Path(root) / folder for folder in config["folders"]]
    lacking = [[paths for paths in wanted if not any((place / path).exists() for path in paths)] for place in places]
    best = min(range(len(lacking)), key=lambda i: len(lacking[i]))
    if lacking[best]:
        return [f"{root}/{config['folders'][best]}/{'|'.join(paths)}" for paths in lacking[best]]
    try:
        return [f"{len(load_dataset(name, root).samples)} images are there"]
    except OvssError as error:  # names the missing files
        return str(error).partition("\nExpected")[0].splitlines()


def state_of(name: str, root: str | None) -> tuple[str, SegDataset | None]:
    """The state of a data set on this machine in words, and the data set if it is complete enough to load."""
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
    if files:  # as many as in mmseg, which takes seconds to import
        return len(read_names(files[0])[0])
    return len(mmseg_class(config["mmseg"]).METAINFO["classes"])


def names_variants(dataset: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / "names" / dataset).glob("*.txt"))


def _bytes(dataset: SegDataset) -> int:
    return sum(path.stat().st_size for sample in dataset.samples for path in (sample.image_path, sample.label_path))
