"""The rows to come: segmentors times data sets, or a paper's table, each with what it overrides."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..auxiliary.sources import SOURCES
from ..config.plugin_errors import plugin_errors
from ..config.recipe import RECIPE_VALUES, compose_recipe, segmentor_config
from ..datasets.base import MissingData, SegDataset, load_dataset
from ..datasets.suites import Suite, expand
from ..encoders.clip import DenseCLIP, clip_label, default_precision, load_clip
from ..errors import OvssError, unknown
from .jobs import Job, make_job

if TYPE_CHECKING:
    from ..reports.papers import PaperTable


@dataclass(frozen=True)
class Plan:
    """A row to come: what is to be evaluated with what."""

    segmentor: str
    clip: str  # NAME[:TAG]
    dataset: str
    overrides: dict[str, Any]


def plans_of(options: dict[str, Any], paper: PaperTable | None) -> tuple[list[Plan], list[Suite]]:
    """The grid of segmentors and data sets, or of a paper's table."""
    own = options["recipe"] | {kind: options[kind] for kind in SOURCES if options[kind] is not None}
    if paper:
        rows = [row for row in paper.rows if row.segmentor]
        overrides = split_overrides([row.segmentor for row in rows], own)
        return [
            Plan(row.segmentor, row.clip, dataset, row.overrides(dataset) | chosen)
            for dataset in paper.datasets
            for row in rows
            for chosen in overrides[row.segmentor]
        ], []
    names = _listed(options["segmentor"])
    datasets, suites = expand(_listed(options["dataset"]))
    overrides = split_overrides(names, own)
    clip = str(options["clip"])
    return [Plan(name, clip, dataset, own) for dataset in datasets for name in names for own in overrides[name]], suites


def load_datasets(names: Iterable[str], root: str | None, skip_missing: bool) -> tuple[dict[str, SegDataset], dict[str, MissingData]]:
    """The data sets that are here, and why the others are not. Raises MissingData if that is all, or any if none may be
    missing."""
    datasets, absent = {}, {}
    for name in names:
        try:
            datasets[name] = load_dataset(name, root)
            with plugin_errors(f"data set '{name}'", type(datasets[name])):
                _ = datasets[name].samples
        except MissingData as error:
            if not skip_missing:
                raise
            datasets.pop(name, None)
            absent[name] = error
    if not datasets:
        raise next(iter(absent.values()))
    return datasets, absent


def split_overrides(names: Sequence[str], recipe: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """For each segmentor the overrides that concern it: recipe values all, hyperparameters those that it has. A list in the
    place of one value stands for several, and the rows are all combinations of them."""
    own = {name: segmentor_config(name)[1].hyperparameters() for name in names}
    known = {*RECIPE_VALUES, *(key for keys in own.values() for key in keys)}
    for key in recipe:
        if key not in known:
            raise unknown(f"recipe value or hyperparameter of {', '.join(names)}", key, known)

    def choices(name: str, key: str, value: Any) -> list[tuple[str, Any]]:
        is_list = key == "pamr_dilations" or isinstance(own[name].get(key), tuple)
        several = isinstance(value, list) and value and (not is_list or isinstance(value[0], list))
        if several and len(set(map(repr, value))) < len(value):
            raise OvssError(f"recipe.{key}={value}: expected one value, or different ones.")
        return [(key, item) for item in value] if several else [(key, value)]

    return {
        name: [
            dict(chosen)
            for chosen in product(*(choices(name, *item) for item in recipe.items() if item[0] in {*RECIPE_VALUES, *own[name]}))
        ]
        for name in names
    }


def job_of_plan(plan: Plan, dataset: SegDataset, options: dict[str, Any]) -> Job:
    name, pretrained, label = clip_of(plan.clip, options["weights"])
    protocol = options["protocol"]
    recipe = compose_recipe(plan.segmentor, clip=label, dataset=dataset.name, protocol=protocol, overrides=plan.overrides)
    file = Path(pretrained or name)
    changed = file.stat().st_mtime_ns if os.path.isfile(file) else None
    device = options["runtime"]["device"]
    clip = _loaded(name, pretrained, recipe.precision or default_precision(device), device, changed)
    return make_job(plan.segmentor, clip, dataset, protocol, plan.overrides)


@lru_cache(maxsize=4)
def _loaded(name: str, pretrained: str | None, precision: str, device: str, changed: int | None) -> DenseCLIP:
    """Rows, and the runs of a grid in one process, share what they load, unless its file has changed."""
    return load_clip(name, pretrained=pretrained, precision=precision, device=device)


def clip_of(clip: str, weights: str | None) -> tuple[str, str | None, str]:
    """Of `clip=NAME[:TAG]` and `weights=`: the name, the tag or file, and the name that recipes and results use."""
    name, _, tag = clip.partition(":")
    pretrained = weights or tag or None
    return name, pretrained, clip_label(name, pretrained)


def _listed(value: Any) -> list[str]:
    names = value if isinstance(value, list) else [value]
    if not names or len(set(names)) < len(names):
        raise OvssError(f"{names}: expected one name, or a list of different names.")
    return [str(name) for name in names]
