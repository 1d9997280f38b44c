"""Suites: data sets that papers report together, and the averages over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import OvssError, unknown
from ..files import config_names, load_config

PREFIX = "suite/"


@dataclass(frozen=True)
class Average:
    """The mean of a metric over data sets. A member may also be an earlier average, which counts as one."""

    name: str
    members: tuple[str, ...]
    metric: str = "mIoU"


@dataclass(frozen=True)
class Suite:
    """configs/dataset/suite/<name>.yaml."""

    name: str
    full_name: str
    datasets: tuple[str, ...]
    averages: tuple[Average, ...]


def load_suite(name: str) -> Suite:
    """Loads a suite by its name, with or without `suite/`. Raises OvssError for an unknown name."""
    name = name.removeprefix(PREFIX)
    if name not in config_names("dataset/suite"):
        raise unknown("suite", name, config_names("dataset/suite"))
    config = load_config("dataset/suite", name)
    # An entry is a list of members, or {of: members, metric: NAME}.
    entries = {label: entry if isinstance(entry, dict) else {"of": entry} for label, entry in config["averages"].items()}
    averages = [Average(label, tuple(entry["of"]), entry.get("metric", "mIoU")) for label, entry in entries.items()]
    return Suite(name, config["full_name"], tuple(config["datasets"]), tuple(averages))


def mean_of(averages: Sequence[Average], figures: Mapping[tuple[str, str], float]) -> dict[str, tuple[float | None, list[str]]]:
    """Average name -> (value, members without a figure), from `figures`: (data set, metric) -> percent. The value is None if a
    figure is missing."""
    result: dict[str, tuple[float | None, list[str]]] = {}
    for average in averages:
        values, missing = [], []
        for member in average.members:
            value, lacking = result.get(member) or (figures.get((member, average.metric)), [member])
            values.append(value)
            missing += lacking if value is None else []
        result[average.name] = (None if missing else sum(values) / len(values), missing)
    return result


def expand(names: Sequence[str]) -> tuple[list[str], list[Suite]]:
    """The data sets named directly or through suites, without repetition, and the suites."""
    suites = [load_suite(name) for name in names if name.startswith(PREFIX)]
    members = [member for name in names for member in (load_suite(name).datasets if name.startswith(PREFIX) else [name])]
    if len(set(names)) < len(names):
        raise OvssError(f"dataset={list(names)} repeats a name. Name each data set once.")
    return list(dict.fromkeys(members)), suites
